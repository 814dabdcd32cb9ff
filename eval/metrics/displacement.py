"""Is a clip displaced against its target: by pixels (`spatial_shift`), or by frames (`offset`)?

In a clip that pans, a picture that is shifted by a pixel resembles the next frame. `offset` therefore measures the
spatial shift too, and blames time only if time explains the difference as well as space does.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup

EVIDENCE = 0.8  # a displacement counts if it lowers the squared error to less than this share (1 dB)
AS_GOOD = 0.9  # space explains a difference better than time if its squared error is below this share of time's
FOREIGN = 2.0  # a strip with this many times the error of the whole picture does not belong to it
MEASURED_FRAMES = 5  # frames of a clip that are correlated, at equal steps
REFINEMENTS = 4  # Gauss-Newton steps
Pictures = tuple[np.ndarray, np.ndarray]  # grey pictures of output and target
LEAST_SIDE = 8  # pixels of the smallest frames whose shift can be told
LARGEST_SHIFT = 8.0  # pixels; a larger one is a coincidence of two pictures, not a shifted grid


def spatial_shift(output: Clip, target: Clip) -> tuple[float, float]:
    """Shift (x, y) in pixels of the output against the target: right and down are positive; (0, 0) without evidence.

    Phase correlation (Kuglin and Hines 1975), the median over frames, and least squares from there. The shift counts
    only if undoing it lowers the squared error, and undoing the opposite shift, which smooths as much, does not.
    """
    if min(output.shape[1:3]) < LEAST_SIDE:
        return 0.0, 0.0
    indices = np.unique(np.linspace(0, len(output) - 1, MEASURED_FRAMES).round().astype(int))
    # OpenCV's own argument for a window would overwrite the pictures
    window = cv2.createHanningWindow((output.shape[2], output.shape[1]), cv2.CV_32F)
    pairs = [(_grey(output[i]), _grey(target[i])) for i in indices.tolist()]
    start = np.median([cv2.phaseCorrelate(b * window, a * window)[0] for a, b in pairs], axis=0)
    smooth = [(_smoothed(a), _smoothed(b)) for a, b in pairs]
    candidates = [_refined(shift, smooth) for shift in (start, np.zeros(2)) if np.abs(shift).max() <= LARGEST_SHIFT]
    candidates += [(float(round(x)), float(round(y))) for x, y in candidates]
    x, y = min(candidates, key=lambda shift: _error_after(pairs, shift, shift))
    same, undone, doubled = (_error_after(pairs, (s * x, s * y), (x, y)) for s in (0, 1, -1))
    return (x, y) if undone < EVIDENCE * min(same, doubled) else (0.0, 0.0)


def _refined(shift: np.ndarray, pairs: Sequence[Pictures]) -> tuple[float, float]:
    """The shift that minimises the squared error near `shift`, by Gauss-Newton steps over all frames."""
    for _ in range(REFINEMENTS):
        normal, rhs = np.zeros((2, 2)), np.zeros(2)
        for a, b in pairs:
            moved, inner = _moved(a, *-shift), _inner(a, *shift)
            slopes = np.stack([d[inner].ravel() for d in np.gradient(moved)[::-1]])  # (2, pixels): along x and y
            normal += slopes @ slopes.T
            rhs += slopes @ (moved - b)[inner].ravel()
        step = np.linalg.lstsq(normal, rhs, rcond=None)[0]
        shift = np.clip(shift - np.clip(step, -1, 1), -LARGEST_SHIFT, LARGEST_SHIFT)
    return float(shift[0]), float(shift[1])


def _error_after(pairs: Sequence[Pictures], undone: tuple[float, float], shift: tuple[float, float]) -> float:
    """Squared error after a shift is undone, over the pixels that stay in the picture with `shift` either way."""
    x, y = undone
    return float(np.mean([np.mean((_moved(a, -x, -y) - b)[_inner(a, *shift)] ** 2) for a, b in pairs]))


def _inner(grey: np.ndarray, x: float, y: float) -> tuple[slice, slice]:
    """The part of a picture that a shift by (x, y) moves no border into; at least its middle pixel."""
    margins = [min(int(np.ceil(abs(s))) + 1, (n - 1) // 2) for s, n in zip((y, x), grey.shape, strict=True)]
    rows, columns = (slice(m, n - m) for m, n in zip(margins, grey.shape, strict=True))
    return rows, columns


def _grey(frame: Clip) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _smoothed(grey: np.ndarray) -> np.ndarray:
    """Without the finest detail, whose slope a difference of pixels does not show."""
    return cv2.GaussianBlur(grey, (0, 0), 1.5)


def _moved(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """A picture (H,W) or (H,W,3) moved to the right by x and down by y pixels, bilinear."""
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
    return cv2.warpAffine(picture, matrix, (picture.shape[1], picture.shape[0]), borderMode=cv2.BORDER_REPLICATE)


def offset(output: Clip, target: Clip, search: int = 2) -> int:
    """Number of frames by which the output is early (negative: late) relative to the target, within +-`search` frames.

    Output frame t is compared with target frame t + k, over the t that all k share. A k other than 0 is returned only
    if its squared error is below 0.8 times the error at k = 0 (1 dB), because bad clips and clips without motion give
    no evidence, and if a shift of the picture does not explain the difference better. 0 for clips that are too short.
    """
    reach = min(search, (len(output) - 1) // 2)
    inner = output[reach : len(output) - reach]
    errors = {k: _squared_error(inner, target[reach + k :]) for k in range(-reach, reach + 1)}
    best = min(errors, key=lambda k: (errors[k], abs(k)))
    if errors[best] >= EVIDENCE * errors[0]:
        return 0
    at_best = target[reach + best : len(target) - reach + best]
    return 0 if _space_explains(inner, target[reach : len(target) - reach], at_best) else best


def _space_explains(output: Clip, same_time: Clip, other_time: Clip) -> bool:
    """Whether a shift in space explains better than a shift in time why the output differs from the target.

    same_time, other_time: the frames of the target that the output shows if it is shifted in space or in time. In a
    steady pan both explain the inside of the picture. Then the strip decides that a shift in space moves into the
    picture: it has no counterpart in the target at any time.
    """
    x, y = spatial_shift(output, same_time)
    if x == y == 0:
        return False
    rows, columns = _inner(output[0, ..., 0], x, y)
    back = np.stack([_moved(frame, -x, -y) for frame in output])
    in_space = _squared_error(back[:, rows, columns], same_time[:, rows, columns])
    in_time = min(_squared_error(clip, other_time) for clip in (output, _softened(output)))
    entering = max(_squared_error(a, b) for a, b in zip(*(_strips(c, x, y) for c in (output, other_time)), strict=True))
    return in_space < AS_GOOD * in_time or (in_space < in_time / AS_GOOD and entering > FOREIGN * in_time)


def _strips(clip: Clip, x: float, y: float) -> list[Clip]:
    """The columns and the rows that a shift by (x, y) moves into the picture; the whole clip if there are none."""
    columns = slice(None, max(round(x), 1)) if x > 0 else slice(min(round(x), -1), None)
    rows = slice(None, max(round(y), 1)) if y > 0 else slice(min(round(y), -1), None)
    return ([clip[:, :, columns]] if abs(x) >= 0.5 else []) + ([clip[:, rows]] if abs(y) >= 0.5 else []) or [clip]


def _softened(clip: Clip) -> Clip:
    """Blurred as a bilinear shift by half a pixel blurs, so that time and space are compared at equal noise."""
    return np.stack([cv2.GaussianBlur(frame, (3, 3), 0.5) for frame in clip]).astype(np.uint8)


def _squared_error(first: Clip, second: Clip) -> float:
    """Mean squared difference of the frames of `first` (F,H,W,3) and the same number of frames of `second`."""
    pairs = zip(first, second, strict=False)
    return float(np.mean([cv2.norm(a, b, cv2.NORM_L2SQR) / a.size for a, b in pairs]))


def _shift(output: CachedClip, truth: GroundTruth) -> Measurement:
    return Measurement({"spatial_shift": float(np.hypot(*spatial_shift(output.clip, truth.target)))})


SHIFT = MetricGroup((Metric("spatial_shift", "spatial shift", "px", "low", "picture"),), _shift, side=LEAST_SIDE)
