"""The part of a frame that is taken from the generated video, and how far each pixel lies inside of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

FAR = 1e6  # pixels, where no pixel stays unchanged
MARGIN = 32  # pixels around a region that are computed too, at least


@dataclass(frozen=True)
class Region:
    """Of the pixels `rows` x `columns` of a frame, each (h,w):

    hole: where the source is replaced as a whole. distance: pixels to the nearest pixel that stays bit-equal, 0 for
    these. levels: of the mask, in [0, 1]. opacity: of the whole region, the highest level of the mask.
    """

    rows: slice
    columns: slice
    hole: np.ndarray
    distance: np.ndarray
    levels: np.ndarray
    opacity: float


def region_of(mask: np.ndarray, feather: float, inside: bool, covered: tuple[slice, slice]) -> Region | None:
    """The region of a mask fp32 (H,W) in [0, 1]; None if it is black.

    The hole is where the mask has at least half of its highest level. It is blended over `feather` pixels around it, or
    inside of its edge. feather=0: the levels of the mask are the weights. covered: rows and columns that the generated
    video has; the region ends there.
    """
    inner = np.zeros(mask.shape, bool)
    inner[covered] = True
    levels = np.where(inner, mask, 0).astype(np.float32)
    opacity = float(levels.max())
    if opacity < 1 / 512:
        return None
    hole = levels >= opacity / 2
    if feather < 1:
        changed = levels > 0
    elif inside or hole.all():
        changed = hole
    else:
        changed = (_distance(~hole) <= feather) & inner
    distance = _distance(changed)
    margin = max(round(2 * feather), MARGIN)
    spans = [_span(np.asarray(changed.any(axis=1 - n)), margin, limits) for n, limits in enumerate(covered)]
    rows, columns = spans
    area = rows, columns
    return Region(rows, columns, hole[area], distance[area], levels[area], opacity)


def _distance(part: np.ndarray) -> np.ndarray:
    """Distance of every pixel of a part (H,W) bool to the rest, in pixels; 0 in the rest. The picture's edge is not
    rest."""
    if part.all():
        return np.full(part.shape, FAR, np.float32)
    return cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _span(used: np.ndarray, margin: int, limits: slice) -> slice:
    """The indices that are used, with a margin, within limits."""
    numbers = np.flatnonzero(used)
    return slice(max(int(numbers[0]) - margin, limits.start), min(int(numbers[-1]) + 1 + margin, limits.stop))
