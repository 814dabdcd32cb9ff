"""Depth as grey pictures: near is white, far is black, with one range for the whole clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def depth_to_grey(near: np.ndarray, percentiles: Sequence[float]) -> tuple[np.ndarray, tuple[float, float]]:
    """Convert inverse depth (F,H,W) to grey uint8 (F,H,W,3). Also returns the values that became black and white.

    percentiles: percentiles over the clip that become black and white. A constant depth becomes black.
    """
    low, high = np.percentile(near, percentiles).tolist()
    scale = 255 / (high - low) if high > low else 0.0
    levels = np.rint((np.clip(near, low, high) - low) * scale).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1), (low, high)
