"""Dry run before step 0: a step, validation clips and a save on the largest clips, and an estimate of the run's
cost. A run that cannot work fails here, within minutes. Every rank runs the steps, because every GPU must hold them.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from iclora_train.adapters import lora
from iclora_train.config import Config, ConfigError
from iclora_train.core.device import synced_time
from iclora_train.core.local_ranks import evaluation_processes
from iclora_train.core.process_group import gather
from iclora_train.core.ranks import global_rank, world_size
from iclora_train.core.training_time import evaluation_budget
from iclora_train.data.batch import Batch, collate
from iclora_train.data.batch_sampler import bucket_tokens, clips_per_batch
from iclora_train.data.shards import ShardSet
from iclora_train.diffusion.random_draws import step_generator
from iclora_train.ltx2.build import base_dtype
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import GIB
from iclora_train.training.validation_clips import ValidationClips

STEPS = 4  # the first compiles, the second shows that nothing is left to compile, the third captures CUDA graphs


@dataclass(frozen=True)
class EvaluationCost:
    """Hours of the evaluation after training. clips: without a budget. budget: whether one limits the hours. processes:
    number of those that sample. more_metrics: whether eval.metrics adds metrics, whose time only the evaluation itself
    measures."""

    clips: int
    hours: float
    budget: bool
    processes: int
    more_metrics: bool

    def __str__(self) -> str:
        if self.budget:
            return f"{self.hours:.1f} for the evaluation, limited by eval.budget"
        by = "" if self.processes == 1 else f" by {self.processes} processes"
        metrics = ", without the time of eval.metrics" if self.more_metrics else ""
        clips = f"{self.clips:,} clips{by} (fewer with eval.budget or eval=quick)"
        return f"{self.hours:.1f} for the evaluation's {clips}{metrics}"


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a run."""

    bucket: str
    tokens: int  # of target and references of one clip
    step: float  # seconds of an optimizer step
    clips: float  # seconds of the validation clips
    memory: float  # peak GiB; of several ranks the largest
    total: float | None  # GiB of the device; None on a CPU
    adapter: int  # bytes of the adapter file
    hours: float
    ranks: int = 1
    evaluation: EvaluationCost | None = None  # None: none follows, or no clip was sampled

    def __str__(self) -> str:
        total = "" if self.total is None else f" of {self.total:.1f}"
        ranks = "" if self.ranks == 1 else f" (largest of {self.ranks} ranks)"
        evaluation = "" if self.evaluation is None else f", of which {self.evaluation}"
        return (
            f"dry run on {self.bucket} ({self.tokens:,} tokens per clip): {self.step:.2f} s per step, "
            f"{self.memory:.1f}{total} GiB{ranks}, validation clips {self.clips:.0f} s, adapter "
            f"{self.adapter / 1e6:.0f} MB; about {self.hours:.1f} hours in total{evaluation}"
        )


@dataclass(frozen=True)
class Trial:
    """What the dry run cost one rank: seconds of a step, of the rank's validation clips, and of sampling the fastest
    of them (None without clips), peak GiB, GiB of its device (None on a CPU), bytes of the adapter file (0 on all ranks
    but the first)."""

    step: float
    clips: float
    clip: float | None
    memory: float
    total: float | None
    adapter: int


def dry_run(config: Config, module: ICLoRA, shards: ShardSet, clips: ValidationClips | None, folder: Path) -> Estimate:
    """Run optimizer steps, validation clips and a save on the largest bucket, then restore the adapter.

    All ranks call this together: each runs the steps and its share of the clips, and rank 0 saves. ConfigError on all
    ranks, with the settings that help, when the memory of any rank is not sufficient. DiskFullError from the save.
    """
    device = module.transformer.patchify_proj.weight.device
    bucket, batch = largest_batch(config, shards, device)
    trials = gather(_trial(module, batch, clips, folder))
    failed = [rank for rank, trial in enumerate(trials) if trial is None]
    if failed:
        raise ConfigError(_out_of_memory_message(config, bucket, len(batch.keys), device, failed, len(trials)))
    done = [trial for trial in trials if trial is not None]
    embedded = clips is not None and clips.base.embedded
    return estimate(config, bucket, batch, done, len(shards.indices(config.eval.split)), embedded)


def evaluation_cost(
    config: Config, windows: int, clip: float | None, training: float, embedded: bool
) -> EvaluationCost | None:
    """The cost of the evaluation after training; None if there is none, or if no clip was sampled.

    windows: in the split that is evaluated. clip: seconds of sampling a clip. training: seconds of the training.
    embedded: the base is nano.
    """
    clips = config.eval.clips_of(min(config.eval.windows, windows), len(config.task.reference_names))
    if not config.eval.after_training or not clips or clip is None:
        return None
    processes = evaluation_processes(config)
    seconds, budget = clips * clip / processes, evaluation_budget(config, embedded, training)
    limited = budget is not None and budget < seconds
    hours = (budget if limited and budget is not None else seconds) / 3600
    return EvaluationCost(clips, hours, limited, processes, bool(config.eval.metrics))


