"""Open the adapter under evaluation: from this project or another program, an untrained one, or none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iclora_train.adapters import lora
from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.check import adapter_notes
from iclora_train.adapters.convert import ReferenceFactors, import_adapter, with_factors
from iclora_train.adapters.file import adapter_findings, inspect
from iclora_train.adapters.metadata import TEMPORAL, declares_factor
from iclora_train.adapters.official import completed, official_facts, recognise, require_supported, usage_notes
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.adapters.sound_context import audio_placement
from iclora_train.config import Config, ConfigError, Task, require
from iclora_train.config.official import Match
from iclora_train.config.references import strength_keys
from iclora_train.core.atomic_files import sha256
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.weights.safetensors_header import read_header

NONE = "none"  # adapter=none: the base alone


@dataclass(frozen=True)
class EffectLora:
    """A second LoRA that is used together with the adapter, at a strength of its own."""

    adapter: lora.Adapter
    sha256: str
    strength: float


@dataclass(frozen=True)
class JudgedAdapter:
    """The adapter, or the folder of clips, under evaluation.

    path: the file, the folder, or `none`. adapter: None without an adapter file. foreign: the metadata does not declare
    the reference factors, so those of conf/official or of the task are used. note: a remark for the user. videos: the
    digest of the clips if a folder of clips is evaluated. official: the published adapter that the file is. strength:
    of the adapter's weights. effect: a LoRA beside it. A condition without the adapter has neither. with_audio: the
    audio stream is sampled, so that modules of it and of the attention between the streams are used.
    """

    path: str
    adapter: lora.Adapter | None = None
    sha256: str | None = None
    foreign: bool = False
    note: str | None = None
    videos: str | None = None
    official: Match | None = None
    strength: float = 1.0
    effect: EffectLora | None = None
    with_audio: bool = False

    @property
    def audio_modules(self) -> dict[str, int]:
        """The adapter's modules of the audio stream and of the attention between the streams: used and unused ones."""
        count = 0 if self.adapter is None else len(self.adapter.audio)
        return {"used_modules": count * self.with_audio, "unused_modules": count * (not self.with_audio)}

    @property
    def remarks(self) -> str | None:
        """`note`, and modules that are not used."""
        unused = self.audio_modules["unused_modules"]
        if self.adapter is None or not unused:
            return self.note
        return self.with_note(
            f"{unused} of its {len(self.adapter.weights)} modules are not used: they belong to the audio stream or to "
            "cross-attention with it, and only the video stream is sampled"
        ).note

    @property
    def weighted(self) -> list[tuple[lora.Adapter, float]]:
        """The adapters with their strengths, as `lora.load_adapter` takes them; none without an adapter."""
        effect = [] if self.effect is None else [(self.effect.adapter, self.effect.strength)]
        return [] if self.adapter is None else [(self.adapter, self.strength), *effect]

    @property
    def specification(self) -> dict[str, Any]:
        """What determines the weights, JSON-serialisable. Strength 1 without an effect LoRA keeps its older hash."""
        strength = {} if self.strength == 1 else {"adapter_strength": self.strength}
        effect = {} if self.effect is None else {"effect": [self.effect.sha256, self.effect.strength]}
        return {"adapter": self.sha256, **strength, **effect}

    def with_note(self, note: str | None) -> JudgedAdapter:
        """The same with one more remark for the user."""
        notes = [text for text in (self.note, note) if text]
        return replace(self, note="; ".join(notes) or None)

    @property
    def json_facts(self) -> dict[str, Any]:
        """The entry `adapter` of scores.json."""
        metadata = {} if self.adapter is None else dict(sorted(self.adapter.metadata.items()))
        metadata |= {} if self.videos is None else {"videos_sha256": self.videos}
        return {
            "path": self.path,
            "sha256": self.sha256,
            "metadata": metadata,
            "foreign": self.foreign,
            "unused_modules": self.audio_modules["unused_modules"],
            "official": official_facts(self.official),
        }


def adapter_path(config: Config) -> Path:
    """The adapter file: `adapter=<file>`, or the adapter that the run exported."""
    return Path(config.adapter) if config.adapter else Path(config.runs_dir, config.run, "adapter.safetensors")


def existing_adapter(config: Config) -> Path:
    """The adapter file. ConfigError if it does not exist."""
    path = adapter_path(config)
    require(path.is_file(), f"adapter={path} does not exist: train it first, or give adapter=<file>")
    return path


