"""Loss of resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_range, register
from data_prep.makers.trajectory import Range, Trajectory
from iclora_train.config import one_of, require

Filter = tuple[float, Callable[[np.ndarray], np.ndarray]]  # support in pixels, and the weight at a distance


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -1/2 (Catmull-Rom)."""
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, far)


FILTERS: dict[str, Filter] = {
    "area": (0.5, np.ones_like),
    "bilinear": (1.0, lambda x: 1 - x),
    "bicubic": (2.0, _cubic),
    "lanczos": (3.0, lambda x: np.sinc(x) * np.sinc(x / 3)),
}


def check_filters(key: str, filters: list[str]) -> None:
    """ConfigError unless `task.maker_args.<key>` is a list of filters."""
    is_list = isinstance(filters, list) and len(filters) > 0
    require(is_list, f"task.maker_args.{key}={filters!r} must be a list of filters")
    for name in filters:
        one_of(f"task.maker_args.{key}", name, tuple(FILTERS))


def resize_frame(frame: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """A frame uint8 (H,W,3) resized to `size` (height, width) with the filter `name`. Borders are repeated.

    When a frame shrinks, the filter widens by the factor, so the result has no aliasing.
    """
    rows = _resize_rows(frame.astype(np.float32), size[0], name)
    resized = _resize_rows(np.ascontiguousarray(rows.swapaxes(0, 1)), size[1], name).swapaxes(0, 1)
    return np.rint(np.clip(resized, 0, 255)).astype(np.uint8)


def _resize_rows(frame: np.ndarray, rows: int, name: str) -> np.ndarray:
    taps, weights = _taps(len(frame), rows, name)
    result = np.zeros((rows, *frame.shape[1:]), np.float32)
    for tap, weight in zip(taps, weights, strict=True):
        result += weight[:, None, None] * frame[tap]
    return result


@lru_cache(maxsize=256)
def _taps(source_rows: int, rows: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices (K,rows) into the source rows that each output row sums, and their weights (K,rows)."""
    support, weigh = FILTERS[name]
    scale = max(source_rows / rows, 1.0)
    centre = (np.arange(rows) + 0.5) * source_rows / rows - 0.5
    half = support * scale + (0.5 if name == "area" else 0.0)
    indices = np.ceil(centre - half) + np.arange(int(2 * half) + 1)[:, None]  # (K,rows)
    distance = np.abs(indices - centre)
    if name == "area":  # a row on the edge of the box is weighted by the part that lies inside
        weights = np.clip(half - distance, 0, 1)
    else:
        weights = np.where(distance < half, weigh(np.minimum(distance / scale, support)), 0.0)
    return np.clip(indices, 0, source_rows - 1).astype(np.intp), (weights / weights.sum(axis=0)).astype(np.float32)


@register("degrade.resize")
@dataclass(frozen=True)
class Resize(Trajectory, Maker):
    """Shrink and enlarge again, by a random factor and with random filters.

    scale: [from, to] of the small picture's size as a share of the frame's. down, up: filters to draw from (area,
    bilinear, bicubic, lanczos).
    """

    scale: Range = field(default_factory=lambda: [0.25, 0.75])
    down: list[str] = field(default_factory=lambda: ["area", "bilinear", "bicubic", "lanczos"])
    up: list[str] = field(default_factory=lambda: ["bilinear", "bicubic", "lanczos"])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scale", self.scale, 0.02, 1)
        check_filters("down", self.down)
        check_filters("up", self.up)

    @property
    def margin(self) -> int:
        support = max(FILTERS[name][0] for name in self.down) + max(FILTERS[name][0] for name in self.up)
        return int(np.ceil((support + 1) / self.scale[0]))

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        scale = self.draw(self.scale, len(frames), rng)
        down, up = (names[rng.integers(len(names))] for names in (self.down, self.up))
        height, width = frames.shape[1:3]
        resized = []
        for frame, share in zip(frames, scale, strict=True):
            small = resize_frame(frame, (max(round(height * share), 1), max(round(width * share), 1)), down)
            resized.append(resize_frame(small, (height, width), up))
        return np.stack(resized), {"scale": self.summary(scale), "down": down, "up": up}
