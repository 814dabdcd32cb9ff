"""The whole run on one page: prepare if needed, train or go on, export the adapter, judge it."""

from __future__ import annotations

import inspect
import logging
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from lightning import Callback, Trainer
from rich.console import Console

from iclora_train.config import Config, require
from iclora_train.config.hydra_app import run_module
from iclora_train.core.atomic_files import exclusive
from iclora_train.core.device import device_from
from iclora_train.core.ranks import global_rank, local_rank, world_size
from iclora_train.data.datamodule import LatentDataModule
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.ltx2.build import base_dtype
from iclora_train.ltx2.kernels.attention_backends import attention_note
from iclora_train.training.callbacks import MetricsRecorder
from iclora_train.training.checkpointing import (
    AtomicCheckpointIO,
    CheckpointSaver,
    newest_checkpoint,
    resume_or_refuse,
    resume_settings,
)
from iclora_train.training.dry_run import dry_run
from iclora_train.training.export import evaluate, export, finish
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.loggers import CsvLogger, MetricLogger, ProgressBar, WandbLogger
from iclora_train.training.memory_search import plan_memory
from iclora_train.training.step_metrics import BUCKETS, LOCALITY, Row, bucket_name
from iclora_train.training.throughput import THROUGHPUT_COLUMNS
from iclora_train.training.validation import ValidationBatches, ValidationClips, validation_columns, validation_losses
from iclora_train.training.validation_metrics import SAMPLED

OWN = {"memory"}  # keys of trainer that are not Lightning's
OURS = {"logger", "callbacks", "plugins", "precision", "gradient_clip_val", "default_root_dir", "max_epochs"}


def train(config: Config) -> None:
    """Run `config` to its end; interrupted at any moment, the same call goes on where it was.

    ConfigError: settings, shards, base or run folder do not fit one another.
    """
    quiet_lightning()
    console = Console(highlight=False, soft_wrap=True, quiet=global_rank() > 0)
    process_device(config)  # raises before any work when the GPU of trainer.accelerator is missing
    base = open_base(config.model)
    shards = open_shards(config, base)
    folder = Path(config.runs_dir, config.run)
    one = exclusive(folder, "name this run with run=<name>") if global_rank() == 0 else nullcontext()
    with one:
        if not fit(config, base, shards, folder, console):
            return
        adapter = folder / "adapter.safetensors"
        if config.eval.after_training:
            evaluate(folder, adapter)
        finish(folder, adapter, console)


def fit(config: Config, base: BaseModel, shards: ShardSet, folder: Path, console: Console) -> bool:
    """Train, or go on, until `folder` has its adapter; whether this process is the one that goes on from there."""
    resume_or_refuse(folder, resume_settings(config, base))
    adapter = folder / "adapter.safetensors"
    if adapter.exists():
        console.print(f"{folder} is finished; to train once more, name another: run=<name>")
        return global_rank() == 0
    console.print(f"{config.task.name} on {base.name}: {shards.splits['train']} training windows -> {folder}")
    module, trainer = build(config, base, shards, folder, console)
    resume = newest_checkpoint(folder / "checkpoints")
    plan = plan_memory(config, module, shards, folder, console.print, global_rank() == 0)
    if plan is not None:
        console.print(str(plan))
    weight = module.transformer.patchify_proj.weight
    attention = attention_note(weight.device, weight.dtype, module.transformer.config.attention_head_dim)
    if attention is not None:
        console.print(attention)
    if config.validation.dry_run and resume is None:
        clips = next((c for c in trainer.callbacks if isinstance(c, ValidationClips)), None)  # type: ignore[attr-defined]
        console.print(str(dry_run(config, module, shards, clips, folder)))
    sizes = config.data.batch_size, config.data.tokens_per_batch
    data = LatentDataModule(shards.folder, *sizes, seed=config.seed, workers=config.data.workers)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero:
        export(adapter, module, base)
    return trainer.is_global_zero


