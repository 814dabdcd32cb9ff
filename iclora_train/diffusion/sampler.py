"""Clips from noise: Euler integration of the velocity field with references, weights, masks and guidance. Pure torch.

References are put beside the target by the same `append_reference` that training uses.

Every token has a denoise mask m, the share of the noise level that it is at: 1 on the target, 0 on what is given clean,
1 - strength on references. A step of sigma takes the clean latents x0 = m p + (1 - m) clean, with p what the
model predicts, and moves x along (x - x0) / sigma. For 0 < m < 1 there are two customs:

    comfyui   the model sees m x + (1 - m) clean in every step;  p = seen - sigma v      (KSamplerX0Inpaint)
    ltx       x is noised to level m sigma once and seen as it is; p = seen - m sigma v  (ltx-pipelines)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Generator, Tensor

from iclora_train.core.types import Geometry, Tokens
from iclora_train.diffusion.guidance import Guidance, guided_velocity
from iclora_train.diffusion.reference import append_reference, from_tokens, snap_frame, target_tokens, to_tokens
from iclora_train.ltx2.model.transformer import Transformer


@dataclass(frozen=True)
class Reference:
    """A clean reference (B,C,f,h,w), where it lies and how the target attends to it (see `append_reference`).

    strength: 1 is given clean, 0 is noise like the target, and so independent of the latent's content.
    """

    latent: Tensor
    downscale: int = 1
    temporal_scale: int = 1
    attention_strength: float = 1.0
    attention_mask: Tensor | None = None  # (B,F,H,W) in [0, 1], reference pixels; or see `mask_to_grid`
    strength: float = 1.0
    frame: int = 0  # target frame at which it begins; negative from the end (`snap_frame`)


def draw_noises(seeds: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Noise (B,*shape) of each shape, one seed a clip, drawn on the CPU one after the other.

    A clip's noise does not depend on its batch or device, nor the first shape's on whether there are others.
    """
    generators = [Generator().manual_seed(seed) for seed in seeds]
    return [torch.stack([torch.randn(shape, generator=generator) for generator in generators]) for shape in shapes]


def draw_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Noise (B,*shape) of one shape (`draw_noises`)."""
    return draw_noises(seeds, [shape])[0]


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
    guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
    between: str = "comfyui",
    blend: str = "comfyui",
    start: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Latent clips (B,C,f,h,w) on the latent grid `size`, one per seed; fps of all, or (B,).

    text (B,T,D); sigmas from the first step's level down to 0; first_frame (B,C,1,h,w) is kept as it is. start
    (B,C,f,h,w): clean latents to begin from, noised to sigmas[0]; without it sigmas begin at 1. between: what
    references see of one another (`AttentionBias`); blend: see the module. `on_step(i)` is called after each step.
    """
    if blend not in ("comfyui", "ltx"):
        raise ValueError(f"blend={blend!r} is not one of comfyui, ltx")
    if start is None and sigmas[0] != 1:
        raise ValueError(f"sigmas begin at {sigmas[0]}: give the latents to start from")
    batch, device = len(seeds), text.device
    target = torch.zeros(batch, geometry.channels, *size) if start is None else start
    laid_out = _lay_out(target.to(device, torch.float32), first_frame, geometry, fps, references)
    noises = draw_noises(seeds, [tuple(clip.shape[1:]) for clip in (target, *(ref.latent for ref in references))])
    noise = torch.cat([to_tokens(part) for part in noises], dim=1).to(device)  # (B,N,C)
    clean, m = laid_out.latent, laid_out.sigma.gather(1, laid_out.level)[..., None]  # (B,N,C), (B,N,1)
    x = torch.where(m > 0, (1 - sigmas[0]) * clean + sigmas[0] * noise, clean)
    if blend == "ltx":
        x = m * x + (1 - m) * clean
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        seen = m * x + (1 - m) * clean if blend == "comfyui" else x
        tokens = replace(laid_out, latent=seen, sigma=sigma * laid_out.sigma)
        v = guided_velocity(transformer, tokens, text, guidance, between)
        if blend == "comfyui":  # (x - x0) / sigma, without the cancellation
            slope = m * v + (1 - m**2) * (x - clean) / sigma
        else:
            slope = m**2 * v + (1 - m) * (x - clean) / sigma
        x = x + (following - sigma) * slope
        if on_step is not None:
            on_step(i)
    return from_tokens(x[:, : size[0] * size[1] * size[2]], size)


def _lay_out(
    target: Tensor, first_frame: Tensor | None, geometry: Geometry, fps: float | Tensor, references: Sequence[Reference]
) -> Tokens:
    """Clean tokens of target and references at noise level 1, so that a token's level is its denoise mask."""
    batch, given = len(target), first_frame is not None
    if first_frame is not None:
        target = torch.cat([first_frame.to(target), target[:, :, 1:]], dim=2)
    level = target.new_ones(batch)
    tokens = target_tokens(target, level, geometry, fps, torch.full((batch,), given, device=target.device))
    for ref in references:
        tokens = append_reference(
            tokens,
            ref.latent.to(target),
            ref.downscale,
            ref.temporal_scale,
            ref.strength,
            ref.attention_strength,
            ref.attention_mask,
            snap_frame(ref.frame, ref.latent.shape[2], target.shape[2], geometry.temporal),
        )
    return tokens
