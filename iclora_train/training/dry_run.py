"""Dry run before step 0: a step, validation clips and a save on the largest clips, and an estimate of the run's
cost. A run that cannot work fails here, within minutes.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from iclora_train.adapters import lora
from iclora_train.config import Config, ConfigError
from iclora_train.data.batch import Batch, collate
from iclora_train.data.batch_sampler import bucket_tokens, clips_per_batch
from iclora_train.data.shards import ShardSet
from iclora_train.diffusion.training_inputs import step_generator
from iclora_train.ltx2.build import base_dtype
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import GIB
from iclora_train.training.validation import ValidationClips

STEPS = 3  # the first compiles, the second captures CUDA graphs


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a run."""

    bucket: str
    tokens: int  # of target and references of one clip
    step: float  # seconds of an optimizer step
    clips: float  # seconds of the validation clips
    memory: float  # peak GiB
    total: float | None  # GiB of the device; None on a CPU
    adapter: int  # bytes of the adapter file
    hours: float

    def __str__(self) -> str:
        total = "" if self.total is None else f" of {self.total:.1f}"
        return (
            f"dry run on {self.bucket} ({self.tokens:,} tokens per clip): {self.step:.2f} s per step, "
            f"{self.memory:.1f}{total} GiB, validation clips {self.clips:.0f} s, adapter {self.adapter / 1e6:.0f} MB; "
            f"about {self.hours:.1f} hours in total"
        )


def dry_run(config: Config, module: ICLoRA, shards: ShardSet, clips: ValidationClips | None, folder: Path) -> Estimate:
    """Run optimizer steps, validation clips and a save on the largest bucket, then restore the adapter.

    ConfigError, with the settings that help, when memory is not sufficient. DiskFullError from the save.
    """
    device = module.transformer.patchify_proj.weight.device
    bucket, batch = largest_batch(config, shards, device)
    weights = [p.detach().clone() for p in module.adapter]
    try:
        step = _time_steps(module, batch)
        started = time.perf_counter()
        if clips is not None:
            clips.render(module, folder / "samples" / "dry-run")
        clip_seconds = time.perf_counter() - started
        adapter = _save_and_delete(module, folder)
    except torch.OutOfMemoryError as error:
        raise ConfigError(_out_of_memory_message(config, bucket, len(batch.keys), device)) from error
    finally:
        with torch.no_grad():
            for parameter, value in zip(module.adapter, weights, strict=True):
                parameter.copy_(value)
                parameter.grad = None
    memory, total = _peak_and_total(device)
    tokens = sum(latent[0, 0].numel() for latent in batch.latents)
    steps, every = config.trainer["max_steps"], config.validation.clips_every
    clip_rounds = 1 + (steps // every if every else 0)
    hours = (step * steps + clip_seconds * clip_rounds) / 3600
    return Estimate(bucket, tokens, step, clip_seconds, memory, total, adapter, hours)


def largest_batch(config: Config, shards: ShardSet, device: torch.device) -> tuple[str, Batch]:
    """The bucket whose batch has the most tokens (of equal ones, the longest clips), and a batch of copies of its first
    clip."""
    tokens = bucket_tokens(shards, "train")
    sizes = clips_per_batch(shards, "train", config.data.batch_size, config.data.tokens_per_batch)
    bucket = max(tokens, key=lambda name: (sizes[name] * tokens[name], tokens[name]))
    first = next(i for i in shards.indices("train") if shards.samples[i].bucket == bucket)
    return bucket, collate([shards.read_latents(first)] * sizes[bucket]).to(device)


def _time_steps(module: ICLoRA, batch: Batch) -> float:
    """Run STEPS optimizer steps. Returns the seconds of the fastest one."""
    device, optimizer = batch.device, module.optimizer()
    seconds = []
    for i in range(STEPS):
        started = synced_time(device)
        optimizer_step(module, optimizer, batch, i)
        seconds.append(synced_time(device) - started)
    return min(seconds)


def optimizer_step(module: ICLoRA, optimizer: Optimizer, batch: Batch, number: int) -> Tensor:
    """One optimizer step as the Trainer does it, with the noise of step `number`. Returns the last loss."""
    config = module.config
    for _ in range(config.trainer.get("accumulate_grad_batches", 1)):
        loss = mean_loss(module, batch, number)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(module.adapter, config.optim.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def mean_loss(module: ICLoRA, batch: Batch, number: int) -> Tensor:
    """The training loss of a batch in the Trainer's precision, with the noise of step `number`."""
    bf16 = base_dtype(module.config.model.precision) == torch.bfloat16
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        losses = module.losses(batch, step_generator(module.config.seed, number, 0))
        return losses.total(module.config.flow)


def synced_time(device: torch.device) -> float:
    """Time in seconds after all queued work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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


def _out_of_memory_message(config: Config, bucket: str, clips: int, device: torch.device) -> str:
    """The message for a largest batch of `clips` clips that does not fit, with the settings that help."""
    total = torch.cuda.get_device_properties(device).total_memory / GIB
    remedies = [] if config.model.activation_checkpointing else ["model.activation_checkpointing=true"]
    remedies += ["a higher model.weight_offload"]
    fewer = "data.batch_size=1" if config.data.tokens_per_batch is None else "a lower data.tokens_per_batch"
    remedies += [fewer] if clips > 1 else []
    remedies += ["task.reference_downscale=2"] if config.task.reference_downscale == 1 else []
    remedies += ["fewer data.frames", "smaller data.width and data.height", "a lower model.lora.rank"]
    problem = f"a step on the largest batch ({clips} x {bucket}) does not fit into {total:.1f} GiB"
    return f"{problem}; these settings help: {', '.join(remedies)}"
