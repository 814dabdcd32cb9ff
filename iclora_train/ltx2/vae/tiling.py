"""Encode and decode a clip in tiles, so that memory is bounded by the tile and not by the clip.

Sizes are in latent cells. Along time cell 0 is pixel frame 0 alone and cell j the `temporal` frames after it, so the
cells [a, b) are the pixel frames [a T, (b - 1) T]: of cell a, unless it is the first, only the last frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from iclora_train.core.types import Geometry

Span = tuple[int, int]  # [start, end)
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tiling:
    """The largest tile in latent cells, and how many cells neighbours share in time and in space: the decoded pixels
    there are blend_tiles; of encoded cells the half nearer to a tile's edge is only context and thrown away."""

    frames: int
    height: int
    width: int
    shared_frames: int = 4
    shared: int = 4

    def __post_init__(self) -> None:
        for name, size, shared in self._axes():
            if not 1 <= shared < size:
                raise ValueError(f"Tiling.{name}={size} must be larger than the {shared} cells neighbours share (>= 1)")

    def _axes(self) -> tuple[tuple[str, int, int], ...]:
        return (
            ("frames", self.frames, self.shared_frames),
            ("height", self.height, self.shared),
            ("width", self.width, self.shared),
        )

    def spans(self, *cells: int) -> tuple[list[Span], list[Span], list[Span]]:
        """The tiles' spans along (f, h, w) of a latent grid of that many cells."""
        t, h, w = (spans(length, size, shared) for length, (_, size, shared) in zip(cells, self._axes(), strict=True))
        return t, h, w

    def scaled(self, frames: int, height: int, width: int) -> Tiling:
        """The same tile on a grid with so many cells in place of one; height and width must share alike."""
        assert height == width, (height, width)
        sizes = (self.frames * frames, self.height * height, self.width * width)
        return Tiling(*sizes, self.shared_frames * frames, self.shared * height)

    @classmethod
    def auto(
        cls, geometry: Geometry, cells: tuple[int, int, int], max_pixels: int, shared_frames: int = 4, shared: int = 4
    ) -> Tiling:
        """The tiles of at most `max_pixels` (frames x height x width) that compute the fewest pixels twice for a latent
        grid of (f, h, w) cells. ValueError when even the smallest tile is larger."""
        overlap = (shared_frames, shared, shared)
        options = [_sizes(length, common) for length, common in zip(cells, overlap, strict=True)]
        best: tuple[int, int, tuple[int, ...]] | None = None
        for choice in product(*options):
            size = tuple(tile for tile, _ in choice)
            count = choice[0][1] * choice[1][1] * choice[2][1]
            pixels = pixels_of(geometry, size)
            if pixels <= max_pixels and (best is None or (count * pixels, count) < best[:2]):
                best = (count * pixels, count, size)
        if best is None:
            least = pixels_of(geometry, [min(tile for tile, _ in option) for option in options])
            raise ValueError(f"max_pixels={max_pixels} is too small for the VAE's tiles: it must be at least {least}")
        f, h, w = best[2]
        return cls(max(f, shared_frames + 1), max(h, shared + 1), max(w, shared + 1), shared_frames, shared)


def pixels_of(geometry: Geometry, cells: tuple[int, ...] | list[int]) -> int:
    """Pixels (frames x height x width) of a grid of (f, h, w) latent cells."""
    f, h, w = cells
    return ((f - 1) * geometry.temporal + 1) * h * w * geometry.spatial**2