def quiet_lightning() -> None:
    """Lightning's notes on the machine, and its warnings on what is meant here, stay off the screen."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for about in (
        "GPU available but not used",  # trainer.accelerator was chosen
        "The `srun` command is available on your system but is not used",  # a login node, or a run without SLURM
        "You passed in a `val_dataloader` but have no `validation_step`",  # callbacks.Record looks at the val clips
        "`isinstance\\(treespec, LeafSpec\\)",  # Lightning 2.6 under torch 2.13
        "torch.distributed.nn.functional.all_gather is deprecated",  # likewise
    ):
        warnings.filterwarnings("ignore", message=f".*{about}")


def open_shards(config: Config, base: BaseModel) -> ShardSet:
    """The latent shards of data.root, prepared first if they are not there; refused if of another base or settings."""
    folder = Path(config.data.root, "latents")
    if not (folder / "index.json").exists():
        require(
            world_size() == 1,
            f"data.root={config.data.root} holds no finished shards: run `python -m data_prep` first, in one process",
        )
        run_module("data_prep")
    shards = ShardSet.open(folder)
    shards.require_base(base.name, base.latent_fingerprints)
    shards.require_settings(config)
    return shards


def build(config: Config, base: BaseModel, shards: ShardSet, folder: Path, console: Console) -> tuple[ICLoRA, Trainer]:
    """The module and the Trainer with all that watches it."""
    known = set(inspect.signature(Trainer).parameters) - OURS | OWN
    unknown = sorted(config.trainer.keys() - known)
    require(not unknown, f"trainer.{unknown and unknown[0]} is not a setting; there are {', '.join(sorted(known))}")
    require(config.trainer.get("max_steps", 0) > 0, "trainer.max_steps must be at least 1")
    module = ICLoRA(config, base, process_device(config))
    given = {key: value for key, value in config.trainer.items() if key not in OWN}
    trainer = Trainer(
        **{"num_sanity_val_steps": 0, "limit_val_batches": 0, "use_distributed_sampler": False, **given},
        precision="bf16-mixed" if base_dtype(config.model.precision) == torch.bfloat16 else "32-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks_of(config, base, shards, folder, console),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
    )
    return module, trainer


def process_device(config: Config) -> torch.device:
    """Device of this process by trainer.accelerator; the base is loaded there. ConfigError when the GPU is missing."""
    device = device_from("trainer.accelerator", config.trainer.get("accelerator", "auto"), "trainer=auto")
    return torch.device("cuda", local_rank()) if device.type == "cuda" else device


def callbacks_of(config: Config, base: BaseModel, shards: ShardSet, folder: Path, console: Console) -> list[Callback]:
    """Log, screen, held-out losses, clips and checkpoints, as the settings want them."""
    every, watch = config.validation.loss_every, config.validation
    heldout = ValidationBatches.open(shards, config) if every or watch.clips_every else None

    def measure(module: ICLoRA) -> Row:
        assert heldout is not None
        with module.averaged():
            return validation_losses(module.transformer, heldout, config, base.geometry)

    buckets = [bucket_name(i) for i in range(BUCKETS)]
    columns = ["step", "loss", *buckets, *([LOCALITY] if config.flow.locality else []), "grad_norm", "lr"]
    columns += validation_columns(config) if every else SAMPLED if heldout is not None else []
    sinks: list[MetricLogger] = [ProgressBar(config.trainer["max_steps"], console)]
    if config.logger.get("csv"):
        sinks += [
            CsvLogger(folder / "metrics.csv", columns),
            CsvLogger(folder / "throughput.csv", ["step", *THROUGHPUT_COLUMNS]),
        ]
    if config.logger.get("wandb"):
        sinks.append(WandbLogger(folder, config.run, asdict(config), config.logger["wandb"]))
    log_every = config.trainer.get("log_every_n_steps")
    require(log_every is None or log_every >= 1, f"trainer.log_every_n_steps={log_every} must be at least 1, or null")
    callbacks: list[Callback] = [MetricsRecorder(sinks, every, measure if every else None, log_every)]
    if heldout is not None:
        callbacks.append(ValidationClips(config, base, heldout, folder / "samples"))
    if watch.checkpoint_every:
        callbacks.append(CheckpointSaver(folder / "checkpoints", watch.checkpoint_every, resume_settings(config, base)))
    return callbacks
