"""What an output clip shows, found again without any network: positions, moments, slopes, stillness.

Shapes are found by their outline in the gradient of the luma, so that it does not matter in which colours or textures
a model paints what it was asked for. Normalised cross-correlation (Lewis 1995) is blind to contrast and offset.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.synthetic.shapes import Clip, Plane

Outline = NDArray[np.float32]  # magnitudes of a gradient, (H,W) or (F,H,W)

TOLERANCE = 2.0  # sigma in pixels of a picture whose latent cells are 8 pixels wide: a quarter of one
FLAT = 1.0  # variance of the gradient, (levels per pixel)^2: what varies less is no outline
STEP_SIZE = 0.4  # rise of the correlation with an outline that counts as its appearance: 1 in 75 unrelated clips has it


def luma(clip: Clip) -> Plane:
    """Rec. 601 luma (F,H,W) in levels."""
    return np.stack([cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_RGB2GRAY) for frame in clip]).astype(np.float64)


def outlines(clip: Clip, coarse: int) -> Outline:
    """Magnitude of the luma's gradient (F,h,w), levels per pixel, on pictures `coarse` times smaller. TOLERANCE lets
    outlines differ a little."""
    height, width = clip.shape[1] // coarse, clip.shape[2] // coarse
    found = []
    for frame in luma(clip):
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        dx, dy = (cv2.Sobel(small, cv2.CV_64F, *sample_, scale=1 / 8) for sample_ in ((1, 0), (0, 1)))
        found.append(cv2.GaussianBlur(np.hypot(dx, dy), (0, 0), TOLERANCE))
    return np.stack(found).astype(np.float32)


def correlation(frame: Outline, template: Outline) -> Outline:
    """Normalised cross-correlation of a template (h,w) with a frame (H,W), everywhere it fits: (H-h+1,W-w+1).

    A variance of FLAT is added to the frame's, so that places without any outline correlate with nothing.
    """
    shifted = template - template.mean()
    covered = cv2.matchTemplate(frame, shifted, cv2.TM_CCORR) / template.size
    height, width = template.shape
    window = np.s_[: frame.shape[0] - height + 1, : frame.shape[1] - width + 1]
    mean, square = (cv2.boxFilter(x, cv2.CV_64F, (width, height), anchor=(0, 0))[window] for x in (frame, frame**2))
    return np.asarray(covered / (shifted.std() * np.sqrt(np.maximum(square - mean**2, 0) + FLAT)), np.float32)


def find(frames: Outline, template: Outline) -> Plane:
    """Where a template (h,w) fits best in each frame (F,H,W): its centre as x, y in pixels, (F,2).

    The peak is refined below a pixel by a parabola through its neighbours, along each axis that has room to search.
    """
    height, width = template.shape
    places = []
    for frame in frames:
        fit = correlation(frame, template)
        y, x = np.unravel_index(int(fit.argmax()), fit.shape)
        places.append((x + _vertex(fit[y, :], int(x)) + width / 2, y + _vertex(fit[:, x], int(y)) + height / 2))
    return np.array(places)


def _vertex(line: Outline, peak: int) -> float:
    """Offset in (-0.5, 0.5) of a parabola's top through the values around `peak`; 0 at the ends of the line."""
    if not 0 < peak < len(line) - 1:
        return 0.0
    before, top, after = (float(value) for value in line[peak - 1 : peak + 2])
    bend = before - 2 * top + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0


def fit_at(frames: Outline, template: Outline, x: float, y: float) -> Plane:
    """Correlation (F,) of a template with each frame around one place, to the next whole pixel."""
    height, width = template.shape
    top, left = round(y - height / 2), round(x - width / 2)
    patch = frames[:, top : top + height, left : left + width]
    return np.array([float(correlation(frame, template)[0, 0]) for frame in patch])


def follow(clip: Clip, start: Plane, reach: int) -> Plane:
    """Where a point (2,), x and y in pixels of the first frame, goes: (F,2), by Lucas-Kanade frame by frame.

    reach: side of the window that moves with the point, and so about the largest step from frame to frame.
    """
    grey = np.rint(luma(clip)).astype(np.uint8)
    points = [np.asarray(start, np.float32).reshape(1, 1, 2)]
    for here, there in pairwise(grey):
        flow, _, _ = cv2.calcOpticalFlowPyrLK(here, there, points[-1], None, winSize=(reach, reach), maxLevel=2)  # type: ignore[call-overload]
        points.append(flow)
    return np.concatenate(points)[:, 0].astype(np.float64)


def step_frame(series: Plane) -> int:
    """The frame from which on a series (F,) is higher: the least-squares fit of two levels. F where it never rises by
    STEP_SIZE."""
    count = len(series)
    rises = [float(series[k:].mean() - series[:k].mean()) for k in range(1, count)]
    weights = [k * (count - k) / count for k in range(1, count)]  # of a split's explained sum of squares
    explained = [weight * max(rise, 0.0) ** 2 for rise, weight in zip(rises, weights, strict=True)]
    best = int(np.argmax(explained))
    return best + 1 if rises[best] >= STEP_SIZE else count


def slope(clip: Clip) -> float:
    """Rise of the luma from the left edge to the right one, levels: the least-squares line through all pixels."""
    columns = luma(clip).mean((0, 1))  # (W,)
    return float(np.polyfit((np.arange(len(columns)) + 0.5) / len(columns), columns, 1)[0])


def unrest(clip: Clip) -> Plane:
    """Share (F,) of the clip's variance of luma that is a frame's difference from the mean frame. Noise: about 1.

    One squared level is added to both, so that an empty clip counts as unrest and not as a still picture.
    """
    levels = luma(clip)
    still = levels.mean(0)
    return (((levels - still) ** 2).mean((1, 2)) + 1) / (levels.var() + 1)