def _sizes(length: int, shared: int) -> list[tuple[int, int]]:
    """(tile size, count) of every useful cut of an axis: whole, or tiles of at least twice what they share."""
    found = {length: 1}
    for count in range(2, length + 1):
        size = -(-(length + (count - 1) * shared) // count)
        if size < 2 * shared:
            break
        found.setdefault(size, len(spans(length, size, shared)))
    return list(found.items())


def spans(length: int, size: int, shared: int) -> list[Span]:
    """Evenly spread tiles of one size <= `size` that cover [0, length), neighbours sharing at least `shared`."""
    if length <= size:
        return [(0, length)]
    count = -(-(length - shared) // (size - shared))
    fitted = -(-(length + (count - 1) * shared) // count)
    starts = [i * (length - fitted) // (count - 1) for i in range(count)]
    return [(start, start + fitted) for start in starts]


def _kept(tiles: list[Span], causal: bool) -> list[Span]:
    """Which cells of each tile are written: up to the middle of what it shares, or, where a cell sees only what is
    before it, all but the beginning of each later tile."""
    middle = [left[1] if causal else (left[1] + right[0] + 1) // 2 for left, right in pairwise(tiles)]
    cuts = [0, *middle, tiles[-1][1]]
    return list(pairwise(cuts))


def encode_tiled(encode: Run, video: Tensor, geometry: Geometry, tile: Tiling) -> Tensor:
    """`encode` of the pixels (B, 3, F, H, W), a tile at a time -> (B, C, f, h, w). Each tile sees what it shares as
    context; every cell comes from one tile."""
    times, rows, columns = tile.spans(*geometry.latent_size(*video.shape[2:]))
    kept = _kept(times, causal=True), _kept(rows, causal=False), _kept(columns, causal=False)
    latent: Tensor | None = None
    for t, h, w in product(*(zip(*axis, strict=True) for axis in zip((times, rows, columns), kept, strict=True))):
        pixels = video[:, :, _frames(t[0], geometry.temporal)][..., _scaled(h[0], geometry), _scaled(w[0], geometry)]
        part = encode(pixels)
        if latent is None:
            latent = part.new_empty(*part.shape[:2], times[-1][1], rows[-1][1], columns[-1][1])
        inside = [slice(keep[0] - span[0], keep[1] - span[0]) for span, keep in (t, h, w)]
        latent[:, :, slice(*t[1]), slice(*h[1]), slice(*w[1])] = part[:, :, inside[0], inside[1], inside[2]]
    assert latent is not None
    return latent


def decode_tiled(decode: Run, latent: Tensor, geometry: Geometry, tile: Tiling) -> Tensor:
    """`decode` of the latents (B, C, f, h, w), a tile at a time -> (B, 3, F, H, W), the pixels that tiles share
    blend_tiles; the weights of a pixel sum to 1."""
    times, rows, columns = tile.spans(*latent.shape[2:])
    places = (
        [_frames(span, geometry.temporal) for span in times],
        [_scaled(span, geometry) for span in rows],
        [_scaled(span, geometry) for span in columns],
    )
    return blend_tiles(
        lambda i, j, k: decode(latent[:, :, slice(*times[i]), slice(*rows[j]), slice(*columns[k])]), places
    )


def blend_tiles(
    decode: Callable[[int, int, int], Tensor], places: tuple[list[slice], list[slice], list[slice]]
) -> Tensor:
    """Add up the pixels (B, 3, F', H', W') of all tiles (i, j, k) at their places along (F, H, W), weighted."""
    counts = [range(len(axis)) for axis in places]
    if all(len(count) == 1 for count in counts):
        return decode(0, 0, 0)
    video: Tensor | None = None
    weights = [_weights(axis) for axis in places]
    for i, j, k in product(*counts):
        pixels = decode(i, j, k)
        if video is None:
            video = pixels.new_zeros(*pixels.shape[:2], *(axis[-1].stop for axis in places))
        for axis, (weight, n) in enumerate(zip(weights, (i, j, k), strict=True)):
            pixels = pixels * weight[n].to(pixels).view(-1, *[1] * (2 - axis))
        video[:, :, places[0][i], places[1][j], places[2][k]] += pixels
    assert video is not None
    return video


def _frames(cells: Span, temporal: int) -> slice:
    """Pixel frames of the latent frames [a, b) as the causal VAE maps a clip that begins at a."""
    return slice(cells[0] * temporal, (cells[1] - 1) * temporal + 1)


def _scaled(cells: Span, geometry: Geometry) -> slice:
    return slice(cells[0] * geometry.spatial, cells[1] * geometry.spatial)


def _ramp(part: Tensor) -> Tensor:
    """0 at a tile's edge, 1 where its neighbour ends: linear in the middle half, nearly 0 in the quarter at the edge,
    where the padding is felt most (with nano's weights the seams are 2 to 7 times smaller than with a plain ramp)."""
    return (2 * part - 0.5).clamp(1e-3, 1)


def _weights(places: list[slice]) -> list[Tensor]:
    """Blending weight of each tile's pixels along one axis: a ramp over what it shares with the tile before and after,
    divided by the sum of all tiles there."""
    ramps, total = [], torch.zeros(places[-1].stop, dtype=torch.float64)
    for n, place in enumerate(places):
        at = torch.arange(place.start, place.stop, dtype=torch.float64)
        ramp = torch.ones_like(at)
        if n > 0:
            last = places[n - 1].stop
            ramp = torch.minimum(ramp, _ramp((at - place.start + 1) / (last - place.start + 1)))
        if n + 1 < len(places):
            first = places[n + 1].start
            ramp = torch.minimum(ramp, _ramp((place.stop - at) / (place.stop - first + 1)))
        total[place] += ramp
        ramps.append(ramp)
    return [ramp / total[place] for ramp, place in zip(ramps, places, strict=True)]
