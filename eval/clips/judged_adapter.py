"""The adapter that is judged: one of ours, of another program, an untrained one, or none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclora_train.adapters import lora
from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import DOWNSCALE, TEMPORAL, examine, whole_findings
from iclora_train.config import Config, require
from iclora_train.core.atomic_files import sha256
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.weights.safetensors_header import read_header

NONE = "none"  # adapter=none: the base as it is


@dataclass(frozen=True)
class JudgedAdapter:
    """What is judged. path: of the file, or `none`; adapter: None where there is none; foreign: its metadata does not
    say how large its references are, so the task's factors were taken; note: what the user should know of it; videos:
    the digest of the clips, where a folder of them is judged."""

    path: str
    adapter: lora.Adapter | None = None
    sha256: str | None = None
    foreign: bool = False
    note: str | None = None
    videos: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """As in scores.json."""
        metadata = {} if self.adapter is None else dict(sorted(self.adapter.metadata.items()))
        metadata |= {} if self.videos is None else {"videos_sha256": self.videos}
        return {"path": self.path, "sha256": self.sha256, "metadata": metadata, "foreign": self.foreign}


def adapter_path(config: Config) -> Path:
    """The adapter to judge: `adapter=<file>`, or the one the run has exported."""
    return Path(config.adapter) if config.adapter else Path(config.runs_dir, config.run, "adapter.safetensors")


def open_adapter(config: Config, base: BaseModel) -> JudgedAdapter:
    """The adapter that the settings name, checked against base and task. ConfigError names the file and the remedy."""
    if config.adapter == NONE:
        return JudgedAdapter(NONE, note="no adapter: every cell is the base's")
    path, task = adapter_path(config), config.task
    require(path.is_file(), f"adapter={path} does not exist: train it first, or give adapter=<file>")
    adapter, wrong = examine(path)
    metadata = read_header(path).metadata
    foreign = not any(key.endswith(DOWNSCALE) for key in metadata)  # musubi-tuner's key ends in ours
    note = None
    if wrong and wrong == list(whole_findings(adapter.weights)):
        lora.require_same_base(path, adapter, base.family, base.version, base.fingerprint if base.embedded else None)
        note = f"{path} was never trained (every lora_B is zero): it is judged all the same"
    else:
        temporal = None if TEMPORAL in metadata else task.reference_temporal_scale
        factors = ReferenceFactors(task.reference_downscale, temporal) if foreign else ReferenceFactors()
        adapter = import_adapter(path, BaseSpec.open(config.model.checkpoint), factors)
    if foreign:
        note = f"{path} does not say how large its references are: taken as task {task.name} makes them"
    ours = (task.reference_downscale, task.reference_temporal_scale)
    require(
        (adapter.downscale, adapter.temporal_scale) == ours,
        f"{path} wants references at downscale {adapter.downscale}, temporal scale {adapter.temporal_scale}; "
        f"task {task.name} makes them at {ours[0]}, {ours[1]}",
    )
    return JudgedAdapter(str(path), adapter, sha256(path), foreign, note)
