"""The in-context idea: clean latents of a reference video stand beside the noisy target tokens.

`target_tokens` lays a noisy target out as tokens, `append_reference` adds a reference to them. Training and sampling
build what the transformer sees with these two functions and nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from iclora_train.pair import Geometry, Tokens


def to_tokens(latent: Tensor) -> Tensor:
    """Latent clips (B,C,f,h,w) as tokens (B,N,C), time slowest, width fastest."""
    return latent.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The inverse of `to_tokens` for a latent grid (f,h,w)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def grid_position(size: tuple[int, int, int], geometry: Geometry, device: torch.device | str | None = None) -> Tensor:
    """Where each token of a latent grid (f,h,w) lies: fp32 (3,N,2), [start, end) in pixel frames, pixels, pixels.

    The first latent frame holds pixel frame 0 alone, latent frame k the frames from temporal*(k-1)+1 on
    (`get_pixel_coords` with its causal fix in Lightricks' ltx-core).
    """
    count = [torch.arange(n + 1, dtype=torch.float32, device=device) for n in size]
    time = count[0] * geometry.temporal + 1 - geometry.temporal
    edges = (time.clamp(min=0), *(n * geometry.spatial for n in count[1:]))
    starts = torch.stack(torch.meshgrid(*(e[:-1] for e in edges), indexing="ij"))  # (3,f,h,w)
    ends = torch.stack(torch.meshgrid(*(e[1:] for e in edges), indexing="ij"))
    return torch.stack([starts, ends], dim=-1).flatten(1, 3)


def target_tokens(
    noisy: Tensor, sigma: Tensor, geometry: Geometry, fps: float | Tensor, clean_first_frame: Tensor | None = None
) -> Tokens:
    """A target (B,C,f,h,w) at level sigma (B,) as tokens; fps of the clip, or of each (B,).

    Where `clean_first_frame` (B,) bool is set, the caller has put clean latents into the first latent frame: those
    tokens are at level 0 and are not learned.
    """
    batch, _, f, h, w = noisy.shape
    count, device = f * h * w, noisy.device
    rate = fps.to(device, torch.float32) if isinstance(fps, Tensor) else torch.full((batch,), float(fps), device=device)
    place = grid_position((f, h, w), geometry, device).repeat(batch, 1, 1, 1)  # (B,3,N,2)
    place[:, 0] /= rate[:, None, None]
    first = torch.arange(count, device=device).expand(batch, count) < h * w  # (B,N)
    if clean_first_frame is None:
        clean_first_frame = torch.zeros(batch, dtype=torch.bool, device=device)
    given = first & clean_first_frame[:, None]
    return Tokens(
        latent=to_tokens(noisy),
        sigma=torch.stack([sigma, torch.zeros_like(sigma)], dim=1),  # row 0 the target's level, row 1 clean
        level=given.long(),
        position=place,
        group=torch.zeros(count, dtype=torch.long, device=device),
        loss_mask=~given,
        keyframe=first,
        geometry=geometry,
        fps=rate,
    )


def append_reference(
    tokens: Tokens,
    latent: Tensor,
    downscale: int = 1,
    temporal_scale: int = 1,
    strength: float = 1.0,
    attention_strength: float = 1.0,
    attention_mask: Tensor | None = None,
) -> Tokens:
    """Put a reference (B,C,f,h,w) behind the tokens that are there.

    latent: clean, or for strength < 1 already noised by the caller to level (1 - strength) sigma.
    downscale: the reference's pixels are this many times larger than the target's, so its spatial positions are
    multiplied by it. temporal_scale: it has that many times fewer frames per second; its times run at its own fps,
    shifted back by (S - 1) target frames and clamped at 0 (Lightricks' trainer).
    attention_strength, attention_mask (B,F,H,W) of reference pixels in [0, 1]: together the weight w of each
    reference token, which enters the attention logits as log(w) (`ltx2.attention`).
    """
    batch, _, *size = latent.shape
    f, h, w = size
    count, device = f * h * w, latent.device
    place = grid_position((f, h, w), tokens.geometry, device).repeat(batch, 1, 1, 1)  # (B,3,n,2)
    place[:, 0] = (place[:, 0] * temporal_scale - (temporal_scale - 1)).clamp(min=0) / tokens.fps[:, None, None]
    place[:, 1:] *= downscale
    sigma, row = _level(tokens.sigma, strength)

    def absent(dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, count, dtype=dtype, device=device)

    return replace(
        tokens,
        latent=torch.cat([tokens.latent, to_tokens(latent).to(tokens.latent)], dim=1),
        sigma=sigma,
        level=torch.cat([tokens.level, absent(torch.long) + row], dim=1),
        position=torch.cat([tokens.position, place], dim=2),
        group=torch.cat([tokens.group, tokens.group[-1:].expand(count) + 1]),
        loss_mask=torch.cat([tokens.loss_mask, absent(torch.bool)], dim=1),
        keyframe=torch.cat([tokens.keyframe, absent(torch.bool)], dim=1),
        weight=_append_weight(tokens, (f, h, w), batch, attention_strength, attention_mask),
    )


def _level(sigma: Tensor, strength: float) -> tuple[Tensor, int]:
    """The clip's levels (B,K), with one more where a reference is not fully clean, and the row a reference has."""
    if strength == 1:
        return sigma, 1
    return torch.cat([sigma, (1 - strength) * sigma[:, :1]], dim=1), sigma.shape[1]


def _append_weight(
    tokens: Tokens, size: tuple[int, int, int], batch: int, strength: float, mask: Tensor | None
) -> Tensor | None:
    """Attention weights (B,N) with those of one more reference, None while every weight is 1."""
    if strength == 1 and mask is None and tokens.weight is None:
        return None
    device, before = tokens.latent.device, tokens.latent.shape[:2]
    known = tokens.weight if tokens.weight is not None else torch.ones(before, device=device)
    added = torch.full((batch, size[0] * size[1] * size[2]), float(strength), device=device)
    if mask is not None:
        added = added * mask_to_grid(mask, size).flatten(1).to(device)
    return torch.cat([known, added], dim=1)


def mask_to_grid(mask: Tensor, size: tuple[int, int, int]) -> Tensor:
    """A pixel mask (B,F,H,W), averaged by area onto a latent grid: (B,f,h,w).

    In space the plain area average; in time pixel frame 0 alone, then the mean of each group of (F-1)/(f-1) frames,
    as the causal VAE groups them. A still mask (F=1) holds for the whole clip.
    """
    f, h, w = size
    small = F.interpolate(mask.float(), size=(h, w), mode="area")  # (B,F,h,w)
    if small.shape[1] == 1:
        return small.expand(-1, f, -1, -1)
    if f == 1 or (small.shape[1] - 1) % (f - 1):
        raise ValueError(
            f"attention_mask has {small.shape[1]} frames, which do not fall on {f} latent frames: give it as many "
            "frames as the reference clip, or one"
        )
    later = small[:, 1:].unflatten(1, (f - 1, -1)).mean(2)
    return torch.cat([small[:, :1], later], dim=1)
