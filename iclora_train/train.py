"""One training run from start to end: prepare data if needed, build, train or resume, export, evaluate."""

from __future__ import annotations

import inspect
import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from lightning import Callback, Trainer
from rich.console import Console

from iclora_train.config import Config, ConfigError, require
from iclora_train.config.endings import StoppedError
from iclora_train.config.hydra_app import run_module
from iclora_train.core.atomic_files import exclusive
from iclora_train.core.console import make_console
from iclora_train.core.process_group import from_first, local_world_size, process_group
from iclora_train.core.ranks import global_rank, placement, world_size
from iclora_train.core.stop_signals import recorded_signal
from iclora_train.core.threads import share_cores
from iclora_train.core.training_time import count_training_time
from iclora_train.data.batch_sampler import plan_batches
from iclora_train.data.datamodule import LatentDataModule
from iclora_train.data.mixture import describe, open_data
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.audio.codec import has_audio
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.ltx2.build import base_dtype
from iclora_train.ltx2.kernels.attention_backends import attention_note
from iclora_train.training.callbacks import MetricsRecorder
from iclora_train.training.checkpointing import (
    AtomicCheckpointIO,
    CheckpointSaver,
    batches_per_step,
    newest_checkpoint,
    resume_or_refuse,
    resume_settings,
)
from iclora_train.training.devices import process_device, require_devices
from iclora_train.training.dry_run import dry_run
from iclora_train.training.export import evaluate, export, finish, loader_notes, plan_evaluation, require_whole
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.loggers import ConsoleLogger, CsvLogger, MetricLogger, WandbLogger
from iclora_train.training.memory_search import plan_memory
from iclora_train.training.preemption import Preemption, StopTraining
from iclora_train.training.step_metrics import Row, step_columns
from iclora_train.training.strategy import PlacedProcess, strategy_of
from iclora_train.training.throughput import THROUGHPUT_COLUMNS
from iclora_train.training.validation import ValidationBatches, validation_columns, validation_losses
from iclora_train.training.validation_clips import ValidationClips
from iclora_train.training.validation_metrics import CLIP_COLUMNS

OWN_KEYS = {"memory"}  # keys of `trainer` that are not arguments of lightning.Trainer
RESERVED_KEYS = {"logger", "callbacks", "plugins", "precision", "gradient_clip_val", "default_root_dir", "max_epochs"}


def train(config: Config) -> None:
    """Train an adapter with `config`, export and evaluate it. After an interruption the same call resumes the run.

    Each rank of a run with several processes calls it. ConfigError when settings, shards, base and run folder do not
    fit one another.
    """
    quiet_lightning()
    config.require_trainable_audio()
    folder = Path(config.runs_dir, config.run)
    device = process_device(config)  # raises before any work when the GPU of trainer.accelerator is missing
    with ExitStack() as lock:
        with process_group(device, recorded_signal) as place:
            ranks_per_node = local_world_size()
            require_devices(config, place.world_size, ranks_per_node)
            share_cores(ranks_per_node)
            if place.rank > 0:
                quiet_warnings()
            console = make_console(highlight=False, soft_wrap=True)
            require_streams(config)
            base = open_base(config.model)
            shards = open_shards(config, base)
            require_a_step(config, shards)
            if place.rank == 0:
                for line in [*describe(shards), *loader_notes(config, base)]:
                    console.print(line)
                evaluated = config.eval.after_training and plan_evaluation(config, shards, console)
                lock.enter_context(exclusive(folder, "name this run with run=<name>"))
            fit(config, base, shards, folder, console)
        if place.rank == 0:
            conclude(config, folder, evaluated, console)


def conclude(config: Config, folder: Path, evaluated: bool, console: Console) -> None:
    """Evaluate the adapter in a process of its own, if asked for, and print where the results are."""
    adapter = folder / "adapter.safetensors"
    if evaluated:
        evaluate(config, folder, adapter)
    finish(config, folder, adapter, console)


def require_streams(config: Config) -> None:
    """ConfigError if the task makes sound and the video stream would be trained alone."""
    require(
        not config.task.needs_audio or config.model.audio == "on",
        f"model.audio={config.model.audio}: task {config.task.name} makes sound (task.audio_reference or "
        "task.video_given): set model.audio=on, and a base with its audio half",
    )


