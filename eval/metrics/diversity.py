"""Diversity: how much clips of one window with different seeds differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from eval.metrics.base import Clip
from eval.metrics.picture import SSIM_WINDOW, ssim
from eval.metrics.region import change

Distance = Callable[[Clip, Clip], float]


def difference(first: Clip, second: Clip) -> float:
    """Mean absolute difference in levels."""
    return change(first, second, slice(None))


def dissimilarity(first: Clip, second: Clip) -> float:
    """1 - SSIM: difference in structure, independent of brightness. NaN for frames smaller than SSIM's window."""
    if min(first.shape[1:3]) < SSIM_WINDOW:
        return float("nan")
    return 1 - float(ssim(first, second).mean())


def diversity(clips: Sequence[Clip], distance: Distance = difference) -> float:
    """Mean distance over all pairs of clips (F,H,W,3) of one window with different seeds; 0 if all are equal.

    Raises ValueError for fewer than two clips.
    """
    if len(clips) < 2:
        raise ValueError(f"diversity compares clips of at least two seeds, got {len(clips)}")
    return float(np.mean([distance(a, b) for a, b in combinations(clips, 2)]))