def estimate(
    config: Config, bucket: str, batch: Batch, trials: Sequence[Trial], windows: int, embedded: bool
) -> Estimate:
    """The cost of a run, whose ranks wait for one another, from the trials of all ranks.

    windows: in the split that is evaluated after training. embedded: the base is nano.
    """
    step, clips = max(trial.step for trial in trials), max(trial.clips for trial in trials)
    largest = max(trials, key=lambda trial: trial.memory)
    tokens = sum(latent[0, 0].numel() for latent in batch.latents)
    steps, every = config.trainer["max_steps"], config.validation.clips_every
    clip_rounds = 1 + (steps // every if every else 0)
    training = step * steps + clips * clip_rounds  # seconds
    evaluation = evaluation_cost(config, windows, trials[0].clip, training, embedded)
    hours = training / 3600 + (evaluation.hours if evaluation else 0)
    memory, adapter = (largest.memory, largest.total), trials[0].adapter
    return Estimate(bucket, tokens, step, clips, *memory, adapter, hours, len(trials), evaluation)


def _trial(module: ICLoRA, batch: Batch, clips: ValidationClips | None, folder: Path) -> Trial | None:
    """This rank's part of the dry run; None if it runs out of memory. Waits for no other rank."""
    weights = [p.detach().clone() for p in module.adapter]
    try:
        step = _time_steps(module, batch)
        started = time.perf_counter()
        if clips is not None:
            clips.clips_of_rank(module, folder / "samples" / "dry-run")
        clip_seconds = time.perf_counter() - started
        clip = min(clips.seconds, default=None) if clips is not None else None
        adapter = _save_and_delete(module, folder) if global_rank() == 0 else 0
    except torch.OutOfMemoryError:
        return None
    finally:
        with torch.no_grad():
            for parameter, value in zip(module.adapter, weights, strict=True):
                parameter.copy_(value)
                parameter.grad = None
    return Trial(step, clip_seconds, clip, *_peak_and_total(batch.device), adapter)


def largest_batch(config: Config, shards: ShardSet, device: torch.device) -> tuple[str, Batch]:
    """The bucket whose batch has the most tokens (of equal ones, the longest clips), and a batch of copies of its first
    clip."""
    tokens = bucket_tokens(shards, "train")
    sizes = clips_per_batch(shards, "train", config.data.batch_size, config.data.tokens_per_batch)
    bucket = max(tokens, key=lambda name: (sizes[name] * tokens[name], tokens[name]))
    first = next(i for i in shards.indices("train") if shards.samples[i].bucket == bucket)
    return bucket, collate([shards.read_latents(first)] * sizes[bucket]).to(device)


def bucket_bytes(module: ICLoRA) -> int:
    """Bytes of the buffers from which DistributedDataParallel sends the adapter's fp32 gradients; 0 for one rank."""
    return 4 * sum(parameter.numel() for parameter in module.adapter) if world_size() > 1 else 0


def _time_steps(module: ICLoRA, batch: Batch) -> float:
    """Run STEPS optimizer steps. Returns the seconds of the fastest one."""
    device, optimizer = batch.device, module.optimizer()
    buckets = torch.empty(bucket_bytes(module), dtype=torch.uint8, device=device)
    seconds = []
    for i in range(STEPS):
        started = synced_time(device)
        optimizer_step(module, optimizer, batch, i)
        seconds.append(synced_time(device) - started)
    del buckets
    return min(seconds)


def mean_loss(module: ICLoRA, batch: Batch, number: int) -> Tensor:
    """The training loss of a batch in the Trainer's precision, with the noise of step `number`.

    Blocks that were compiled under another state of autocast, its cache included, would be compiled again in training.
    """
    bf16 = base_dtype(module.config.model.precision) == torch.bfloat16
    with torch.autocast(batch.device.type, torch.bfloat16, cache_enabled=False) if bf16 else nullcontext():
        losses = module.losses(batch, step_generator(module.config.seed, number, 0))
        return losses.total(module.config.flow)


def optimizer_step(
    module: ICLoRA,
    optimizer: Optimizer,
    batch: Batch,
    number: int,
    loss_of: Callable[[ICLoRA, Batch, int], Tensor] = mean_loss,
) -> Tensor:
    """One optimizer step as the Trainer does it, with the noise of step `number`. Returns the last loss."""
    config = module.config
    for _ in range(config.trainer.get("accumulate_grad_batches", 1)):
        loss = loss_of(module, batch, number)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(module.adapter, config.optim.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def peak_memory(device: torch.device) -> float:
    """Peak GiB that this process has reserved on the GPU so far; on a CPU its peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def _peak_and_total(device: torch.device) -> tuple[float, float | None]:
    """Peak GiB so far, and the GiB of a GPU (None on a CPU). Frees the cached GPU memory."""
    peak = peak_memory(device)
    if device.type != "cuda":
        return peak, None
    torch.cuda.empty_cache()
    return peak, torch.cuda.get_device_properties(device).total_memory / GIB


def _save_and_delete(module: ICLoRA, folder: Path) -> int:
    """Write the adapter file and delete it again. Returns its size in bytes."""
    path = folder / "dry-run.safetensors"
    lora.save(path, lora.Adapter(lora.adapter_weights(module.transformer), {"reference_downscale_factor": "1"}))
    size = path.stat().st_size
    path.unlink()
    return size


def _out_of_memory_message(
    config: Config, bucket: str, clips: int, device: torch.device, failed: Sequence[int], ranks: int
) -> str:
    """The message for a largest batch of `clips` clips that does not fit on the `failed` ranks, with the settings that
    help."""
    total = torch.cuda.get_device_properties(device).total_memory / GIB
    remedies = [] if config.model.activation_checkpointing else ["model.activation_checkpointing=true"]
    remedies += ["a higher model.weight_offload"]
    fewer = "data.batch_size=1" if config.data.tokens_per_batch is None else "a lower data.tokens_per_batch"
    remedies += [fewer] if clips > 1 else []
    remedies += ["task.reference_downscale=2"] if config.task.reference_downscale == 1 else []
    remedies += ["fewer data.frames", "smaller data.width and data.height", "a lower model.lora.rank"]
    where = "" if ranks == 1 else f" on rank {', '.join(map(str, failed))} of {ranks}"
    problem = f"a step on the largest batch ({clips} x {bucket}) does not fit into {total:.1f} GiB{where}"
    return f"{problem}; these settings help: {', '.join(remedies)}"