def require_a_step(config: Config, shards: ShardSet) -> None:
    """ConfigError unless the train windows are enough for an optimizer step: asked before the model is loaded."""
    batch_size, tokens_per_batch = config.data.batch_size, config.data.tokens_per_batch
    plan_batches(shards, "train", config.seed, batch_size, tokens_per_batch, batches_per_step(config), quiet=True)


def fit(config: Config, base: BaseModel, shards: ShardSet, folder: Path, console: Console) -> None:
    """Train, or resume, until `folder` has its adapter. Rank 0 reads and writes the folder for all ranks."""
    adapter = folder / "adapter.safetensors"
    if from_first(begin(config, base, shards, folder, console) if global_rank() == 0 else False):
        return
    console.print(f"{config.task.name} on {base.name}: {shards.splits.get('train', 0)} training windows -> {folder}")
    module, trainer = build(config, base, shards, folder, console)
    resume = from_first(newest_checkpoint(folder / "checkpoints") if global_rank() == 0 else None)
    # `attention_note` imports flash-attn-4. That must happen before torch.compile traces a block.
    weight = module.transformer.patchify_proj.weight
    attention = attention_note(weight.device, weight.dtype, module.transformer.config.attention_head_dim)
    if attention is not None:
        console.print(attention)
    plan = plan_memory(config, module, shards, folder, console.print)
    if plan is not None:
        console.print(str(plan))
    if config.validation.dry_run and resume is None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        clips = next((callback for callback in callbacks if isinstance(callback, ValidationClips)), None)
        console.print(str(dry_run(config, module, shards, clips, folder)))
    batch_size, tokens_per_batch = config.data.batch_size, config.data.tokens_per_batch
    data = LatentDataModule(shards, batch_size, tokens_per_batch, config.seed, config.data.loader_processes())
    timed = count_training_time(folder) if trainer.is_global_zero else nullcontext()
    with interrupts_unchanged(), timed:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero:
        export(adapter, module, base)


def begin(config: Config, base: BaseModel, shards: ShardSet, folder: Path, console: Console) -> bool:
    """Compare the run in `folder` with these settings, or begin it. Returns whether it is finished."""
    resume_or_refuse(folder, resume_settings(config, base), shards.sha256)
    adapter = folder / "adapter.safetensors"
    if not adapter.exists():
        return False
    require_whole(adapter)
    console.print(f"{folder} is finished; to train again, name another run: run=<name>")
    return True


@contextmanager
def interrupts_unchanged() -> Iterator[None]:
    """Raise the interruption by a signal itself. Lightning exits with code 1 instead.

    StoppedError when training has ended at a step boundary; KeyboardInterrupt, TerminatedError when it ended at once.
    """
    try:
        yield
    except StopTraining as stop:
        word = "interrupted" if stop.number == signal.SIGINT else "terminated"
        line = f"{word} ({signal.Signals(stop.number).name}) {stop.line}"
        raise StoppedError(stop.number, line if global_rank() == 0 else None) from None
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise


def quiet_lightning() -> None:
    """Hide Lightning's notes on the machine, and its warnings about choices that are intended here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "GPU available but not used",  # trainer.accelerator=cpu
        "The `srun` command is available on your system but is not used",  # a login node, or a run without SLURM
        "You passed in a `val_dataloader` but have no `validation_step`",  # callbacks.MetricsRecorder validates
        "`isinstance\\(treespec, LeafSpec\\)",  # Lightning 2.6 with torch 2.13
        "torch.distributed.nn.functional.all_gather is deprecated",  # Lightning 2.6 with torch 2.13
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")


def quiet_warnings() -> None:
    """Print no warnings on this rank: rank 0 prints the same ones."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def open_shards(config: Config, base: BaseModel) -> ShardSet:
    """Open the latent shards of data.root or data.sources. If they do not exist, a run of one process prepares them.

    ConfigError when the shards were made for another base or with other settings.
    """
    unfinished = [root for root in config.data.roots() if not Path(root, "latents", "index.json").exists()]
    if unfinished:
        require(
            world_size() == 1,
            f"data.root={unfinished[0]} holds no finished shards: run `python -m data_prep` first, in one process",
        )
        require(config.share is None, f"share={config.share}: only data_prep makes a share of the shards; leave it out")
        run_module("data_prep")
    shards = open_data(config, "latents")
    shards.require_base(base.name, base.latent_fingerprints)
    shards.require_settings(config)
    return shards


