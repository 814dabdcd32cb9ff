"""Checkpoints and resuming: files are complete or absent, never unpickled, and refused for a run with other settings.

Checkpoints are Lightning's (adapter, its average, optimizer, schedule, loops) without the base. Clips and random values
are a function of the seed, the step and the number of a batch in it (`batch_sampler`, `step_generator`). So neither a
position in the data nor a random state is saved, and a run may go on with another number of ranks.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import pickle
import sys
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from iclora_train.config import Config, ConfigError, require
from iclora_train.config.conditions import NEW_KEYS
from iclora_train.config.reference_use import KEYS as USE_KEYS
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.fingerprint import comparable_data, comparable_model, differences, digest, plain
from iclora_train.core.ranks import world_size
from iclora_train.core.records import read_json
from iclora_train.core.regular_files import open_regular
from iclora_train.data.batch_sampler import BATCHES_PER_STEP
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.training.preemption import Preemption, StopTraining

# States of a checkpoint that resuming needs, and what loading raises for any other file.
STATES = ("state_dict", "optimizer_states", "loops", "global_step", "settings")
UNREADABLE = (pickle.PickleError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError, OSError)
KEEP_LAST = 2  # checkpoints; the second to last is used if the last one is damaged
SHARDS = "shards"  # entry of run.json: digest of the fingerprint of the latent shards
NOT_COMPARED = ("root", "workers", "keep")  # keys of `data` that may change between start and resume


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints that appear under their name only when complete. DiskFullError keeps the earlier ones."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with write_atomic(Path(path)) as file:
            file.write(buffer.getbuffer())

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint. ConfigError, with the remedy, for a file that is not one."""
        try:
            checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
            missing = [name for name in STATES if name not in checkpoint]
            if missing:
                raise ValueError(f"it has no {missing[0]}")
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            if isinstance(error, pickle.PickleError):  # torch's message advises to unpickle it without checks
                reason = "it holds other things than tensors and numbers"
            raise ConfigError(
                f"{path} cannot be loaded ({reason}): it may be of another version of torch or Lightning. Use that "
                f"version, delete the file to resume from the one before it, or {_new_run(Path(path).parents[1])}"
            ) from error
        return checkpoint


class CheckpointSaver(Checkpoint):
    """Saves a checkpoint every `every` optimizer steps (0: never), at the end, and before training ends because of a
    signal, and keeps the last KEEP_LAST. Lightning calls checkpoint callbacks last, so the log of a step is on disk
    before its checkpoint exists.
    """

    def __init__(self, folder: Path, every: int, settings: dict[str, Any], preemption: Preemption) -> None:
        self.folder, self.every, self.preemption = folder, every, preemption
        self.settings = settings_digests(settings, folder.parent)
        self.last_saved = -1

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        step, signal_number = trainer.global_step, self.preemption.stopping
        path = self.folder / f"step-{step:08d}.ckpt"
        due = bool(self.every) and (step % self.every == 0 or step == trainer.max_steps or signal_number is not None)
        if due and step not in (0, self.last_saved):
            self.last_saved = step
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                for earlier in sorted(self.folder.glob("step-*.ckpt"))[:-KEEP_LAST]:
                    earlier.unlink()
        if signal_number is not None:
            written = f"{path} is written; the same command continues from it"
            if not self.every:
                written = "validation.checkpoint_every=0, so no checkpoint is written; the same command begins again"
            raise StopTraining(signal_number, f"at step {step} of {trainer.max_steps}: {written}")

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self.settings[0]

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.last_saved = checkpoint["global_step"]  # not again while the next step accumulates gradients
        if checkpoint["settings"] not in self.settings:
            raise ConfigError(
                f"the checkpoints in {self.folder} were made with other settings: {_remedy(self.folder.parent)}"
            )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint; None if there are none. A damaged one is skipped with a warning on stderr.

    ConfigError if all are damaged: a run that began again would overwrite what is left of the old one.
    """
    paths = sorted(folder.glob("step-*.ckpt"), reverse=True)
    for path in paths:
        if _is_intact(path):
            return path
        print(f"warning: {path} is damaged; resuming from the one before it", file=sys.stderr)
    if paths:
        raise ConfigError(f"no checkpoint in {folder} is intact: restore one, or {_new_run(folder.parent)}")
    return None


def _is_intact(path: Path) -> bool:
    """Whether every record of the file (a zip, as torch writes it) matches its checksum."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (*UNREADABLE, zipfile.BadZipFile, zlib.error, lzma.LZMAError):
        return False


def batches_per_step(config: Config) -> int:
    """Batches of one optimizer step on all ranks. ConfigError if trainer.accumulate_grad_batches is not valid."""
    accumulated = config.trainer.get("accumulate_grad_batches", 1)
    valid = isinstance(accumulated, int) and accumulated >= 1
    require(valid, f"trainer.accumulate_grad_batches={accumulated} must be a whole number of at least 1")
    return world_size() * int(accumulated)


