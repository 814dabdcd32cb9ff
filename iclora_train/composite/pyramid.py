"""Laplacian pyramids (Burt and Adelson 1983): blend pictures band by band, and continue one over its gaps."""

from __future__ import annotations

from math import log2

import cv2
import numpy as np

MAX_LEVELS = 7
REACH = 4  # pixels of a level over which its band changes from one picture to the other


def levels_for(feather: float) -> int:
    """Levels of which the coarsest changes over about `feather` pixels."""
    return int(np.clip(round(log2(max(feather, 1) / REACH)), 0, MAX_LEVELS))


def bands_of(picture: np.ndarray, levels: int) -> list[np.ndarray]:
    """The bands of a picture fp32 (H,W,C), finest first, and what is left: `collapsed` returns the picture."""
    bands = []
    for _ in range(levels):
        coarse = cv2.pyrDown(picture)
        bands.append(picture - _enlarged(coarse, picture))
        picture = coarse
    return [*bands, picture]


def collapsed(bands: list[np.ndarray]) -> np.ndarray:
    """The picture of its bands, to the rounding of fp32."""
    picture = bands[-1]
    for band in reversed(bands[:-1]):
        picture = band + _enlarged(picture, band)
    return picture


def blended(below: np.ndarray, above: np.ndarray, mask: np.ndarray, levels: int) -> np.ndarray:
    """Pictures (H,W,3) blended by a mask fp32 (H,W), 1 for `above`: coarse bands over a wide zone, fine ones not."""
    parts = []
    for low, high in zip(bands_of(below, levels), bands_of(above, levels), strict=True):
        parts.append(low + mask[..., None] * (high - low))
        mask = cv2.pyrDown(mask)
    return collapsed(parts)


def filled(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Continue sums of weighted values (H,W,C) smoothly to where their weights (H,W) are 0; elsewhere their means.

    Pull-push: a gap gets the mean of its surroundings at the finest scale that has any. 0 where no weight is above 0.
    """
    height, width = weights.shape
    share = np.minimum(weights, 1)[..., None]
    means = np.where(share > 0, values / np.maximum(weights, 1e-6)[..., None], 0).astype(np.float32)
    if max(height, width) == 1 or weights.min() >= 1 or not weights.any():
        return means
    half = (max(width // 2, 1), max(height // 2, 1))
    coarse = filled(*(cv2.resize(part, half, interpolation=cv2.INTER_AREA) for part in (values, weights)))
    around = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    result: np.ndarray = share * means + (1 - share) * around
    return result


def _enlarged(coarse: np.ndarray, like: np.ndarray) -> np.ndarray:
    return cv2.pyrUp(coarse, dstsize=(like.shape[1], like.shape[0]))
