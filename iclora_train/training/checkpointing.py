"""Checkpoints and resuming: files are complete or absent, never unpickled, and refused for a run with other settings.

Checkpoints are Lightning's (adapter, its average, optimizer, schedule, loops, data position) without the base. Random
values depend only on seed, batch and rank (`training_inputs.step_generator`), so no random state is saved.
"""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from iclora_train.config import Config, ConfigError
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.fingerprint import RUNTIME_KEYS, differences, digest, drop_unset, plain
from iclora_train.ltx2.base_model import BaseModel

KEEP_LAST = 2  # checkpoints; the second to last is used if the last one is damaged
RENAMED_STATES = {"LatentData": "LatentDataModule"}  # old -> current; Lightning names a state after its class
NOT_COMPARED = ("root", "workers")  # keys of `data` that may change between start and resume


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints that appear under their name only when complete. DiskFullError keeps the earlier ones."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with write_atomic(Path(path)) as file:
            file.write(buffer.getbuffer())

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint. The states of renamed classes (RENAMED_STATES) get their current names."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        return {RENAMED_STATES.get(key, key): state for key, state in checkpoint.items()}


class CheckpointSaver(Checkpoint):
    """Saves a checkpoint every `every` optimizer steps and at the end, and keeps the last KEEP_LAST. Lightning calls
    checkpoint callbacks last, so the log of a step is on disk before its checkpoint exists.
    """

    def __init__(self, folder: Path, every: int, settings: dict[str, Any]) -> None:
        self.folder, self.every, self.settings = folder, every, digest(settings)
        self.last_saved = -1

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if not due or step in (0, self.last_saved):
            return
        self.last_saved = step
        trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt")
        if trainer.is_global_zero:
            for path in sorted(self.folder.glob("step-*.ckpt"))[:-KEEP_LAST]:
                path.unlink()

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self.settings

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if checkpoint["settings"] != self.settings:
            raise ConfigError(
                f"the checkpoints in {self.folder} were made with other settings: {_remedy(self.folder.parent)}"
            )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint. A damaged one is skipped with a warning on stderr."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        if _is_intact(path):
            return path
        print(f"warning: {path} is damaged; resuming from the one before it", file=sys.stderr)
    return None


def _is_intact(path: Path) -> bool:
    """Whether every record of the file (a zip, as torch writes it) matches its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError):
        return False


def resume_settings(config: Config, base: BaseModel) -> dict[str, Any]:
    """The settings that must be equal when a run is resumed, as JSON."""
    sections = {name: asdict(getattr(config, name)) for name in ("task", "model", "data", "flow", "optim")}
    for section, keys in (("data", NOT_COMPARED), ("model", RUNTIME_KEYS)):
        for key in keys:
            del sections[section][key]
    drop_unset(sections)
    trainer = {key: config.trainer.get(key) for key in ("max_steps", "devices", "accumulate_grad_batches")}
    validation = {key: getattr(config.validation, key) for key in ("loss_every", "windows", "sigmas")}
    other = {"seed": config.seed, "trainer": trainer, "validation": validation, "base": base.fingerprint}
    return plain({**sections, **other})


def resume_or_refuse(folder: Path, settings: dict[str, Any]) -> None:
    """Record `settings` in `folder`/run.json, or check that the run in `folder` has the same settings.

    ConfigError, with the keys that differ and the remedy, when the folder has checkpoints or an adapter made with other
    settings.
    """
    record = folder / "run.json"
    results = [*folder.glob("checkpoints/step-*.ckpt"), *folder.glob("adapter.safetensors")]
    if not results or not record.exists():
        with write_atomic(record) as file:
            file.write(json.dumps(settings, indent=1, sort_keys=True).encode())
        return
    changed = differences(json.loads(record.read_text()), settings)
    if changed:
        raise ConfigError(f"{folder} is a run with other settings ({'; '.join(changed[:4])}): {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    return f"name this one with run=<name>, use the settings it began with, or delete {folder}{os.sep}"
