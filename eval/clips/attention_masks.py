"""The two attention masks of the protocol, as reference weights and as the pixels where their effect is looked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def half_masks(lefts: Sequence[bool], width: int) -> Tensor:
    """Still masks (B,1,2,2 width), 1 on the left half where `lefts`, else on the right; the area average onto
    `width` tokens splits a middle token evenly."""
    left = (torch.arange(2 * width) < width).float()
    rows = torch.stack([left if keep else 1 - left for keep in lefts])
    return rows[:, None, None].expand(-1, 1, 2, -1)


def half_columns(width: int, band: int, keep_left: bool) -> tuple[slice, slice]:
    """Pixel columns inside and outside a half-frame mask, leaving out `band` pixels on either side of its edge."""
    left, right = slice(0, width // 2 - band), slice(width // 2 + band, width)
    return (left, right) if keep_left else (right, left)


def fade_weights(count: int) -> list[float]:
    """The weight of each of `count` latent frames of a fade-in: 0 to 1 in even steps. count >= 2."""
    return [i / (count - 1) for i in range(count)]


def fade_masks(batch: int, count: int) -> Tensor:
    """Those weights as masks (B,f,1,1) on the reference's own latent frames, one pixel frame each."""
    return torch.tensor(fade_weights(count)).reshape(1, count, 1, 1).expand(batch, -1, -1, -1)


def latent_frame_slices(frames: int, temporal: int) -> list[slice]:
    """The pixel frames of each latent frame: the first alone, then `temporal` at a time."""
    return [slice(0, 1), *(slice(start, start + temporal) for start in range(1, frames, temporal))]
