"""Draw point tracks as Lightricks' motion-control adapter was trained on them: a trail of discs behind every point.

The drawing matches the node LTXVDrawTracks of ComfyUI-LTXVideo (sparse_tracks.py). At a short side of 1080 pixels,
each age from 0 to 50 frames is a disc. Its radius falls from 8 to 2 pixels, and its colour goes from blue (now) over
cyan and green to red (oldest). Newer discs cover older ones. The drawing is then scaled down bilinearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SHORT_SIDE, TRAIL = 1080, 50  # short side of the drawing in pixels, age of the oldest disc in frames
SMALLEST, LARGEST = 2.0, 8.0  # radius of the oldest and of the newest disc


def draw_tracks(
    points: np.ndarray,
    visible: np.ndarray,
    size: tuple[int, int],
    larger: float = 1.0,
    numbers: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw points (N,F,2), x, y in pixels of `size` (height, width), with visibility (N,F): uint8 RGB (F,H,W,3).

    An invisible point leaves no disc, so that its trail fades. Among discs of one age the first track is on top.
    larger: size of the discs relative to the node's. Below a short side of 540 pixels the node's bilinear sampling
    misses parts of its discs. numbers: of the frames to draw; None: all.
    """
    numbers = range(points.shape[1]) if numbers is None else numbers
    height, width = size
    short = min(size)
    canvas = np.zeros((height * SHORT_SIDE // short, width * SHORT_SIDE // short), np.uint8)  # 0, or 1 + age
    scale = np.array([canvas.shape[1] / width, canvas.shape[0] / height])
    centres = np.rint((points * scale).astype(np.float32)).astype(np.int64)[::-1]  # (N,F,2), last track first
    visible, frames = visible[::-1], np.zeros((len(numbers), *size, 3), np.uint8)
    reduction = _Reduction(_Taps.of(canvas.shape[0], height), _Taps.of(canvas.shape[1], width))
    for frame, now in zip(frames, numbers, strict=True):
        canvas.fill(0)
        for age in range(min(now, TRAIL), -1, -1):
            _draw_discs(canvas, centres[:, now - age][visible[:, now - age]], age, larger)
        reduction.write(canvas, frame)
    return frames


def _draw_discs(canvas: np.ndarray, centres: np.ndarray, age: int, larger: float) -> None:
    """Draw discs of one age around centres (n,2) into a canvas (H,W) of ages."""
    pixels = (centres[:, None] + _disc(age, larger)).reshape(-1, 2)
    inside = ((pixels >= 0) & (pixels < canvas.shape[::-1])).all(axis=1)
    canvas[pixels[inside, 1], pixels[inside, 0]] = 1 + age


@lru_cache(maxsize=4 * (TRAIL + 1))
def _disc(age: int, larger: float) -> np.ndarray:
    """Offsets (k,2), x and y, of the pixels of a disc."""
    radius = (SMALLEST + (LARGEST - SMALLEST) * _freshness(age)) * larger
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.stack([x, y], axis=-1)[x**2 + y**2 <= radius**2]


def _freshness(age: int) -> np.float32:
    return np.float32(1 - age / TRAIL)


@dataclass(frozen=True)
class _Taps:
    """The two samples along an axis that bilinear sampling, with pixel centres at 0.5, mixes into each output pixel."""

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray  # of the second, fp32

    @classmethod
    def of(cls, samples: int, outputs: int) -> _Taps:
        position = ((np.arange(outputs) + 0.5) * (samples / outputs) - 0.5).astype(np.float32)
        position = np.clip(position, 0, samples - 1)
        first = np.floor(position).astype(np.int64)
        return cls(first, np.minimum(first + 1, samples - 1), position - first.astype(np.float32))


@dataclass(frozen=True)
class _Reduction:
    """Scales the colours of a canvas of ages bilinearly, only where there are discs."""

    rows: _Taps
    columns: _Taps

    def write(self, canvas: np.ndarray, frame: np.ndarray) -> None:
        """Write the colours of a canvas (H,W) into a black frame (h,w,3) uint8."""
        rows, columns = self.rows, self.columns
        ages = [[canvas[y][:, x] for x in (columns.first, columns.second)] for y in (rows.first, rows.second)]
        drawn = (ages[0][0] | ages[0][1] | ages[1][0] | ages[1][1]).nonzero()
        colours = _colours()
        (a, b), (c, d) = [[colours[tap[drawn]] for tap in pair] for pair in ages]  # (n,3) each
        across, down = columns.weight[drawn[1], None], rows.weight[drawn[0], None]
        upper, lower = a * (1 - across) + b * across, c * (1 - across) + d * across
        frame[drawn] = np.rint((upper * (1 - down) + lower * down) * 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _colours() -> np.ndarray:
    """RGB fp32 (TRAIL + 2, 3) of the values of a canvas: black, then the discs by age."""
    return np.array([(0, 0, 0), *(trail_colour(float(_freshness(age))) for age in range(TRAIL + 1))], np.float32)


def trail_colour(freshness: float) -> tuple[float, float, float]:
    """RGB of a disc: red at freshness 0, green at 1/3, cyan at 2/3 and blue at 1, linear between them.

    The node's own ramp is blue, green, yellow, red. It then swaps red and blue, as in the adapter's training data.
    """
    third = freshness * 3
    if third <= 1:
        return 1 - third, third, 0.0
    if third <= 2:
        return 0.0, 1.0, third - 1
    return 0.0, 3 - third, 1.0