def resume_settings(config: Config, base: BaseModel) -> dict[str, Any]:
    """The settings that must be equal when a run is resumed, as JSON."""
    sections = {name: asdict(getattr(config, name)) for name in ("task", "model", "data", "flow", "optim")}
    for key in NOT_COMPARED:
        del sections["data"][key]
    sections["model"] = comparable_model(sections["model"])
    sections["data"] = comparable_data(config, sections["data"])
    trainer = {"max_steps": config.trainer.get("max_steps")}
    validation = {key: getattr(config.validation, key) for key in ("loss_every", "windows", "sigmas")}
    other = {"seed": config.seed, "trainer": trainer, "validation": validation, "base": base.fingerprint}
    return plain({**sections, **other, BATCHES_PER_STEP: batches_per_step(config)})


def resume_or_refuse(folder: Path, settings: dict[str, Any], shards: str) -> None:
    """Record `settings` and the digest of the `shards` in `folder`/run.json, or check that the run there has the same.

    A setting that is newer than the run counts as equal while it has its default. ConfigError, with the keys that
    differ and the remedy, when the folder has checkpoints or an adapter made with other settings or from other shards.
    """
    record = folder / "run.json"
    results = [*folder.glob("checkpoints/step-*.ckpt"), *folder.glob("adapter.safetensors")]
    if not results or not record.exists():
        with write_atomic(record) as file:
            file.write(json.dumps({**settings, SHARDS: shards}, indent=1, sort_keys=True).encode())
        return
    begun = _with_batches_per_step(begun_settings(folder), folder)
    changed = differences(_with_new_settings(begun, settings), settings)
    if changed:
        hint = _accumulation(begun, settings)
        raise ConfigError(f"{folder} is a run with other settings ({'; '.join(changed[:4])}{hint}): {_remedy(folder)}")
    if _read_record(record).get(SHARDS, shards) != shards:
        raise ConfigError(
            f"{folder} was trained on other shards than data.root holds now: their clips or captions have changed. "
            f"Restore them, or {_new_run(folder)}"
        )


def begun_settings(folder: Path) -> dict[str, Any]:
    """The settings in `folder`/run.json, with which the run began; empty if the file does not exist."""
    record = folder / "run.json"
    settings = _read_record(record) if record.exists() else {}
    return {name: value for name, value in settings.items() if name != SHARDS}


def settings_digests(settings: dict[str, Any], folder: Path) -> list[str]:
    """The digests that a checkpoint may name: of the settings now, as the run in `folder` began, and, with one batch
    per step, in the form that version 0.1 recorded (for its runs whose run.json was deleted)."""
    digests = [digest(settings), digest(begun_settings(folder))]
    if settings[BATCHES_PER_STEP] == 1:
        earlier = {name: value for name, value in settings.items() if name != BATCHES_PER_STEP}
        earlier["trainer"] = {**settings["trainer"], "devices": 1, "accumulate_grad_batches": 1}
        digests.append(digest(earlier))
    return digests


def _read_record(record: Path) -> dict[str, Any]:
    remedy = "delete it and run again; its checkpoints still refuse other settings"
    return read_json(record, dict[str, Any], remedy)


def _with_new_settings(begun: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of an older version, with the defaults of the settings that it did not have."""
    defaults, merged = plain(asdict(Config())), dict(begun)
    for name, section in settings.items():
        if isinstance(section, dict) and isinstance(begun.get(name), dict):
            new = (section.keys() - begun[name].keys()) & defaults[name].keys()
            merged[name] = begun[name] | {key: defaults[name][key] for key in new}
    task = merged.get("task")
    for key, new_keys in (("conditions", NEW_KEYS), ("more_references", USE_KEYS)):
        if isinstance(task, dict) and isinstance(task.get(key), list):
            entries = [dict.fromkeys(new_keys) | entry if isinstance(entry, dict) else entry for entry in task[key]]
            task = merged["task"] = task | {key: entries}
    return merged


def _with_batches_per_step(begun: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a run, with BATCHES_PER_STEP in place of the two settings that version 0.1 recorded.

    ConfigError if that version used several batches per step, because it put clips into another order.
    """
    trainer = begun.get("trainer")
    if BATCHES_PER_STEP in begun or not isinstance(trainer, dict):
        return begun
    devices, accumulated = trainer.get("devices"), trainer.get("accumulate_grad_batches")
    if accumulated != 1 or (devices not in (1, "auto", -1) and not (isinstance(devices, list) and len(devices) == 1)):
        raise ConfigError(
            f"{folder} was begun by an earlier version with trainer.devices={devices} and "
            f"trainer.accumulate_grad_batches={accumulated}. With more than one batch per step, this version trains on "
            f"the clips in another order: finish it with the version that began it, or {_new_run(folder)}"
        )
    return {**begun, "trainer": {"max_steps": trainer.get("max_steps")}, BATCHES_PER_STEP: 1}


def _accumulation(begun: dict[str, Any], settings: dict[str, Any]) -> str:
    """How the ranks of this process's run have as many batches per step as the run began with; "" if they have."""
    batches, ranks = begun.get(BATCHES_PER_STEP), world_size()
    if batches == settings[BATCHES_PER_STEP] or not isinstance(batches, int):
        return ""
    if batches % ranks:
        return f"; {batches} batches per step cannot be divided among {ranks} ranks"
    return f"; {ranks} rank(s) have {batches} batches per step with trainer.accumulate_grad_batches={batches // ranks}"


def _remedy(folder: Path) -> str:
    return f"name this one with run=<name>, use the settings it began with, or delete {folder}{os.sep}"


def _new_run(folder: Path) -> str:
    return f"name another run with run=<name>, or delete {folder}{os.sep} to begin again"
