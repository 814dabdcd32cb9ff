"""Loss of resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from data_prep.makers.base import Params, SourceWindow, check_range, register
from data_prep.makers.trajectory import Range, Trajectory
from iclora_train.config import one_of, require

Filter = tuple[float, Callable[[np.ndarray], np.ndarray]]  # how far it reaches in pixels, and its weight at a distance


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -1/2, the one of Catmull and Rom."""
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
    listed = isinstance(filters, list) and len(filters) > 0
    require(listed, f"task.maker_args.{key}={filters!r} must be a list of filters")
    for name in filters:
        one_of(f"task.maker_args.{key}", name, tuple(FILTERS))


def resize_frame(frame: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """A frame uint8 (H,W,3) at another `size` (height, width). Where it gets smaller the filter is as many times wider,
    so that nothing aliases; borders are repeated.
    """
    tall = _along_rows(frame.astype(np.float32), size[0], name)
    wide = _along_rows(np.ascontiguousarray(tall.swapaxes(0, 1)), size[1], name).swapaxes(0, 1)
    return np.rint(np.clip(wide, 0, 255)).astype(np.uint8)


def _along_rows(frame: np.ndarray, rows: int, name: str) -> np.ndarray:
    taps, weights = _taps(len(frame), rows, name)
    result = np.zeros((rows, *frame.shape[1:]), np.float32)
    for tap, weight in zip(taps, weights, strict=True):
        result += weight[:, None, None] * frame[tap]
    return result


@lru_cache(maxsize=256)
def _taps(before: int, after: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Which of `before` rows (K,after) each of `after` rows is the sum of, and their weights (K,after)."""
    reach, weigh = FILTERS[name]
    wider = max(before / after, 1.0)
    centre = (np.arange(after) + 0.5) * before / after - 0.5
    half = reach * wider + (0.5 if name == "area" else 0.0)
    rows = np.ceil(centre - half) + np.arange(int(2 * half) + 1)[:, None]  # (K,after)
    away = np.abs(rows - centre)
    if name == "area":  # a row that the box's rim crosses counts by how much of it lies inside
        weights = np.clip(half - away, 0, 1)
    else:
        weights = np.where(away < half, weigh(np.minimum(away / wider, reach)), 0.0)
    return np.clip(rows, 0, before - 1).astype(np.intp), (weights / weights.sum(axis=0)).astype(np.float32)


@register("degrade.resize")
@dataclass(frozen=True)
class Resize(Trajectory):
    """Down and up again, by a factor and with filters that are drawn.

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
        reach = max(FILTERS[name][0] for name in self.down) + max(FILTERS[name][0] for name in self.up)
        return int(np.ceil((reach + 1) / self.scale[0]))

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        scale = self.draw(self.scale, len(frames), rng)
        down, up = (names[rng.integers(len(names))] for names in (self.down, self.up))
        height, width = frames.shape[1:3]
        coarse = []
        for frame, share in zip(frames, scale, strict=True):
            small = resize_frame(frame, (max(round(height * share), 1), max(round(width * share), 1)), down)
            coarse.append(resize_frame(small, (height, width), up))
        return np.stack(coarse), {"scale": self.summary(scale), "down": down, "up": up}
