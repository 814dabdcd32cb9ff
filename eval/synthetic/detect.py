"""Detectors without a network: positions, moments, slopes and stillness in an output clip.

Shapes are located by their outline in the gradient of the luma, so that the colours and textures of the output do not
matter. Normalised cross-correlation (Lewis 1995) is invariant to contrast and offset.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.synthetic.shapes import Array, Clip

Outline = NDArray[np.float32]  # gradient magnitudes, (H,W) or (F,H,W)

TOLERANCE = 2.0  # sigma in pixels of the reduced picture, whose latent cells are 8 pixels wide: a quarter of a cell
FLAT = 1.0  # variance of the gradient, (levels per pixel)^2, below which a region has no outline
STEP_SIZE = 0.4  # rise of the correlation that counts as appearance; 1 in 75 unrelated clips reaches it


def luma(clip: Clip) -> Array:
    """Rec. 601 luma (F,H,W) in levels, not rounded (unlike `CachedClip.grey`)."""
    return np.stack([cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_RGB2GRAY) for frame in clip]).astype(np.float64)


def outlines(clip: Clip, coarse: int) -> Outline:
    """Gradient magnitude of the luma (F,h,w), levels per pixel, on pictures reduced by `coarse`.

    A Gaussian of sigma TOLERANCE makes the comparison of outlines tolerant.
    """
    height, width = clip.shape[1] // coarse, clip.shape[2] // coarse
    magnitudes = []
    for frame in luma(clip):
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        dx, dy = (cv2.Sobel(small, cv2.CV_64F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
        magnitudes.append(cv2.GaussianBlur(np.hypot(dx, dy), (0, 0), TOLERANCE))
    return np.stack(magnitudes).astype(np.float32)


def correlation(frame: Outline, template: Outline) -> Outline:
    """Normalised cross-correlation of a template (h,w) with a frame (H,W), at all positions: (H-h+1,W-w+1).

    FLAT is added to the variance of the frame, so that the correlation is 0 in regions without an outline.
    """
    shifted = template - template.mean()
    covered = cv2.matchTemplate(frame, shifted, cv2.TM_CCORR) / template.size
    height, width = template.shape
    window = np.s_[: frame.shape[0] - height + 1, : frame.shape[1] - width + 1]
    mean, square = (cv2.boxFilter(x, cv2.CV_64F, (width, height), anchor=(0, 0))[window] for x in (frame, frame**2))
    return np.asarray(covered / (shifted.std() * np.sqrt(np.maximum(square - mean**2, 0) + FLAT)), np.float32)


def locate(frames: Outline, template: Outline) -> Array:
    """Centre (F,2) as x, y in pixels of the best match of a template (h,w) in each frame (F,H,W).

    The peak is refined to sub-pixel accuracy by a parabola through its neighbours along each axis.
    """
    height, width = template.shape
    centres = []
    for frame in frames:
        fit = correlation(frame, template)
        y, x = np.unravel_index(int(fit.argmax()), fit.shape)
        centres.append((x + _vertex(fit[y, :], int(x)) + width / 2, y + _vertex(fit[:, x], int(y)) + height / 2))
    return np.array(centres)


def _vertex(line: Outline, peak: int) -> float:
    """Offset in (-0.5, 0.5) of the vertex of a parabola through the values around `peak`; 0 at the ends of the line."""
    if not 0 < peak < len(line) - 1:
        return 0.0
    left, top, right = (float(value) for value in line[peak - 1 : peak + 2])
    curvature = left - 2 * top + right
    return 0.5 * (left - right) / curvature if curvature < 0 else 0.0


def fit_at(frames: Outline, template: Outline, x: float, y: float) -> Array:
    """Correlation (F,) of a template with each frame at one position, rounded to whole pixels."""
    height, width = template.shape
    top, left = round(y - height / 2), round(x - width / 2)
    patch = frames[:, top : top + height, left : left + width]
    return np.array([float(correlation(frame, template)[0, 0]) for frame in patch])


def follow(clip: Clip, start: Array, reach: int) -> Array:
    """Track (F,2) of a point (2,) (x, y in pixels of the first frame), by Lucas-Kanade frame by frame.

    reach: side of the search window, which is about the largest step between frames.
    """
    grey = np.rint(luma(clip)).astype(np.uint8)
    points = [np.asarray(start, np.float32).reshape(1, 1, 2)]
    for frame, next_frame in pairwise(grey):
        flow, _, _ = cv2.calcOpticalFlowPyrLK(frame, next_frame, points[-1], None, winSize=(reach, reach), maxLevel=2)  # type: ignore[call-overload]
        points.append(flow)
    return np.concatenate(points)[:, 0].astype(np.float64)


def step_frame(series: Array) -> int:
    """Frame at which a series (F,) rises, by a least-squares fit of two levels; F if it never rises by STEP_SIZE."""
    count = len(series)
    rises = [float(series[k:].mean() - series[:k].mean()) for k in range(1, count)]
    weights = [k * (count - k) / count for k in range(1, count)]  # weight x rise^2 is the explained sum of squares
    explained = [weight * max(rise, 0.0) ** 2 for rise, weight in zip(rises, weights, strict=True)]
    best = int(np.argmax(explained))
    return best + 1 if rises[best] >= STEP_SIZE else count


def slope(clip: Clip) -> float:
    """Rise of the luma from the left to the right edge in levels, from a least-squares line through all pixels."""
    columns = luma(clip).mean((0, 1))  # (W,)
    return float(np.polyfit((np.arange(len(columns)) + 0.5) / len(columns), columns, 1)[0])


def unrest(clip: Clip) -> Array:
    """Per frame (F,), the mean squared difference of luma from the mean frame, over the luma variance. Noise: about 1.

    One squared level is added to both terms, so that an empty clip counts as unrest and not as a still picture.
    """
    levels = luma(clip)
    mean_frame = levels.mean(0)
    return (((levels - mean_frame) ** 2).mean((1, 2)) + 1) / (levels.var() + 1)
