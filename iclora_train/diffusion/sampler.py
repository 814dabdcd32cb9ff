"""Sample clips from noise with references, attention weights, masks and guidance. Pure torch.

References are appended to the target by `append_reference`, the function that training uses.

Every token has a denoise mask m, its share of the noise level: 1 on the target, 0 on clean tokens, 1 - strength on
references. A sampler moves x along its derivative (x - x0) / sigma, where x0 = m p + (1 - m) clean and p is the model's
prediction of the clean latents. For 0 < m < 1 there are two conventions (`SamplerSettings.blend`):

    comfyui   the model's input is m x + (1 - m) clean in every step;        p = input - sigma v    (KSamplerX0Inpaint)
    ltx       x is noised to level m sigma once and is the input unchanged;  p = input - m sigma v  (ltx-pipelines)

To add a sampler, write a function like `euler` and add it to `SAMPLERS`; `sample.sampler` then selects it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from iclora_train.config import Flow, Sampling, Task, one_of
from iclora_train.core.types import Geometry, Tokens
from iclora_train.diffusion.guidance import AudioGuidance, Guidance, guided_velocity
from iclora_train.diffusion.kept_latents import KeptLatents
from iclora_train.diffusion.noise_schedule import make_sigmas
from iclora_train.diffusion.reference import (
    append_reference,
    from_tokens,
    mask_to_grid,
    snap_frame,
    target_tokens,
    to_tokens,
)
from iclora_train.diffusion.tiles import Tile, TokenTile, average, token_places
from iclora_train.ltx2.model.transformer import Transformer

Derivative = Callable[[Tensor, float], Tensor]  # x (B,N,C) at noise level sigma -> dx / dsigma (B,N,C)
Sampler = Callable[[Derivative, Tensor, Sequence[float], Callable[[int], None]], Tensor]


def euler(derivative: Derivative, x: Tensor, sigmas: Sequence[float], on_step: Callable[[int], None]) -> Tensor:
    """Euler's method: one evaluation a step."""
    for i, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        x = x + (next_sigma - sigma) * derivative(x, sigma)
        on_step(i)
    return x


SAMPLERS: dict[str, Sampler] = {"euler": euler}


@dataclass(frozen=True)
class SamplerSettings:
    """Settings of `sample` that are the same for all clips of a run.

    sigmas: noise levels from the first step's down to 0. between: whether references attend to one another once an
    attention weight is set (`AttentionBias`). blend: the convention for 0 < m < 1 (see the module docstring).
    audio: guidance of sound beside the video (`joint_sampler`); `sample` ignores it.
    """

    sigmas: Sequence[float]
    guidance: Guidance = Guidance()  # noqa: RUF009 (frozen)
    sampler: str = "euler"
    between: str = "comfyui"
    blend: str = "comfyui"
    audio: AudioGuidance = AudioGuidance()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        one_of("sample.sampler", self.sampler, tuple(SAMPLERS))
        if self.blend not in ("comfyui", "ltx"):
            raise ValueError(f"blend={self.blend!r} is not one of comfyui, ltx")

    @classmethod
    def from_config(
        cls,
        config: Sampling,
        flow: Flow,
        size: tuple[int, int, int],
        num_blocks: int,
        negative_text: Tensor | None,
        between: str = "comfyui",
        blend: str = "comfyui",
    ) -> SamplerSettings:
        """The settings of a config for clips of latent size (f, h, w) and a transformer with `num_blocks` blocks.

        ConfigError when `sample.sampler` or `sample.stg_blocks` does not exist.
        """
        guidance = Guidance.from_config(config, negative_text, num_blocks)
        return cls(make_sigmas(config, flow, prod(size)), guidance, config.sampler, between, blend)


