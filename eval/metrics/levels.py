"""Noise and levels: faults that PSNR and sharpness let pass.

`noise` is measured where the target is flat, where detail cannot be mistaken for it. The levels are compared on means
of large blocks, which blur and noise hardly change.
"""

from __future__ import annotations

import cv2
import numpy as np

from eval.metrics.base import CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, Values

LAPLACIANS = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float64)  # Immerkaer's mask; its weights sum to 0
BLOCKS = 8  # blocks along the shorter side
FLAT = 0.25  # share of the picture that counts as flat: the pixels of the target with the least gradient
ALIKE = 0.9  # correlation of the blocks' means from which the clips show the same scene, and levels can be compared
SPREAD = 8.0  # levels: least standard deviation of the target's block means from which a line can be fitted
TAIL = 0.02  # share of the blocks below and above the range in which the bend is measured: one lamp does not widen it
SPAN = 48.0  # levels: least such range; in a shorter one around grey, even a gamma of 1.4 bends by less than one level


def noise_level(grey: Clip, flat: np.ndarray) -> float:
    """Standard deviation of the noise of a clip (F,H,W), in levels, from the pixels of a mask `flat` (F,H-2,W-2).

    Immerkaer 1996 (Computer Vision and Image Understanding 64): sigma = sqrt(pi / 2) / 6 * mean |I * N|, where N is the
    difference of two Laplacians, which ignores gradients.
    """
    response = np.stack([cv2.filter2D(frame, cv2.CV_64F, LAPLACIANS)[1:-1, 1:-1] for frame in grey])
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(response[flat]).mean())


def flat_pixels(grey: Clip) -> np.ndarray:
    """The FLAT share of the pixels (F,H-2,W-2) of every frame around which the picture changes least."""
    masks = []
    for frame in grey:
        smooth = cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 1.0)
        slope = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
        activity = cv2.dilate(slope, np.ones((5, 5), np.uint8))[1:-1, 1:-1]
        masks.append(activity <= np.quantile(activity, FLAT))
    return np.stack(masks)


def block_means(grey: Clip) -> Values:
    """Mean level of every block, (F, rows, columns): BLOCKS along the shorter side, square as far as possible."""
    height, width = grey.shape[1:3]
    side = min(height, width) / BLOCKS
    size = (max(round(width / side), 1), max(round(height / side), 1))
    return np.stack([cv2.resize(frame.astype(np.float32), size, interpolation=cv2.INTER_AREA) for frame in grey])


def level_fit(output: Clip, target: Clip) -> dict[str, float]:
    """Slope, offset and bend of the output's levels y over the target's levels x, from block means of grey clips.

    Slope and offset by least squares of y = slope x + offset; offset is the level of black. The full range written as
    16..235 has slope 0.86 and offset 16. Bend, see `level_bend`, is absent where the target's range is too short. Empty
    for clips of different scenes, or of too few levels.
    """
    y, x = block_means(output).ravel().astype(np.float64), block_means(target).ravel().astype(np.float64)
    if x.std() < SPREAD or y.std() == 0 or np.corrcoef(x, y)[0, 1] < ALIKE:
        return {}
    line = np.stack([x, np.ones_like(x)], axis=1)
    slope, level = np.linalg.lstsq(line, y, rcond=None)[0].tolist()
    bend = level_bend(y, x)
    return {"level_slope": slope, "level_offset": level, **({} if bend is None else {"level_bend": bend})}


def level_bend(y: Values, x: Values) -> float | None:
    """Levels by which the middle of the target's range is too bright, from the block means y of output and x of target.

    The range, low to high, leaves out TAIL of the blocks at either end. Bend is b of the least squares fit
    y = a x + c + 4 b u (1 - u), u = (x - low) / (high - low): the height of the parabola above the straight line
    through its ends. A change of contrast and black has none. Levels that the target does not have are not judged, so
    a gamma bends a dark clip by fewer levels. None for a range below SPAN.
    """
    low, high = np.quantile(x, (TAIL, 1 - TAIL))
    if high - low < SPAN:
        return None
    u = (x - low) / (high - low)
    parabola = np.stack([x, np.ones_like(x), 4 * u * (1 - u)], axis=1)
    return float(np.linalg.lstsq(parabola, y, rcond=None)[0][2])


def _noise(output: CachedClip, truth: GroundTruth) -> Measurement:
    target = truth.cached_target
    flat = flat_pixels(target.grey)
    return Measurement({"noise": noise_level(output.grey, flat) - noise_level(target.grey, flat)})


def _levels(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Empty where no line can be fitted, and without the bend where the target has too short a range of levels."""
    return Measurement(level_fit(output.grey, truth.cached_target.grey))


NOISE = MetricGroup((Metric("noise", "noise beyond the target's", "levels", "low", "picture"),), _noise, side=3)
LEVELS = MetricGroup(
    (
        Metric("level_slope", "contrast of the levels", "x target", None, "picture"),
        Metric("level_offset", "level of black", "levels", None, "picture"),
        Metric("level_bend", "middle levels too bright by", "levels", None, "picture"),
    ),
    _levels,
)
