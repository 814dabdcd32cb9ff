"""Tiled encode and decode: memory is bounded by the tile and not by the clip.

Sizes are in latent cells. Along time, cell 0 is pixel frame 0 alone and each later cell has T = `temporal` frames. A
tile of the cells [a, b) has the pixel frames [a T, (b - 1) T]: only the last frame of cell a, unless a is 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from iclora_train.core.types import Geometry

Span = tuple[int, int]  # [start, end)
Coder = Callable[[Tensor], Tensor]  # encode or decode of one tile


@dataclass(frozen=True)
class Tiling:
    """Size of the largest tile and overlap of neighbouring tiles in time and in space, all in latent cells.

    Decoded pixels in an overlap are blended. Of a tile's encoded cells in an overlap, the half nearer to the tile's
    edge is only context and is discarded. Only decoding has tiles in time; see causal_encoder.py.
    """

    frames: int
    height: int
    width: int
    shared_frames: int = 4
    shared: int = 4

    def __post_init__(self) -> None:
        for name, size, shared in self._axes():
            if not 1 <= shared < size:
                raise ValueError(f"Tiling.{name}={size} must be larger than the overlap of {shared} cells (>= 1)")

    def _axes(self) -> tuple[tuple[str, int, int], ...]:
        return (
            ("frames", self.frames, self.shared_frames),
            ("height", self.height, self.shared),
            ("width", self.width, self.shared),
        )

    def spans(self, *cells: int) -> tuple[list[Span], list[Span], list[Span]]:
        """The spans of the tiles along f, h and w of a latent grid of (f, h, w) cells."""
        t, h, w = (spans(length, size, shared) for length, (_, size, shared) in zip(cells, self._axes(), strict=True))
        return t, h, w

    def scaled(self, frames: int, height: int, width: int) -> Tiling:
        """The same tiles on a grid that is finer by these factors; height and width must have the same factor."""
        assert height == width, (height, width)
        sizes = (self.frames * frames, self.height * height, self.width * width)
        return Tiling(*sizes, self.shared_frames * frames, self.shared * height)

    @classmethod
    def auto(
        cls, geometry: Geometry, cells: tuple[int, int, int], max_pixels: int, shared_frames: int = 4, shared: int = 4
    ) -> Tiling:
        """For a latent grid of (f, h, w) cells: the tiles of at most `max_pixels` (frames x height x width) with the
        fewest pixels in total. ValueError if even the smallest tile is larger."""
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
    """(tile size, count) of every useful division of an axis: undivided, or tiles of at least twice the overlap."""
    sizes = {length: 1}
    for count in range(2, length + 1):
        size = -(-(length + (count - 1) * shared) // count)
        if size < 2 * shared:
            break
        sizes.setdefault(size, len(spans(length, size, shared)))
    return list(sizes.items())


def spans(length: int, size: int, shared: int) -> list[Span]:
    """Evenly spread tiles of one size <= `size` that cover [0, length) and overlap by at least `shared`."""
    if length <= size:
        return [(0, length)]
    count = -(-(length - shared) // (size - shared))
    size = -(-(length + (count - 1) * shared) // count)
    starts = [i * (length - size) // (count - 1) for i in range(count)]
    return [(start, start + size) for start in starts]


def _kept(tiles: list[Span]) -> list[tuple[Span, Span]]:
    """Each tile with the cells that it writes to the result: up to the middle of each overlap."""
    middle = [(left[1] + right[0] + 1) // 2 for left, right in pairwise(tiles)]
    return list(zip(tiles, pairwise([0, *middle, tiles[-1][1]]), strict=True))


def encode_tiled(encode: Coder, video: Tensor, geometry: Geometry, tiling: Tiling) -> Tensor:
    """Encode pixels (B, 3, F, H, W) one tile of all frames at a time -> (B, C, f, h, w). The overlap is context for a
    tile; each cell of the result is from one tile. `tiling.frames` is not used."""
    _, rows, columns = tiling.spans(*geometry.latent_size(*video.shape[2:]))
    if len(rows) == len(columns) == 1:
        return encode(video)
    latent: Tensor | None = None
    for (h, kept_h), (w, kept_w) in product(_kept(rows), _kept(columns)):
        tile = encode(video[..., _scaled(h, geometry), _scaled(w, geometry)])
        if latent is None:
            latent = tile.new_empty(*tile.shape[:3], rows[-1][1], columns[-1][1])
        inside = [slice(kept[0] - span[0], kept[1] - span[0]) for span, kept in ((h, kept_h), (w, kept_w))]
        latent[..., slice(*kept_h), slice(*kept_w)] = tile[..., inside[0], inside[1]]
    assert latent is not None
    return latent


def decode_tiled(decode: Coder, latent: Tensor, geometry: Geometry, tiling: Tiling) -> Tensor:
    """Decode latents (B, C, f, h, w) one tile at a time -> (B, 3, F, H, W). Pixels in an overlap are blended with
    weights that sum to 1."""
    times, rows, columns = tiling.spans(*latent.shape[2:])
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
    """Weighted sum of the pixels (B, 3, F', H', W') of all tiles (i, j, k) at their places along (F, H, W)."""
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
    """Pixel frames of the latent frames [a, b), for a causal VAE and a clip that begins at a."""
    return slice(cells[0] * temporal, (cells[1] - 1) * temporal + 1)


def _scaled(cells: Span, geometry: Geometry) -> slice:
    return slice(cells[0] * geometry.spatial, cells[1] * geometry.spatial)


def _ramp(position: Tensor) -> Tensor:
    """Position in an overlap, 0 at the tile's edge and 1 where its neighbour ends -> weight before normalisation.
    Linear in the middle half; nearly 0 in the quarter at the edge, where padding has the largest effect. (With nano's
    weights the seams are 2 to 7 times smaller than with a linear ramp over the whole overlap.)"""
    return (2 * position - 0.5).clamp(1e-3, 1)


def _weights(places: list[slice]) -> list[Tensor]:
    """Blending weight of each tile's pixels along one axis: a ramp over the overlap with the tile before and after,
    divided by the sum over all tiles."""
    ramps, total = [], torch.zeros(places[-1].stop, dtype=torch.float64)
    for n, place in enumerate(places):
        pixel = torch.arange(place.start, place.stop, dtype=torch.float64)
        ramp = torch.ones_like(pixel)
        if n > 0:
            last = places[n - 1].stop
            ramp = torch.minimum(ramp, _ramp((pixel - place.start + 1) / (last - place.start + 1)))
        if n + 1 < len(places):
            first = places[n + 1].start
            ramp = torch.minimum(ramp, _ramp((place.stop - pixel) / (place.stop - first + 1)))
        total[place] += ramp
        ramps.append(ramp)
    return [ramp / total[place] for ramp, place in zip(ramps, places, strict=True)]