@dataclass(frozen=True)
class Reference:
    """A clean reference (B,C,f,h,w), its place, and how the target attends to it (see `append_reference`).

    strength: 1 keeps the reference clean. 0 turns it into noise like the target's, independent of its content.
    """

    latent: Tensor
    downscale: int = 1
    temporal_scale: int = 1
    attention_strength: float = 1.0
    attention_mask: Tensor | None = None  # (B,F,H,W) in [0, 1], reference pixels; or see `mask_to_grid`
    strength: float = 1.0
    # target frame at which it begins; a negative frame counts from the end (`snap_frame`); of pictures also (B,)
    frame: int | Tensor = 0
    clip: bool | None = None  # whether it is a clip and no picture; None: if it has several latent frames
    number: int | None = None  # of the reference in its task (`append_reference`)

    @classmethod
    def of_task(
        cls,
        latent: Tensor,
        task: Task,
        attention_strength: float = 1.0,
        attention_mask: Tensor | None = None,
        places: Tensor | None = None,
        number: int | None = None,
    ) -> Reference:
        """A reference with the factors, at the frame and with the usual strengths of a task (`ReferenceUse.usual`).

        attention_strength: relative to the usual one. places (B,): its frames, where they are drawn for each clip.
        """
        factors = (task.reference_downscale, task.reference_temporal_scale)
        frame = (task.reference_frame or 0) if places is None else places
        strength, attention = task.reference_use.usual
        weights = (attention_strength * attention, attention_mask)
        return cls(latent, *factors, *weights, strength=strength, frame=frame, number=number)


def draw_noises(seeds: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Noise (B,*shape) of each shape, one seed per clip, drawn on the CPU in the order of the shapes.

    A clip's noise does not depend on its batch or the device. The noise of the first shape does not depend on the
    shapes after it.
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
    settings: SamplerSettings,
    seeds: Sequence[int],
    references: Sequence[Reference] = (),
    kept: KeptLatents | None = None,
    start: Tensor | None = None,
    on_step: Callable[[int], None] = lambda i: None,
    tiles: Sequence[Tile] = (),
) -> Tensor:
    """Sample latent clips (B,C,f,h,w) of latent size `size`, one per seed; fps of all clips, or (B,).

    text (B,T,D). The latents `kept` stay unchanged. start (B,C,f,h,w): clean latents to begin from, noised to
    `settings.sigmas[0]`; without `start` the sigmas must begin at 1. `on_step(i)` is called after step i. tiles: the
    model sees one tile after the other (`diffusion.tiles`) instead of the whole clip.
    """
    shape = (geometry.channels, *size)
    clip = clean_clip(start, len(seeds), shape, settings, text.device)
    noises = draw_noises(seeds, [shape, *(tuple(ref.latent.shape[1:]) for ref in references)])
    video = VideoState.begin(clip_tokens(clip, kept, geometry, fps, references), noises, settings)
    parts = [_tile_tokens(tile, clip, kept, geometry, fps, references) for tile in tiles]

    def velocity(sigma: float) -> Callable[[Tokens, Tensor], Tensor]:
        return lambda tokens, latent: guided_velocity(
            transformer,
            replace(tokens, latent=latent, sigma=sigma * tokens.sigma),
            text,
            settings.guidance,
            settings.between,
        )

    def derivative(x: Tensor, sigma: float) -> Tensor:
        latent = video.model_input(x)
        v = average(parts, latent, velocity(sigma)) if parts else velocity(sigma)(video.tokens, latent)
        return video.slope(x, v, sigma)

    x = SAMPLERS[settings.sampler](derivative, video.x, settings.sigmas, on_step)
    return from_tokens(x[:, : prod(size)], size)


