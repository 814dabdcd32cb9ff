"""What one step shows the transformer: everything random drawn from one generator, a batch laid out as tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from iclora_train.batches import Batch
from iclora_train.config import ConfigError, Flow, Task
from iclora_train.flow import noise_to, sample_sigma, velocity
from iclora_train.pair import Geometry, Tokens
from iclora_train.reference import append_reference, target_tokens, to_tokens


@dataclass(frozen=True)
class Draws:
    """All that is random in a step: sigma (B,), noise (B,C,f,h,w); bool (B,): first frame given, reference shown."""

    sigma: Tensor
    noise: Tensor
    first: Tensor
    shown: Tensor


def step_generator(seed: int, batch: int, rank: int) -> Generator:
    """The generator of one batch on one rank. A pure function, so that resuming needs no saved random state."""
    digest = hashlib.sha256(f"{seed} {batch} {rank}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def draw(target: Tensor, flow: Flow, generator: Generator) -> Draws:
    """Draws for a target (B,C,f,h,w), on its device; made on the CPU, so that they are the same on every device."""
    batch, _, f, h, w = target.shape
    sigma = sample_sigma(batch, f * h * w, flow, generator)
    noise = torch.randn(target.shape, generator=generator)
    first = torch.rand(batch, generator=generator) < flow.first_frame_p
    shown = torch.rand(batch, generator=generator) < flow.reference_p
    return Draws(*(drawn.to(target.device) for drawn in (sigma, noise, first, shown)))


def lay_out(batch: Batch, draws: Draws, task: Task, geometry: Geometry) -> tuple[Tokens, Tensor]:
    """Tokens of a batch, noisy target and clean references, and the velocity (B,n,C) of its n target tokens.

    A clip whose reference is not shown has attention weight 0 on it. ConfigError when the references' size does not
    fit the task's factors.
    """
    clean = batch["target"]
    noisy = noise_to(clean, draws.noise, draws.sigma)
    given = draws.first[:, None, None, None, None]
    noisy = torch.cat([torch.where(given, clean[:, :, :1], noisy[:, :, :1]), noisy[:, :, 1:]], dim=2)
    tokens = target_tokens(noisy, draws.sigma, geometry, batch["fps"], draws.first)
    for reference in batch["references"]:
        require_factors(clean, reference, task, batch["keys"][0])
        tokens = append_reference(tokens, reference, task.reference_downscale, task.reference_temporal_scale)
    if not draws.shown.all():
        hidden = (tokens.group > 0) & ~draws.shown[:, None]  # (B,N)
        tokens = replace(tokens, weight=(~hidden).float())
    return tokens, to_tokens(velocity(clean, draws.noise))


def require_factors(target: Tensor, reference: Tensor, task: Task, key: str) -> None:
    """ConfigError unless a reference (B,C,f',h',w') is smaller than its target by exactly the declared factors."""
    frames, height, width = target.shape[2:]
    ref_frames, ref_height, ref_width = reference.shape[2:]
    space, time = task.reference_downscale, task.reference_temporal_scale
    if (height, width) != (ref_height * space, ref_width * space):
        raise ConfigError(
            f"task.reference_downscale={space}: clip {key} has a latent reference of {ref_width}x{ref_height} for a "
            f"target of {width}x{height}; declare the factor they were made with, or prepare the pairs again"
        )
    if frames - 1 != (ref_frames - 1) * time:
        raise ConfigError(
            f"task.reference_temporal_scale={time}: clip {key} has {ref_frames} latent frames of reference for "
            f"{frames} of target; declare the factor they were made with, or prepare the pairs again"
        )
