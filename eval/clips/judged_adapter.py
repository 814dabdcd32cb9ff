"""Open the adapter under evaluation: from this project or another program, an untrained one, or none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iclora_train.adapters import lora
from iclora_train.adapters.base_spec import BaseSpec, base_notes
from iclora_train.adapters.convert import ReferenceFactors, import_adapter, with_factors
from iclora_train.adapters.file import adapter_findings, inspect
from iclora_train.adapters.metadata import TEMPORAL, declares_factor, with_our_names
from iclora_train.config import Config, require
from iclora_train.core.atomic_files import sha256
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.weights.safetensors_header import read_header

NONE = "none"  # adapter=none: the base alone


@dataclass(frozen=True)
class JudgedAdapter:
    """The adapter, or the folder of clips, under evaluation.

    path: the file, the folder, or `none`. adapter: None without an adapter file. foreign: the metadata does not declare
    the reference factors, so the factors of the task are used. note: a remark for the user. videos: the digest of the
    clips if a folder of clips is evaluated.
    """

    path: str
    adapter: lora.Adapter | None = None
    sha256: str | None = None
    foreign: bool = False
    note: str | None = None
    videos: str | None = None

    def with_note(self, note: str | None) -> JudgedAdapter:
        """The same with one more remark for the user."""
        notes = [text for text in (self.note, note) if text]
        return replace(self, note="; ".join(notes) or None)

    @property
    def json_facts(self) -> dict[str, Any]:
        """The entry `adapter` of scores.json."""
        metadata = {} if self.adapter is None else dict(sorted(self.adapter.metadata.items()))
        metadata |= {} if self.videos is None else {"videos_sha256": self.videos}
        return {"path": self.path, "sha256": self.sha256, "metadata": metadata, "foreign": self.foreign}


def adapter_path(config: Config) -> Path:
    """The adapter file: `adapter=<file>`, or the adapter that the run exported."""
    return Path(config.adapter) if config.adapter else Path(config.runs_dir, config.run, "adapter.safetensors")


def open_adapter(config: Config, base: BaseModel) -> JudgedAdapter:
    """The adapter that the settings name, checked against base and task.

    Raises ConfigError that names the file and the remedy.
    """
    if config.adapter == NONE:
        return JudgedAdapter(NONE, note="no adapter: every condition is sampled from the base alone")
    path, task = adapter_path(config), config.task
    require(path.is_file(), f"adapter={path} does not exist: train it first, or give adapter=<file>")
    adapter, findings = inspect(path)
    metadata = read_header(path).metadata
    foreign = not declares_factor(metadata)
    spec = BaseSpec.open(config.model.checkpoint)
    notes = [f"{path} {note}" for note in base_notes(path, metadata, spec)]
    temporal = None if TEMPORAL in with_our_names(metadata) else task.reference_temporal_scale
    factors = ReferenceFactors(task.reference_downscale, temporal) if foreign else ReferenceFactors()
    if findings and findings == list(adapter_findings(adapter.weights)):
        lora.require_same_base(path, adapter, base.family, base.version, base.fingerprint if base.embedded else None)
        adapter = lora.Adapter(adapter.weights, with_factors(spec.metadata | adapter.metadata, factors))
        notes.append(f"{path} was never trained (every lora_B is zero): it is evaluated anyway")
    else:
        adapter = import_adapter(path, spec, factors)
    if foreign:
        notes.append(f"{path} does not declare its reference factors: the factors of task {task.name} are used")
    expected = (task.reference_downscale, task.reference_temporal_scale)
    require(
        (adapter.downscale, adapter.temporal_scale) == expected,
        f"{path} needs references at downscale {adapter.downscale}, temporal scale {adapter.temporal_scale}; "
        f"task {task.name} has {expected[0]}, {expected[1]}",
    )
    return JudgedAdapter(str(path), adapter, sha256(path), foreign, "; ".join(notes) or None)