def build(config: Config, base: BaseModel, shards: ShardSet, folder: Path, console: Console) -> tuple[ICLoRA, Trainer]:
    """The LightningModule, and the Trainer with its callbacks. ConfigError for an unknown or missing `trainer` key."""
    allowed = set(inspect.signature(Trainer).parameters) - RESERVED_KEYS | OWN_KEYS
    unknown = sorted(config.trainer.keys() - allowed)
    if unknown:
        raise ConfigError(f"trainer.{unknown[0]} is not a setting; there are {', '.join(sorted(allowed))}")
    strategy = str(config.trainer.get("strategy", "auto"))
    require(
        strategy in ("auto", "ddp"),
        f"trainer.strategy={strategy}: the base is not sharded; each GPU holds all of it, with strategy auto or ddp",
    )
    require(config.trainer.get("max_steps", 0) > 0, "trainer.max_steps must be at least 1")
    device, place = process_device(config), placement()
    empty_text = shards.empty_text() if config.flow.caption_dropout_p else None
    module = ICLoRA(config, base, device, empty_text)
    arguments = {key: value for key, value in config.trainer.items() if key not in OWN_KEYS | {"strategy"}}
    # Each process trains on one device. The launcher has started the processes, not Lightning.
    arguments |= {"num_nodes": 1, "devices": 1 if device.type == "cpu" else [device.index or 0]}
    trainer = Trainer(
        **{"num_sanity_val_steps": 0, "limit_val_batches": 0, "use_distributed_sampler": False, **arguments},
        strategy=strategy_of(place),
        precision="bf16-mixed" if base_dtype(config.model.precision) == torch.bfloat16 else "32-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks_of(config, base, shards, folder, console),
        plugins=[AtomicCheckpointIO(), PlacedProcess(place)],
        default_root_dir=folder,
    )
    # Lightning asks in every batch whether a rank got SIGTERM, for which the host waits for the GPU.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return module, trainer


def callbacks_of(config: Config, base: BaseModel, shards: ShardSet, folder: Path, console: Console) -> list[Callback]:
    """Callbacks for logging, validation loss, validation clips and checkpoints, as far as the settings enable them."""
    settings = config.validation
    batches, losses_every = None, 0
    if (settings.loss_every or settings.clips_every) and not shards.indices("val"):
        console.print(f"note: no validation during training, because {shards.folder} has no val windows")
    elif settings.loss_every or settings.clips_every:
        batches, losses_every = ValidationBatches.open(shards, config), settings.loss_every
    if batches is not None and batches.no_swap is not None and config.task.in_context:
        console.print(f"note: validation has no swapped reference, swap_gap and swap_won are empty: {batches.no_swap}")

    def validate(module: ICLoRA) -> Row:
        assert batches is not None
        with module.averaged():
            return validation_losses(module.transformer, batches, config, base.geometry, module.audio)

    columns = step_columns(config)
    if losses_every:
        columns += validation_columns(config)
    elif batches is not None:
        columns += CLIP_COLUMNS
    log_every = config.trainer.get("log_every_n_steps")
    require(log_every is None or log_every >= 1, f"trainer.log_every_n_steps={log_every} must be at least 1, or null")
    loggers = loggers_of(config, folder, columns, console)
    validate_losses = validate if losses_every else None
    preemption = Preemption(console)
    callbacks: list[Callback] = [
        preemption,
        MetricsRecorder(loggers, losses_every, validate_losses, preemption, log_every),
        CheckpointSaver(folder / "checkpoints", settings.checkpoint_every, resume_settings(config, base), preemption),
    ]
    if batches is not None:
        if config.model.audio == "on" and not has_audio(base.checkpoint):
            console.print("note: validation clips have no sound: the checkpoint has no vocoder (model.audio_vae)")
        callbacks.append(ValidationClips(config, base, batches, folder / "samples"))
    return callbacks


def loggers_of(config: Config, folder: Path, columns: list[str], console: Console) -> list[MetricLogger]:
    """The loggers of a run: always the console; CSV files and W&B if `logger` enables them."""
    loggers: list[MetricLogger] = [ConsoleLogger(config.trainer["max_steps"], console)]
    if config.logger.get("csv"):
        loggers.append(CsvLogger(folder / "metrics.csv", columns))
        loggers.append(CsvLogger(folder / "throughput.csv", ["step", *THROUGHPUT_COLUMNS]))
    if config.logger.get("wandb"):
        loggers.append(WandbLogger(folder, config.run, asdict(config), config.logger["wandb"]))
    return loggers
