"""How much the seeds of one window differ: an adapter that leaves no room for the prompt and the noise is too rigid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from eval.metrics.base import Clip
from eval.metrics.picture import ssim
from eval.metrics.region import change

Distance = Callable[[Clip, Clip], float]


def difference(first: Clip, second: Clip) -> float:
    """Mean absolute difference, levels."""
    return change(first, second, slice(None))


def dissimilarity(first: Clip, second: Clip) -> float:
    """1 - SSIM: how far structure differs, whatever the brightness."""
    return 1 - float(ssim(first, second).mean())


def diversity(clips: Sequence[Clip], distance: Distance = difference) -> float:
    """Mean distance of all pairs of clips (F,H,W,3) that were made of one window with different seeds; 0: all alike.
    ValueError for fewer than two."""
    if len(clips) < 2:
        raise ValueError(f"diversity compares clips of at least two seeds, got {len(clips)}")
    return float(np.mean([distance(a, b) for a, b in combinations(clips, 2)]))
