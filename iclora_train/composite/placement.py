"""Where the generated picture lies on the source, in pixels of the source, and which pictures the composite shows."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from iclora_train.composite.origin import Origin
from iclora_train.media.picture import resampled

ASPECT = 0.02  # relative difference up to which two aspect ratios are equal


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the canvas; edges may lie between pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def shifted(self, x: float, y: float) -> Box:
        """The box moved by (x, y)."""
        return Box(self.left + x, self.top + y, self.right + x, self.bottom + y)

    def inner(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the whole pixels inside, in a picture of `size` (height, width)."""
        rows = slice(max(ceil(self.top - 1e-6), 0), min(floor(self.bottom + 1e-6), size[0]))
        return rows, slice(max(ceil(self.left - 1e-6), 0), min(floor(self.right + 1e-6), size[1]))


@dataclass(frozen=True)
class Canvas:
    """The picture of the composite: its size (height, width), and (top, left) of the source in it."""

    size: tuple[int, int]
    top: int = 0
    left: int = 0


def fitted_box(size: tuple[int, int], target: tuple[int, int], fit: str) -> Box:
    """The part of a picture of `size` (height, width) that `generate` shows in a video of `target` (`fit_frame`)."""
    height, width = size
    if fit == "stretch":
        return Box(0, 0, width, height)
    scale = min(height / target[0], width / target[1])
    rows, columns = round(target[0] * scale), round(target[1] * scale)
    top, left = (height - rows) // 2, (width - columns) // 2
    return Box(left, top, left + columns, top + rows)


def generated_box(source: tuple[int, int], clip: tuple[int, int], origin: Origin, fit: str | None) -> Box:
    """Where the generated picture lies on the source of size (height, width).

    clip: size of the clip that the video was generated from, of which the source may be a larger copy.
    """
    target = (origin.height, origin.width)
    if origin.window is None:
        return fitted_box(source, target, fit or origin.fit)
    left, top, right, bottom = origin.borders
    window = origin.window
    scale_y = (clip[0] + top + bottom) / window.scaled[0]
    scale_x = (clip[1] + left + right) / window.scaled[1]
    y, x = window.crop[0] * scale_y - top, window.crop[1] * scale_x - left
    larger_y, larger_x = source[0] / clip[0], source[1] / clip[1]
    return Box(
        x * larger_x,
        y * larger_y,
        (x + window.size[1] * scale_x) * larger_x,
        (y + window.size[0] * scale_y) * larger_y,
    )


def canvas_of(source: tuple[int, int], box: Box, borders: bool, cell: tuple[int, int]) -> Canvas:
    """The picture of the composite: that of the source; with borders the generated one, in whole chroma cells."""
    if not borders:
        return Canvas(source)
    rows, columns = cell
    top, left = ceil(box.top / rows - 1e-6) * rows, ceil(box.left / columns - 1e-6) * columns
    bottom, right = floor(box.bottom / rows + 1e-6) * rows, floor(box.right / columns + 1e-6) * columns
    return Canvas((bottom - top, right - left), -top, -left)


def is_same_shape(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes (height, width) have the same aspect ratio."""
    return abs(a[1] * b[0] / (a[0] * b[1]) - 1) <= ASPECT


def placed_picture(picture: np.ndarray, box: Box, rows: slice, columns: slice, smooth: bool) -> np.ndarray:
    """The rows and columns of a canvas that a picture fp32 (h,w) or (h,w,3) fills, where its edges are those of `box`.

    smooth: Lanczos, for colours; otherwise linear, which does not overshoot, for masks.
    """
    height, width = picture.shape[:2]
    scale_x, scale_y = width / (box.right - box.left), height / (box.bottom - box.top)
    part = (
        (columns.start - box.left) * scale_x,
        (rows.start - box.top) * scale_y,
        (columns.stop - box.left) * scale_x,
        (rows.stop - box.top) * scale_y,
    )
    size = (rows.stop - rows.start, columns.stop - columns.start)
    limits = (max(part[0], 0), max(part[1], 0), min(part[2], width), min(part[3], height))
    return resampled(picture, limits, size, smooth)
