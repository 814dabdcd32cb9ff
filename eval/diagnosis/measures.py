"""An agreement of a clip and its reference, and what several are made of: coarse pictures and their correlation."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

LAYOUT = 0.6  # correlation of the luma on a coarse grid; unrelated clips seldom exceed 0.4
COARSE = 16  # cells of the coarse grid along the shorter side


@dataclass(frozen=True)
class Agreement:
    """A measured agreement. value above `needed` means that the reference is followed. what: for the user."""

    what: str
    value: float
    needed: float

    @property
    def is_followed(self) -> bool:
        """Whether the reference is followed."""
        return self.value >= self.needed


def coarse(pictures: NDArray[np.float32], cells: int = COARSE) -> NDArray[np.float32]:
    """Pictures (n,H,W) or (n,H,W,C) averaged down to `cells` along the shorter side; smaller ones are unchanged."""
    height, width = pictures.shape[1:3]
    scale = min(cells / min(height, width), 1.0)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures])


def correlation(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    """Pearson's correlation of all values; 0 if one side is constant."""
    a, b = (np.asarray(values, np.float64).ravel() for values in (first, second))
    if a.size < 2 or a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
