"""Clips from noise: Euler integration of the velocity field with references, weights and masks. Pure torch.

References are put beside the target by the same `append_reference` that training uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from iclora_train.ltx2.transformer import Transformer
from iclora_train.pair import Geometry
from iclora_train.reference import append_reference, from_tokens, target_tokens, to_tokens


@dataclass(frozen=True)
class Reference:
    """A clean reference (B,C,f,h,w) and how the target attends to it (see `append_reference`)."""

    latent: Tensor
    downscale: int = 1
    temporal_scale: int = 1
    attention_strength: float = 1.0
    attention_mask: Tensor | None = None  # (B,F,H,W) in [0, 1], reference pixels


def sigma_schedule(steps: int, shift: float) -> list[float]:
    """`steps` + 1 noise levels from 1 to 0, even steps bent towards noise: e^shift / (e^shift + 1/s - 1)."""
    even = [1 - i / steps for i in range(steps + 1)]
    return [0.0 if s == 0 else math.exp(shift) / (math.exp(shift) + 1 / s - 1) for s in even]


def noise_for(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Noise (B,*shape), one seed a clip, drawn on the CPU: a clip's noise does not depend on its batch or device."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def sample(
    transformer: Transformer,
    text: Tensor,
    size: tuple[int, int, int],
    geometry: Geometry,
    fps: float | Tensor,
    sigmas: Sequence[float],
    seeds: Sequence[int],
    references: Sequence[Reference] = (),
    first_frame: Tensor | None = None,
    guidance: float = 1.0,
    negative_text: Tensor | None = None,
    between: str = "comfyui",
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Latent clips (B,C,f,h,w) on the latent grid `size`, one per seed; fps of all, or (B,).

    text (B,T,D); sigmas from 1 down to 0; first_frame (B,C,1,h,w) is kept as it is; guidance > 1 adds that multiple of
    (conditional - unconditional) velocity and needs negative_text (B,T,D). `on_step(i)` is called after each step.
    """
    if guidance > 1 and negative_text is None:
        raise ValueError("sample.guidance above 1 needs a negative text")
    device = text.device
    x = noise_for(seeds, (geometry.channels, *size)).to(device)
    if first_frame is not None:
        x = torch.cat([first_frame.to(x), x[:, :, 1:]], dim=2)
    given = torch.full((len(seeds),), first_frame is not None, device=device)
    tokens = target_tokens(x, x.new_full((len(seeds),), sigmas[0]), geometry, fps, given)
    learned = tokens.loss_mask[..., None]  # (B,n,1), False where the first frame was given
    for ref in references:
        tokens = append_reference(
            tokens, ref.latent.to(x), ref.downscale, ref.temporal_scale, 1.0, ref.attention_strength, ref.attention_mask
        )
    x = to_tokens(x)
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        tokens = tokens.with_target(x, x.new_full((len(seeds),), sigma))
        predicted = transformer(tokens, text, between)[:, : x.shape[1]].float()
        if guidance > 1:
            other = transformer(tokens, negative_text, between)[:, : x.shape[1]].float()
            predicted = other + guidance * (predicted - other)
        x = x + (following - sigma) * predicted * learned
        if on_step is not None:
            on_step(i)
    return from_tokens(x, size)
