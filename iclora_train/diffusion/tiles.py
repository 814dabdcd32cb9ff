"""Overlapping tiles of a picture that is larger than the pictures a model was trained on, or than memory holds.

In every sampling step the model sees one tile after the other, each as a clip of its own with its part of the
references. The velocities are averaged where tiles overlap, so that all tiles stay one picture from the first step on
(MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from iclora_train.core.types import Tokens
from iclora_train.ltx2.vae.tiling import Span, spans


@dataclass(frozen=True)
class Tile:
    """Latent cells of the target, [start, end) along height and width. overlap: cells over which tiles are blended."""

    rows: Span
    columns: Span
    overlap: int

    def size(self, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """(f,h,w) of the tile in a grid (f,h,w)."""
        return grid[0], self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def cut(self, latent: Tensor, downscale: int = 1) -> Tensor:
        """The tile's part of a grid (...,h,w) of the target, or of one with `downscale` fewer cells per side."""
        (top, bottom), (left, right) = (
            (start // downscale, end // downscale) for start, end in (self.rows, self.columns)
        )
        return latent[..., top:bottom, left:right]

    def weights(self, downscale: int = 1) -> Tensor:
        """Weights (h,w) of the tile's cells in the average: they fall towards the edges, linearly over the overlap."""
        axes = [
            _ramp((end - start) // downscale, self.overlap // downscale) for start, end in (self.rows, self.columns)
        ]
        return axes[0][:, None] * axes[1][None]


def _ramp(length: int, overlap: int) -> Tensor:
    place = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(place, place.flip(0)).clamp(max=max(overlap, 1))


def plan_tiles(size: tuple[int, int], tile: tuple[int, int], overlap: int, unit: int) -> list[Tile]:
    """Evenly spread tiles of one size that cover a grid of (h,w) cells, each at most `tile` cells large.

    They overlap by at least `overlap` cells, and begin and end at multiples of `unit`, the reference's downscale
    factor. One tile if the grid is not larger than a tile.
    """
    rows, columns = (
        [(start * unit, end * unit) for start, end in spans(length // unit, most // unit, overlap // unit)]
        for length, most in zip(size, tile, strict=True)
    )
    return [Tile(*place, overlap) for place in product(rows, columns)]


@dataclass(frozen=True)
class TokenTile:
    """A tile as tokens: `tokens` of the tile as a clip of its own, their places `index` (n,) among the tokens of the
    whole clip, and their weights (n,) in the average."""

    tokens: Tokens
    index: Tensor
    weight: Tensor


def token_places(tile: Tile, grids: Sequence[tuple[tuple[int, int, int], int]]) -> tuple[Tensor, Tensor]:
    """Places (n,) of a tile's tokens among those of target and references, and their weights (n,) in the average.

    grids: size (f,h,w) and downscale factor of the target and of every reference.
    """
    index, weight, offset = [], [], 0
    for (f, h, w), downscale in grids:
        places = torch.arange(offset, offset + f * h * w).view(f, h, w)
        index.append(tile.cut(places, downscale).flatten())
        weight.append(tile.weights(downscale).expand(f, -1, -1).flatten())
        offset += f * h * w
    return torch.cat(index), torch.cat(weight)


def average(tiles: Sequence[TokenTile], latent: Tensor, velocity: Callable[[Tokens, Tensor], Tensor]) -> Tensor:
    """The weighted average (B,N,C) of the velocities of all tiles, for tokens (B,N,C).

    velocity(tokens, latent): that of a tile whose tokens have these latents (B,n,C).
    """
    total = torch.zeros_like(latent)
    weight = latent.new_zeros(latent.shape[1])
    for tile in tiles:
        part = velocity(tile.tokens, latent[:, tile.index])
        total.index_add_(1, tile.index, (part * tile.weight[:, None]).to(total))
        weight.index_add_(0, tile.index, tile.weight.to(weight))
    return total / weight[:, None]