class VideoState(NamedTuple):
    """The video's tokens while they are sampled.

    tokens: at noise level 1, so that a token's level is its denoise mask. x (B,N,C): before the first step. m (B,N,1):
    denoise mask, 1 is denoised, 0 stays clean.
    """

    tokens: Tokens
    x: Tensor
    m: Tensor
    comfyui: bool

    @classmethod
    def begin(cls, tokens: Tokens, noises: Sequence[Tensor], settings: SamplerSettings) -> VideoState:
        """The tokens noised to the first level; noises (B,C,f,h,w): of the target and of each reference."""
        clean, first, comfyui = tokens.latent, settings.sigmas[0], settings.blend == "comfyui"
        noise = torch.cat([to_tokens(part) for part in noises], dim=1).to(clean.device)  # (B,N,C)
        m = tokens.sigma.gather(1, tokens.level)[..., None]
        x = torch.where(m > 0, (1 - first) * clean + first * noise, clean)
        return cls(tokens, x if comfyui else m * x + (1 - m) * clean, m, comfyui)

    def model_input(self, x: Tensor) -> Tensor:
        """What the model sees (B,N,C)."""
        return self.m * x + (1 - self.m) * self.tokens.latent if self.comfyui else x

    def slope(self, x: Tensor, v: Tensor, sigma: float) -> Tensor:
        """(x - x0) / sigma from the velocity v (B,N,C), in a form that does not subtract nearly equal numbers.

        Both blends give x0 = m y0 + (1 - m) clean, from the model's input y, its velocity v and its estimate y0:
        comfyui y = m x + (1 - m) clean, y0 = y - sigma v;  ltx (x was blended before the first step) y = x,
        y0 = y - m sigma v.
        """
        m, clean = self.m, self.tokens.latent
        if self.comfyui:
            return m * v + (1 - m**2) * (x - clean) / sigma
        return m**2 * v + (1 - m) * (x - clean) / sigma


def clean_clip(
    start: Tensor | None, batch: int, shape: tuple[int, ...], settings: SamplerSettings, device: torch.device
) -> Tensor:
    """The clean latents (B,C,f,h,w) to begin from, zeros without `start`. ValueError if the first level needs some."""
    if start is None and settings.sigmas[0] != 1:
        raise ValueError(f"sigmas begin at {settings.sigmas[0]}: give the latents to start from")
    return (torch.zeros(batch, *shape) if start is None else start).to(device, torch.float32)


def clip_tokens(
    target: Tensor, kept: KeptLatents | None, geometry: Geometry, fps: float | Tensor, references: Sequence[Reference]
) -> Tokens:
    """Clean tokens of target and references at noise level 1, so that a token's level is its denoise mask."""
    clean = None
    if kept is not None:
        target, clean = kept.fill(target), kept.mask.to(target.device)
    tokens = target_tokens(target, target.new_ones(len(target)), geometry, fps, clean)
    for ref in references:
        tokens = append_reference(
            tokens,
            ref.latent.to(target),
            ref.downscale,
            ref.temporal_scale,
            ref.strength,
            ref.attention_strength,
            ref.attention_mask,
            ref.frame
            if isinstance(ref.frame, Tensor)
            else snap_frame(ref.frame, ref.latent.shape[2], target.shape[2], geometry.temporal, ref.clip),
            ref.clip,
            ref.number,
        )
    return tokens


def _tile_tokens(
    tile: Tile,
    target: Tensor,
    kept: KeptLatents | None,
    geometry: Geometry,
    fps: float | Tensor,
    references: Sequence[Reference],
) -> TokenTile:
    """A tile with its parts of what is kept and of the references."""
    f, h, w = target.shape[2:]
    grids, parts = [((f, h, w), 1)], []
    for ref in references:
        f, h, w = ref.latent.shape[2:]
        mask = ref.attention_mask
        if mask is not None:
            mask = tile.cut(mask_to_grid(mask, (f, h, w)), ref.downscale)
        parts.append(replace(ref, latent=tile.cut(ref.latent, ref.downscale), attention_mask=mask))
        grids.append(((f, h, w), ref.downscale))
    part = None if kept is None else KeptLatents(tile.cut(kept.latent), tile.cut(kept.mask))
    tokens = clip_tokens(tile.cut(target), part, geometry, fps, parts)
    index, weight = token_places(tile, grids)
    return TokenTile(tokens, index.to(target.device), weight.to(target.device))
