"""The whole run on one page: prepare if needed, train or go on, export the adapter, judge it."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from iclora_train import lora
from iclora_train.adapters import card
from iclora_train.batches import clips_per_batch, mean_clips
from iclora_train.callbacks import CsvLog, ProgressBar, Record, Row, Sink, WandbLog
from iclora_train.checkpoint import Saver, WholeFile, claim, newest, shaping_settings
from iclora_train.config import Config, require
from iclora_train.datamodule import LatentData
from iclora_train.dryrun import dry_run
from iclora_train.files import alone, sha256
from iclora_train.fingerprint import config_hash
from iclora_train.heldout import HeldOut, ValidationClips, heldout_losses, heldout_names
from iclora_train.hydra_main import overrides
from iclora_train.ltx2.base import Base
from iclora_train.ltx2.chosen import base_of
from iclora_train.module import BUCKETS, ICLoRA, bucket_name
from iclora_train.precision import base_dtype
from iclora_train.prompts import TEMPLATE
from iclora_train.shards import ShardSet
from iclora_train.watch import SAMPLED

OURS = {"logger", "callbacks", "plugins", "precision", "gradient_clip_val", "default_root_dir", "max_epochs"}


def train(config: Config) -> None:
    """Run `config` to its end; interrupted at any moment, the same call goes on where it was.

    ConfigError: settings, shards, base or run folder do not fit one another.
    """
    quiet()
    console = Console(highlight=False, soft_wrap=True, quiet=int(os.environ.get("LOCAL_RANK", "0")) > 0)
    device_of(config)  # refuses what is not here before anything is done
    base = base_of(config.model)
    shards = open_shards(config, base)
    folder = Path(config.runs_dir, config.run)
    one = alone(folder, "name this run with run=<name>") if _is_first() else nullcontext()
    with one:
        if not fit(config, base, shards, folder, console):
            return
        adapter = folder / "adapter.safetensors"
        if config.eval.after_training:
            evaluate(folder, adapter)
        conclude(folder, adapter, console)


def fit(config: Config, base: Base, shards: ShardSet, folder: Path, console: Console) -> bool:
    """Train, or go on, until `folder` has its adapter; whether this process is the one that goes on from there."""
    claim(folder, shaping_settings(config, base))
    adapter = folder / "adapter.safetensors"
    if adapter.exists():
        console.print(f"{folder} is finished; to train once more, name another: run=<name>")
        return _is_first()
    console.print(f"{config.task.name} on {base.name}: {shards.splits['train']} training windows -> {folder}")
    module, trainer = build(config, base, shards, folder, console)
    resume = newest(folder / "checkpoints")
    if config.validation.dry_run and resume is None:
        clips = next((c for c in trainer.callbacks if isinstance(c, ValidationClips)), None)  # type: ignore[attr-defined]
        console.print(str(dry_run(config, module, shards, clips, folder)))
    sizes = config.data.batch_size, config.data.tokens_per_batch
    data = LatentData(shards.folder, *sizes, seed=config.seed, workers=config.data.workers)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero:
        export(adapter, module, base)
    return trainer.is_global_zero


def _is_first() -> bool:
    """Whether this process is the first of a run, also before torch.distributed is set up."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def quiet() -> None:
    """Lightning's notes on the machine, and its warnings on what is meant here, stay off the screen."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for about in (
        "GPU available but not used",  # trainer.accelerator was chosen
        "You passed in a `val_dataloader` but have no `validation_step`",  # callbacks.Record looks at the val clips
        "`isinstance\\(treespec, LeafSpec\\)",  # Lightning 2.6 under torch 2.13
        "torch.distributed.nn.functional.all_gather is deprecated",  # likewise
    ):
        warnings.filterwarnings("ignore", message=f".*{about}")


def open_shards(config: Config, base: Base) -> ShardSet:
    """The latent shards of data.root, prepared first if they are not there; refused if of another base or settings."""
    folder = Path(config.data.root, "latents")
    if not (folder / "index.json").exists():
        require(
            int(os.environ.get("WORLD_SIZE", "1")) == 1,
            f"data.root={config.data.root} holds no finished shards: run `python -m data_prep` first, in one process",
        )
        call("data_prep")
    shards = ShardSet.open(folder)
    shards.require_base(base.name, base.latent_fingerprints)
    shards.require_settings(config)
    return shards


def call(command: str, *more: str) -> None:
    """Run another of our commands with this one's overrides; if it fails, end with its exit code (it said why)."""
    done = subprocess.run([sys.executable, "-m", command, *overrides(), *more], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def build(config: Config, base: Base, shards: ShardSet, folder: Path, console: Console) -> tuple[ICLoRA, Trainer]:
    """The module and the Trainer with all that watches it."""
    known = set(inspect.signature(Trainer).parameters) - OURS
    unknown = sorted(config.trainer.keys() - known)
    require(not unknown, f"trainer.{unknown and unknown[0]} is not a setting; there are {', '.join(sorted(known))}")
    require(config.trainer.get("max_steps", 0) > 0, "trainer.max_steps must be at least 1")
    module = ICLoRA(config, base, device_of(config))
    trainer = Trainer(
        **{"num_sanity_val_steps": 0, "limit_val_batches": 0, "use_distributed_sampler": False, **config.trainer},
        precision="bf16-mixed" if base_dtype(config.model.precision) == torch.bfloat16 else "32-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=watchers(config, base, shards, folder, console),
        plugins=[WholeFile()],
        default_root_dir=folder,
    )
    return module, trainer


def device_of(config: Config) -> torch.device:
    """Where trainer.accelerator puts this process, so that the base is loaded there. ConfigError without a GPU."""
    accelerator = config.trainer.get("accelerator", "auto")
    if accelerator in ("gpu", "cuda"):
        require(
            torch.cuda.is_available(),
            f"trainer.accelerator={accelerator}, and there is no CUDA device here: set trainer=cpu",
        )
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def watchers(config: Config, base: Base, shards: ShardSet, folder: Path, console: Console) -> list[Callback]:
    """Log, screen, held-out losses, clips and checkpoints, as the settings want them."""
    every, watch = config.validation.loss_every, config.validation
    heldout = HeldOut.open(shards, config) if every or watch.clips_every else None

    def measure(module: ICLoRA) -> Row:
        assert heldout is not None
        with module.averaged():
            return heldout_losses(module.transformer, heldout, config, base.geometry)

    buckets = [bucket_name(i) for i in range(BUCKETS)]
    columns = ["step", "loss", *buckets, "grad_norm", "lr"]
    columns += heldout_names(config) if every else SAMPLED if heldout is not None else []
    clips = mean_clips(shards, "train", config.data.batch_size, config.data.tokens_per_batch)
    clips *= config.trainer.get("accumulate_grad_batches", 1)
    sinks: list[Sink] = [ProgressBar(config.trainer["max_steps"], clips, console)]
    if config.logger.get("csv"):
        sinks.append(CsvLog(folder / "metrics.csv", columns))
    if config.logger.get("wandb"):
        sinks.append(WandbLog(folder, config.run, asdict(config), config.logger["wandb"]))
    callbacks: list[Callback] = [Record(sinks, every, measure if every else None)]
    if heldout is not None:
        callbacks.append(ValidationClips(config, base, heldout, folder / "samples"))
    if watch.checkpoint_every:
        callbacks.append(Saver(folder / "checkpoints", watch.checkpoint_every, shaping_settings(config, base)))
    return callbacks


def export(path: Path, module: ICLoRA, base: Base) -> None:
    """Write the adapter file with all that a loader has to know, read it back, and put card and workflow beside it."""
    config, shards = module.config, ShardSet.open(Path(module.config.data.root, "latents"))
    sizes = clips_per_batch(shards, "train", config.data.batch_size, config.data.tokens_per_batch).values()
    facts: dict[str, Any] = {
        "reference_downscale_factor": config.task.reference_downscale,
        "base_model": base.name,
        "base_model_family": base.family,
        "base_model_version": base.version,
        "base_fingerprint": base.fingerprint,
        "task": config.task.name,
        "trigger": config.task.trigger,
        "config_hash": config_hash(config),
        "rank": config.model.lora.rank,
        "steps": config.trainer["max_steps"],
        "learning_rate": config.optim.optimizer.get("lr", "the optimizer's own"),
        "batch_size": " to ".join(map(str, sorted({min(sizes), max(sizes)}))),
        "clips": shards.splits["train"],
        "size": f"{config.data.width}x{config.data.height}x{config.data.frames}",
        "fps": config.data.fps or "of the clips",
    }
    if config.data.prompt is not None:
        facts[TEMPLATE] = config.data.prompt
    if config.task.reference_temporal_scale != 1:
        facts["reference_temporal_scale_factor"] = config.task.reference_temporal_scale
    with module.averaged():
        weights = lora.extract(module.transformer)
    lora.save(path, lora.Adapter(weights, {key: str(value) for key, value in facts.items()}))
    card.write_beside(path)


def evaluate(folder: Path, adapter: Path) -> None:
    """Judge the adapter by `python -m eval`, unless its scores are there."""
    path = folder / "eval" / "scores.json"
    if not path.exists() or json.loads(path.read_text())["adapter"]["sha256"] != sha256(adapter):
        call("eval")


def conclude(folder: Path, adapter: Path, console: Console) -> None:
    """Where everything is, and the headline numbers, which the card is given too."""
    scores = folder / "eval" / "scores.json"
    found = json.loads(scores.read_text()) if scores.exists() else None
    own = found is not None and found["adapter"]["sha256"] == sha256(adapter)
    beside = card.write_beside(adapter, scores if own else None)
    if found is not None:
        measured = {cell: row[found["primary"]] for cell, row in found["cells"].items() if found["primary"] in row}
        for cell, value in measured.items():
            known = value["low"] is not None
            interval = f"[{value['low']:.3f}, {value['high']:.3f}]" if known else "(one clip)"
            console.print(f"{found['primary']:>12}  {cell:18} {value['mean']:.3f}  {interval}")
    for name, path in (
        ("adapter", adapter),
        ("card", beside[0]),
        *(("ComfyUI", path) for path in beside[1:]),
        ("samples", folder / "samples"),
        ("log", folder / "metrics.csv"),
        ("report", folder / "eval" / "report.html"),
    ):
        if path.exists():
            console.print(f"{name:8} {path}")
