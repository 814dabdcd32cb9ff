"""Before step 0: all that a run does, once, on its largest clips. What does not fit fails here, within minutes."""

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

STEPS = 3  # the first pays for what is compiled, the second for what is recorded


@dataclass(frozen=True)
class Estimate:
    """What a run will cost: seconds of an optimizer step and of the validation clips, peak GiB, adapter's bytes."""

    bucket: str
    tokens: int  # of the targets and references of one clip
    step: float
    clips: float
    memory: float
    room: float | None  # GiB of the device; None on a CPU
    adapter: int
    hours: float

    def __str__(self) -> str:
        room = "" if self.room is None else f" of {self.room:.1f}"
        return (
            f"dry run on {self.bucket} ({self.tokens:,} tokens a clip): {self.step:.2f} s a step, "
            f"{self.memory:.1f}{room} GiB, validation clips {self.clips:.0f} s, adapter {self.adapter / 1e6:.0f} MB; "
            f"about {self.hours:.1f} hours in all"
        )


def dry_run(config: Config, module: ICLoRA, shards: ShardSet, clips: ValidationClips | None, folder: Path) -> Estimate:
    """Steps of the optimizer, validation clips and a save on the largest bucket; the adapter is then as it was.

    ConfigError names the knobs when memory does not suffice; DiskFullError comes from the save.
    """
    device = module.transformer.patchify_proj.weight.device
    bucket, batch = largest_batch(config, shards, device)
    kept = [p.detach().clone() for p in module.adapter]
    try:
        step = _steps(module, batch)
        begun = time.perf_counter()
        if clips is not None:
            clips.render(module, folder / "samples" / "dry-run")
        spent = time.perf_counter() - begun
        adapter = _save(module, folder)
    except torch.OutOfMemoryError as error:
        raise ConfigError(_too_large(config, bucket, len(batch.keys), device)) from error
    finally:
        with torch.no_grad():
            for parameter, value in zip(module.adapter, kept, strict=True):
                parameter.copy_(value)
                parameter.grad = None
    memory, room = _memory(device)
    tokens = sum(latent[0, 0].numel() for latent in batch.latents)
    steps, every = config.trainer["max_steps"], config.validation.clips_every
    rounds = 1 + (steps // every if every else 0)
    hours = (step * steps + spent * rounds) / 3600
    return Estimate(bucket, tokens, step, spent, memory, room, adapter, hours)


def largest_batch(config: Config, shards: ShardSet, device: torch.device) -> tuple[str, Batch]:
    """The training batch with the most tokens, of equal ones that of the longest clips; made of one clip."""
    tokens = bucket_tokens(shards, "train")
    sizes = clips_per_batch(shards, "train", config.data.batch_size, config.data.tokens_per_batch)
    bucket = max(tokens, key=lambda name: (sizes[name] * tokens[name], tokens[name]))
    row = next(i for i in shards.indices("train") if shards.samples[i].bucket == bucket)
    return bucket, collate([shards.read_latents(row)] * sizes[bucket]).to(device)


def _steps(module: ICLoRA, batch: Batch) -> float:
    """Seconds of an optimizer step, the shortest."""
    device, optimizer = batch.device, module.optimizer()
    taken = []
    for i in range(STEPS):
        begun = synced_time(device)
        optimizer_step(module, optimizer, batch, i)
        taken.append(synced_time(device) - begun)
    return min(taken)


def optimizer_step(module: ICLoRA, optimizer: Optimizer, batch: Batch, number: int) -> Tensor:
    """One step as the Trainer would do it, on one batch, with the noise of step `number`; the last mean loss."""
    config = module.config
    for _ in range(config.trainer.get("accumulate_grad_batches", 1)):
        loss = mean_loss(module, batch, number)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(module.adapter, config.optim.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def mean_loss(module: ICLoRA, batch: Batch, number: int) -> Tensor:
    """What the Trainer would minimise on a batch, in its precision, with the noise of step `number`."""
    half = base_dtype(module.config.model.precision) == torch.bfloat16
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=half):
        found = module.losses(batch, step_generator(module.config.seed, number, 0))
        return found.total(module.config.flow)


def synced_time(device: torch.device) -> float:
    """Seconds, after all work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> float:
    """Peak GiB so far that this process has taken of a GPU, or of the host where it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def _memory(device: torch.device) -> tuple[float, float | None]:
    """Peak GiB so far, and GiB of the device if it is a GPU, whose memory is given back."""
    peak = peak_memory(device)
    if device.type != "cuda":
        return peak, None
    torch.cuda.empty_cache()
    return peak, torch.cuda.get_device_properties(device).total_memory / GIB


def _save(module: ICLoRA, folder: Path) -> int:
    """Bytes of the adapter's file, which is written and deleted again."""
    path = folder / "dry-run.safetensors"
    lora.save(path, lora.Adapter(lora.adapter_weights(module.transformer), {"reference_downscale_factor": "1"}))
    size = path.stat().st_size
    path.unlink()
    return size


def _too_large(config: Config, bucket: str, clips: int, device: torch.device) -> str:
    room = torch.cuda.get_device_properties(device).total_memory / GIB
    knobs = [] if config.model.activation_checkpointing else ["model.activation_checkpointing=true"]
    knobs += ["a higher model.weight_offload"]
    fewer = "data.batch_size=1" if config.data.tokens_per_batch is None else "a lower data.tokens_per_batch"
    knobs += [fewer] if clips > 1 else []
    knobs += ["task.reference_downscale=2"] if config.task.reference_downscale == 1 else []
    knobs += ["fewer data.frames", "smaller data.width and data.height", "a lower model.lora.rank"]
    what = f"a step on the largest batch ({clips} x {bucket}) does not fit into {room:.1f} GiB"
    return f"{what}; what would help: {', '.join(knobs)}"