def open_adapter(config: Config, base: BaseModel) -> JudgedAdapter:
    """The adapter that the settings name, checked against base and task.

    Raises ConfigError that names the file and the remedy.
    """
    if config.adapter == NONE:
        return JudgedAdapter(NONE, note="no adapter: every condition is sampled from the base alone")
    path, task = existing_adapter(config), config.task
    adapter, findings = inspect(path)
    metadata = read_header(path).metadata
    foreign = not declares_factor(metadata)
    spec = BaseSpec.open(config.model.checkpoint)
    official = recognise(path, metadata)
    require_supported(path, official)
    notes = [f"{path} {note}" for note in adapter_notes(path, metadata, official, spec)]
    known = completed(metadata, official)
    factors = ReferenceFactors(reference=False)
    if task.has_reference or declares_factor(known):
        factors = ReferenceFactors(
            None if declares_factor(known) else task.reference_downscale,
            None if TEMPORAL in known or not foreign else task.reference_temporal_scale,
        )
    if findings and findings == list(adapter_findings(adapter.weights)):
        lora.require_same_base(path, adapter, base.family, base.version, base.fingerprint if base.embedded else None)
        adapter = replace(adapter, metadata=with_factors(spec.metadata | known, factors))
        notes.append(f"{path} was never trained (every lora_B is zero): it is evaluated anyway")
    else:
        adapter = import_adapter(path, spec, factors)
    if not declares_factor(known):
        notes.append(f"{path} does not declare its reference factors: the factors of task {task.name} are used")
    notes += _use(config, official)
    require(
        task.has_reference or not adapter.in_context,
        f"{path} takes a reference, and task {task.name} has none: evaluate it with the task that it was trained for",
    )
    expected = (task.reference_downscale, task.reference_temporal_scale)
    require(
        (adapter.downscale, adapter.temporal_scale) == expected,
        f"{path} needs references at downscale {adapter.downscale}, temporal scale {adapter.temporal_scale}; "
        f"task {task.name} has {expected[0]}, {expected[1]}",
    )
    if not foreign:
        _require_references(path, adapter, task)
    return JudgedAdapter(str(path), adapter, sha256(path), foreign, "; ".join(notes) or None, official=official)


def _require_references(path: Path, adapter: lora.Adapter, task: Task) -> None:
    """ConfigError unless the references after the first, in their order, and the audio reference are those of the
    task."""
    declared = adapter.references[1:]
    expected = [ReferenceLayout(**more.layout()) for more in task.more_references]
    if declared != expected:
        of_file, of_task = (", ".join(f"{of.name} ({of.in_words})" for of in them) for them in (declared, expected))
        raise ConfigError(
            f"{path} has after its first reference {of_file or 'no other one'}; task {task.name} has "
            f"{of_task or 'no other one'} (task.more_references): evaluate it with the task that it was trained for"
        )
    for number, (layout, use) in enumerate(zip(adapter.references, task.reference_uses, strict=False)):
        (strength, attention), keys = layout.use.usual, " and ".join(strength_keys(number))
        require(
            layout.use.usual == use.usual,
            f"{path} was trained with strength {strength:g} and attention strength {attention:g} of reference "
            f"{layout.name}, and {keys} give {use.usual_strength:g} and {use.usual_attention:g}: evaluate it with the "
            "settings of its training",
        )
    placed, sound = audio_placement(adapter.metadata), task.reference_sound
    trained, asked = (f"the one of {name}" if name else "none" for name in (placed, sound and sound.placement))
    require(
        trained == asked,
        f"{path} was trained with an audio reference: {trained}; task {task.name} has {asked} (task.audio_reference): "
        "evaluate it with the task that it was trained for",
    )


def _use(config: Config, official: Match | None) -> list[str]:
    """Notes about a use that differs from the published one."""
    notes = []
    if official is not None:
        trigger, task_trigger = official.official.trigger, config.task.trigger
        if trigger is not None and trigger != task_trigger:
            notes.append(
                f"the captions of the windows have the trigger {task_trigger!r}, {official.official.title} has "
                f"{trigger!r}: set task.trigger to it and prepare the data again"
            )
        data = config.data
        notes += usage_notes(official.official, config.sample, 1.0, data.width, data.height, data.fps)
    return notes


def open_effect(path: Path, config: Config, base: BaseModel, strength: float) -> EffectLora:
    """A LoRA to use beside the adapter. A file that declares no reference factor is a plain LoRA.

    Raises ConfigError if it does not fit the base.
    """
    known = completed(read_header(path).metadata, recognise(path, read_header(path).metadata))
    factors = ReferenceFactors() if declares_factor(known) else ReferenceFactors(reference=False)
    adapter = import_adapter(path, BaseSpec.open(config.model.checkpoint), factors)
    lora.require_same_base(path, adapter, base.family, base.version, base.fingerprint if base.embedded else None)
    return EffectLora(adapter, sha256(path), strength)
