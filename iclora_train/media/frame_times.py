"""Times of frames, and the choice of frames at a frame rate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def frame_times(times: list[float | None], rate: float) -> tuple[float, tuple[float, ...]]:
    """Mean frames per second, and times from 0. Without increasing timestamps (old AVI) the constant `rate` is used."""
    stamps = [t for t in times if t is not None]
    if len(stamps) < len(times) or any(b <= a for a, b in pairwise(stamps)):
        stamps = [i / rate for i in range(len(times))]
    span = stamps[-1] - stamps[0]
    return round((len(stamps) - 1) / span, 3) if span else round(rate, 3), tuple(t - stamps[0] for t in stamps)


def frames_at_rate(times: Sequence[float], fps: float) -> np.ndarray:
    """Numbers (m,) of the frames nearest in time to 0, 1/fps, 2/fps, ... until the clip ends.

    times: seconds of all frames, beginning with 0.
    """
    source = np.asarray(times)
    target = np.arange(int(source[-1] * fps + 0.01) + 1) / fps  # 0.01: mean rates such as 29.970 are rounded
    after = np.searchsorted(source, target).clip(min(1, len(source) - 1), len(source) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(target - source[before] <= source[after] - target, before, after)
