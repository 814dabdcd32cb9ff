"""The two attention masks of the protocol: the reference weights, and the pixels on which their effect is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def half_masks(keep_left: Sequence[bool], width: int) -> Tensor:
    """Half-frame masks (B,1,2,2 width): 1 on the left half where `keep_left` is true, otherwise on the right half.

    The masks have twice as many columns as there are tokens, so averaging them onto `width` tokens gives a middle token
    weight 0.5.
    """
    left = (torch.arange(2 * width) < width).float()
    rows = torch.stack([left if keep else 1 - left for keep in keep_left])
    return rows[:, None, None].expand(-1, 1, 2, -1)


def half_columns(width: int, band: int, keep_left: bool) -> tuple[slice, slice]:
    """Pixel columns inside and outside the half-frame mask, without `band` pixels on either side of its edge."""
    left, right = slice(0, width // 2 - band), slice(width // 2 + band, width)
    return (left, right) if keep_left else (right, left)


def fade_weights(count: int) -> list[float]:
    """Weights of `count` (at least 2) latent frames of a fade-in: from 0 to 1 in equal steps."""
    return [i / (count - 1) for i in range(count)]


def fade_masks(batch: int, count: int, single: Sequence[float] = (0.0,)) -> Tensor:
    """`fade_weights` as masks (B,f,1,1), one weight per latent frame of the reference.

    single: the weight of a reference of one latent frame, which cannot rise: of all clips, or of each.
    """
    weights = torch.tensor(fade_weights(count) if count > 1 else single)
    return weights.reshape(-1, count, 1, 1).expand(batch, -1, -1, -1)


def latent_frame_slices(frames: int, temporal: int) -> list[slice]:
    """The pixel frames that each latent frame covers: one for the first, `temporal` for every later one."""
    return [slice(0, 1), *(slice(start, start + temporal) for start in range(1, frames, temporal))]
