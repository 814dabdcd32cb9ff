"""Blend one frame of the generated video into the source: colours matched around the region, edges band by band."""

from __future__ import annotations

import cv2
import numpy as np

from iclora_train.composite.pyramid import blended, filled, levels_for
from iclora_train.composite.region import Region

CELL = 8  # pixels of a cell in which differences of colour are averaged
LARGEST = 0.25  # difference of a level, of 1, from which pixels show different things and do not count
MEMORY = 0.7  # weight of the frame before, of the frame before that its square, ...


class ColourMatch:
    """The difference of colour between source and generated video around the region, averaged over frames.

    none: nothing is changed. mean: the mean difference is added to the whole region. smooth: the difference beside
    each part of the edge is continued into the region.
    Earlier frames count with falling weights, so that it does not flicker.
    """

    def __init__(self, kind: str, size: tuple[int, int]) -> None:
        """size: (height, width) of the frames."""
        self._kind = kind
        cells = -(-size[0] // CELL), -(-size[1] // CELL)
        self._sums, self._weights = np.zeros((*cells, 3), np.float32), np.zeros(cells, np.float32)

    def apply(self, source: np.ndarray, generated: np.ndarray, region: Region) -> np.ndarray:
        """The generated part (h,w,3) of a frame in the colours of the source (h,w,3)."""
        if self._kind == "none":
            return generated
        difference = source - generated
        weights = (~region.hole & (np.abs(difference).max(-1) < LARGEST)).astype(np.float32)
        rows, columns = (slice(part.start // CELL, -(-part.stop // CELL)) for part in (region.rows, region.columns))
        self._sums *= MEMORY
        self._weights *= MEMORY
        self._sums[rows, columns] += _on_cells(difference * weights[..., None], region)
        self._weights[rows, columns] += _on_cells(weights, region)
        sums, total = self._sums[rows, columns], self._weights[rows, columns]
        if not total.any():
            return generated
        if self._kind == "mean":
            mean: np.ndarray = generated + sums.sum(axis=(0, 1)) / total.sum()
            return mean
        field = filled(sums, total)
        height, width = field.shape[:2]
        field = cv2.resize(field, (width * CELL, height * CELL), interpolation=cv2.INTER_LINEAR)
        top, left = region.rows.start % CELL, region.columns.start % CELL
        return generated + field[top : top + generated.shape[0], left : left + generated.shape[1]]


def _on_cells(values: np.ndarray, region: Region) -> np.ndarray:
    """Means (.., ..) of a part of a frame over the cells of the frame."""
    top, left = region.rows.start % CELL, region.columns.start % CELL
    height, width = values.shape[:2]
    bottom, right = -(top + height) % CELL, -(left + width) % CELL
    padded = cv2.copyMakeBorder(values, top, bottom, left, right, cv2.BORDER_CONSTANT)
    size = padded.shape[1] // CELL, padded.shape[0] // CELL
    return cv2.resize(padded, size, interpolation=cv2.INTER_AREA)


def blend(source: np.ndarray, generated: np.ndarray, region: Region, feather: float) -> tuple[np.ndarray, np.ndarray]:
    """The change (h,w,3) of the source's part of a frame, exactly 0 outside of the region, and the opacity (h,w) of the
    generated colours. source, generated: fp32 (h,w,3).

    In the hole the source's own pixels do not count: there it is continued by the generated picture, moved by the
    difference at the edge. The bands of both are joined in the middle of the feather.
    """
    if feather < 1:
        change = region.levels[..., None] * (generated - source)
        return change, region.levels
    outside = (~region.hole).astype(np.float32)
    difference = (source - generated) * outside[..., None]
    continued = np.where(region.hole[..., None], generated + filled(difference, outside), source)
    seam = (region.distance >= feather / 2).astype(np.float32)
    mixed = blended(continued, generated, seam, levels_for(feather))
    window = np.clip(region.distance / max(feather / 4, 1), 0, 1)[..., None]
    target = continued + window * (mixed - continued)
    inside = region.distance > 0
    change = np.where(inside[..., None], region.opacity * (target - source), 0).astype(np.float32)
    ramp = np.clip((region.distance - feather / 4) / (feather / 2), 0, 1)
    return change, (np.where(region.hole, 1, ramp) * region.opacity).astype(np.float32)
