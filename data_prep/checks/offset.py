"""Whether reference and target show the same moment: found from where and when something changes.

The picture of change between neighbouring frames (motion energy) survives what references lose, be it focus, colour,
tone or everything but lines: a moving thing changes the same pixels at the same time in both. So the changes of the
reference are correlated with those of the target at every shift. One shift is better than none only if it is so in
nearly every frame; where nothing moves, or all moves alike, nothing is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIGMA = 1.0  # pixels of the small pictures, before and after the difference
GAIN = 0.1  # by which the correlation rises at the better shift, as a share of what a perfect reference would gain
STEPS = 5  # frames over which a shift must be seen at least


@dataclass(frozen=True)
class Offset:
    """frames: the reference shows what the target shows so many target frames later (0: in time, or not to be told).
    gain: how much better that shift fits, from 0 to about 1. frames is None when the clips are too short or still.
    """

    frames: int | None
    gain: float = 0.0


def find_offset(reference: np.ndarray, target: np.ndarray, search: int, slower: int = 1) -> Offset:
    """Offset of small luma pictures reference (F',h,w) and target (F,h,w), within `search` target frames either way.
    Frame i of the reference belongs to frame i * slower of the target.
    """
    made, real = _changes(reference, 1), _changes(target, slower)  # (F'-1,P) and (F-slower,P)
    if min(len(made), len(real)) < STEPS or not made.any() or not real.any():
        return Offset(None)
    fit, own = made @ real.T, real @ real.T
    best, most, sure = Offset(0), 0.0, False
    for shift in (k for k in range(-search, search + 1) if k):
        steps = np.arange(len(made))
        steps = steps[(steps * slower + min(shift, 0) >= 0) & (steps * slower + max(shift, 0) < len(real))]
        if len(steps) < STEPS:
            continue
        at, moved = steps * slower, steps * slower + shift
        rise = fit[steps, moved] - fit[steps, at]  # (steps,)
        room = float((1 - own[at, moved]).mean())  # what the target itself would gain
        error = float(rise.std(ddof=1)) / np.sqrt(len(rise))
        mean, gain = float(rise.mean()), float(rise.mean()) / max(room, 1e-6)
        sure = sure or (gain > GAIN and mean > t_threshold(len(rise)) * error)
        if mean > most:
            best, most = Offset(shift, gain), mean
    return best if sure else Offset(0)


def t_threshold(count: int) -> float:
    """Standard errors by which a mean of `count` (5 or more) values lies above 0 by chance once in 2000 times: the
    quantile of Student's t, to 5 %.
    """
    return 3.3 / (1 - 2.5 / (count - 1))


def _changes(clip: np.ndarray, lag: int) -> np.ndarray:
    """Where frames t and t + lag differ, as unit vectors without mean (F-lag,P), 0 where nothing does. The root keeps
    a few strong edges from deciding alone.
    """
    smooth = [cv2.GaussianBlur(frame, (0, 0), SIGMA) for frame in clip]
    rows = np.zeros((max(len(clip) - lag, 0), clip[0].size), np.float32)
    for row, before, after in zip(rows, smooth, smooth[lag:], strict=False):
        row[:] = np.sqrt(cv2.GaussianBlur(cv2.absdiff(before, after), (0, 0), SIGMA)).ravel()
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-3)
