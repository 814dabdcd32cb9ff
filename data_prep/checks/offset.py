"""Time offset between reference and target, estimated from where and when pixels change.

The difference of neighbouring frames (motion energy) is similar in a clip and in its reference, even if the reference
lost focus, colour, tone or everything but lines: a moving object changes the same pixels at the same time in both. The
changes of the reference are correlated with the changes of the target at every shift. A shift is reported only if it
fits better than shift 0 in nearly every frame. Still clips and uniform motion give no result.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIGMA = 1.0  # pixels of the small pictures: blur before and after the difference
MIN_GAIN = 0.1  # rise of the correlation at the better shift, relative to the rise with a perfect reference
MIN_STEPS = 5  # frames that a shift must be measured on


@dataclass(frozen=True)
class Offset:
    """A time offset. gain: improvement of the fit at this offset, from 0 to about 1.

    frames: target frames by which the reference is early (below 0: late; 0: in sync or undecidable; None: the clips are
    too short or still).
    """

    frames: int | None
    gain: float = 0.0


def find_offset(reference: np.ndarray, target: np.ndarray, search: int, slower: int = 1) -> Offset:
    """Offset of small luma clips reference (F',h,w) and target (F,h,w), within `search` target frames either way. Frame
    i of the reference corresponds to frame i * slower of the target.
    """
    reference_changes, target_changes = _changes(reference, 1), _changes(target, slower)  # (F'-1,P), (F-slower,P)
    too_short = min(len(reference_changes), len(target_changes)) < MIN_STEPS
    if too_short or not reference_changes.any() or not target_changes.any():
        return Offset(None)
    fit, self_fit = reference_changes @ target_changes.T, target_changes @ target_changes.T
    best, best_mean, significant = Offset(0), 0.0, False
    for shift in (k for k in range(-search, search + 1) if k):
        steps = np.arange(len(reference_changes))
        inside = (steps * slower + min(shift, 0) >= 0) & (steps * slower + max(shift, 0) < len(target_changes))
        steps = steps[inside]
        if len(steps) < MIN_STEPS:
            continue
        in_sync, shifted = steps * slower, steps * slower + shift
        rise = fit[steps, shifted] - fit[steps, in_sync]  # (steps,)
        perfect = float((1 - self_fit[in_sync, shifted]).mean())  # rise if the reference were the target itself
        error = float(rise.std(ddof=1)) / np.sqrt(len(rise))
        mean, gain = float(rise.mean()), float(rise.mean()) / max(perfect, 1e-6)
        significant = significant or (gain > MIN_GAIN and mean > t_threshold(len(rise)) * error)
        if mean > best_mean:
            best, best_mean = Offset(shift, gain), mean
    return best if significant else Offset(0)


def t_threshold(count: int) -> float:
    """Number of standard errors that the mean of `count` (5 or more) values exceeds by chance once in 2000 times: the
    quantile of Student's t, accurate to 5 %.
    """
    return 3.3 / (1 - 2.5 / (count - 1))


def _changes(clip: np.ndarray, lag: int) -> np.ndarray:
    """Differences of frames t and t + lag as zero-mean unit vectors (F-lag,P), all zero without change. The square root
    limits the weight of a few strong edges.
    """
    smooth = [cv2.GaussianBlur(frame, (0, 0), SIGMA) for frame in clip]
    rows = np.zeros((max(len(clip) - lag, 0), clip[0].size), np.float32)
    for row, before, after in zip(rows, smooth, smooth[lag:], strict=False):
        row[:] = np.sqrt(cv2.GaussianBlur(cv2.absdiff(before, after), (0, 0), SIGMA)).ravel()
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-3)
