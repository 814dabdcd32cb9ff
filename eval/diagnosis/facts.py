"""What is known about a finished clip besides its pixels: the record of `generate`, its adapter, its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eval.diagnosis.settings import DiagnoseSettings, task_named
from iclora_train.adapters.file import inspect
from iclora_train.adapters.metadata import DOWNSCALE, TEMPORAL, VERSION, factor, metadata_findings
from iclora_train.adapters.official import completed, recognise
from iclora_train.config import ConfigError, Task, require
from iclora_train.config.official import Official
from iclora_train.config.paths import user_path
from iclora_train.core.records import AnyNumber, Text, read_json
from iclora_train.ltx2.weights.versions import VERSIONS

T = TypeVar("T")


@dataclass(frozen=True)
class _RecordSettings:
    adapter: list[Text]
    adapter_strength: list[AnyNumber]
    reference: list[Text | None]  # None: one of several that was left out
    attention_strength: list[AnyNumber]
    attention_mask: list[Text | None]


@dataclass(frozen=True)
class _Record:
    """The entries of a video's JSON record (`generate.output`) that are read here."""

    settings: _RecordSettings
    prompt: Text
    base: dict[Text, Any]


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter file. metadata: with what conf/official adds. problems: as `check` lists them, without the base."""

    path: Path
    metadata: Mapping[str, str]
    official: Official | None
    problems: list[str]

    @property
    def version(self) -> str | None:
        """The version of the base that the adapter was made for, if it is known."""
        return self.metadata.get(VERSION, None if self.official is None else self.official.base)

    @property
    def versions(self) -> set[str]:
        """All versions on which the adapter is used."""
        return ({self.version} if self.version else set()) | set(self.official.also_on if self.official else ())


@dataclass(frozen=True)
class ClipFacts:
    """What is known about a clip. None: not known. task_from: where the task comes from, in words."""

    clip: str
    reference: str
    task: Task | None
    task_from: str
    adapter: AdapterFacts | None
    adapter_strength: float | None
    attention_strength: float | None
    attention_mask: str | None
    prompt: str | None
    base: str | None
    notes: list[str] = field(default_factory=list)

    @property
    def downscale(self) -> int:
        """Factor by which the reference was smaller: of the adapter, else of the task, else 1."""
        return self._factor(DOWNSCALE, 1 if self.task is None else self.task.reference_downscale)

    @property
    def temporal_scale(self) -> int:
        """Factor by which the reference has fewer frames per second."""
        return self._factor(TEMPORAL, 1 if self.task is None else self.task.reference_temporal_scale)

    def _factor(self, key: str, of_the_task: int) -> int:
        metadata = {} if self.adapter is None else self.adapter.metadata
        is_declared = key in metadata and not metadata_findings({key: metadata[key]})
        return factor(metadata, key) if is_declared else of_the_task


def clip_facts(settings: DiagnoseSettings) -> ClipFacts:
    """Collect what is known, the settings before the record. ConfigError for a missing reference or a bad adapter."""
    record, notes = _read_record(settings.clip)
    recorded = _RecordSettings([], [], [], [], []) if record is None else record.settings
    reference = _known(settings.reference, recorded.reference, 0)
    if reference is None:
        raise ConfigError("reference must be set: the clip that was given as reference, e.g. reference=ref.mp4")
    count = sum(path is not None for path in recorded.reference)
    if settings.reference is None and count > 1:
        notes.append(f"the record has {count} references: {reference} is examined")
    position = _position(reference, recorded.reference)
    adapter = _adapter(settings, recorded, notes)
    of_adapter = None if adapter is None else _position(str(adapter.path), recorded.adapter)
    task, task_from = _task(settings, adapter)
    if task is not None and task.more_references:
        names = ", ".join(task.reference_names)
        notes.append(f"task {task.name} has several references ({names}): {reference} is examined as its first one")
    return ClipFacts(
        clip=settings.clip,
        reference=reference,
        task=task,
        task_from=task_from,
        adapter=adapter,
        adapter_strength=_known(settings.adapter_strength, recorded.adapter_strength, of_adapter),
        attention_strength=_known(settings.attention_strength, recorded.attention_strength, position),
        attention_mask=_known(settings.attention_mask, recorded.attention_mask, position),
        prompt=_known(settings.prompt, [] if record is None else [record.prompt], 0),
        base=_base(settings.base, record),
        notes=notes,
    )


def _known(setting: T | None, recorded: Sequence[T | None], index: int | None) -> T | None:
    """The user's setting, else the recorded one; index: None if it is not known which of the recorded ones it is."""
    if setting is not None or index is None or index >= len(recorded):
        return setting
    return recorded[index]


def _position(path: str, recorded: Sequence[str | None]) -> int | None:
    """The position of a file in the record. The only file of a record may have been moved; None for any other file."""
    paths = [None if name is None else user_path(name).resolve() for name in recorded]
    file = user_path(path).resolve()
    if file in paths:
        return paths.index(file)
    return 0 if len(paths) == 1 else None


def _base(setting: str | None, record: _Record | None) -> str | None:
    """The version of the base: the user's, else the recorded one, else None."""
    if setting is None:
        recorded = None if record is None else record.base.get("version")
        return recorded if isinstance(recorded, str) else None
    version = "2.0" if setting == "2" else setting
    require(version in VERSIONS, f"base={setting} is not one of {', '.join(VERSIONS)}: the version of LTX")
    return version


def _read_record(clip: str) -> tuple[_Record | None, list[str]]:
    """The JSON record next to a clip, and notes; None if there is none, or if it is another program's."""
    file = user_path(clip)
    path = file.with_suffix(".json") if file.name else file  # the working folder, ".", has no name
    if not path.is_file():
        return None, []
    try:
        return read_json(path, _Record, "give the settings on the command line"), [f"settings are read from {path}"]
    except ConfigError:
        return None, [f"{path} is not a record of `iclora_train.generate` and is not read"]


def _adapter(settings: DiagnoseSettings, recorded: _RecordSettings, notes: list[str]) -> AdapterFacts | None:
    """The adapter of the settings, else the only one of the record."""
    path = None if settings.adapter is None else user_path(settings.adapter)
    if path is None and len(recorded.adapter) > 1:
        notes.append(f"the record has {len(recorded.adapter)} adapters: set adapter= to examine one of them")
    require(path is None or path.is_file(), f"adapter={path} does not exist: give an adapter's .safetensors file")
    if path is None and len(recorded.adapter) == 1:
        path = user_path(recorded.adapter[0])
        if not path.is_file():
            notes.append(f"the adapter of the record, {path}, does not exist: it is not examined")
            return None
    if path is None:
        return None
    adapter, problems = inspect(path)
    match = recognise(path, adapter.metadata)
    if match is not None:
        notes.append(f"{path} is {match.official.title} for {match.official.model} (by {match.by})")
    return AdapterFacts(path, completed(adapter.metadata, match), None if match is None else match.official, problems)


def _task(settings: DiagnoseSettings, adapter: AdapterFacts | None) -> tuple[Task | None, str]:
    """The task of conf=, else of the adapter's metadata, else of the published adapter; and where it comes from."""
    if settings.task is not None:
        return settings.task, "conf"
    if adapter is not None and (task := task_named(adapter.metadata.get("task", ""), [])) is not None:
        return task, "the adapter's metadata"
    if adapter is not None and adapter.official is not None and adapter.official.task is not None:
        return task_named(adapter.official.task, adapter.official.settings), "the published adapter"
    return None, "the look of the reference"
