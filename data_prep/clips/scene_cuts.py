"""Where one scene ends and the next begins, and how much moves and how sharp it is: from one pass over small frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from iclora_train.data.video import read_clip

HEIGHT, FINE = 72, 288  # pixels of the frames that are compared, and of those whose sharpness is measured
BINS = 8  # of a colour histogram, each channel
CUT = 0.75  # a change (0 to 3) from which two frames may lie in different scenes
RATIO = 3.0  # and by which it stands out against the median change around it
AROUND = 8  # frames on each side that are "around"
LASTS = 3  # frames for which the picture is one before a cut and another after it; a flash is over sooner


@dataclass(frozen=True, eq=False)
class SceneAnalysis:
    """cuts: frames with which a scene begins (the first one aside). quality (F,): motion x sharpness of a frame."""

    cuts: tuple[int, ...] = ()
    quality: np.ndarray = field(default_factory=lambda: np.zeros(0))


def analyse_scenes(path: Path) -> SceneAnalysis:
    """Scenes of a clip: hard cuts only, also under fast pans and flashes; a dissolve is not found. ValueError as
    `read_clip`.
    """
    small, sharp = [], []
    for frame in read_clip(path):
        small.append(_shrunk(frame, HEIGHT))
        luma = cv2.cvtColor(_shrunk(frame, FINE), cv2.COLOR_RGB2GRAY)
        sharp.append(float(cv2.Laplacian(luma, cv2.CV_32F).var()))
    changes = [_compare(a, b) for a, b in pairwise(small)]
    change = np.array([0.0, *(c for c, _ in changes)])  # (F,), from the frame before
    motion = np.array([m for _, m in changes[:1] + changes] or [0.0])  # (F,), in heights of the picture
    cuts = tuple(i for i in range(1, len(small)) if _is_cut(i, change, small))
    motion[list(cuts)] = 0
    return SceneAnalysis(cuts, motion * np.array(sharp))


def _shrunk(frame: np.ndarray, height: int) -> np.ndarray:
    """The frame at `height` pixels, or as it is when it is smaller."""
    scale = height / frame.shape[0]
    width = max(round(frame.shape[1] * scale), 16)
    return frame if scale >= 1 else cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _is_cut(i: int, change: np.ndarray, small: list[np.ndarray]) -> bool:
    """Whether a scene begins with frame i: a change that is large, stands out, and lasts."""
    around = np.delete(change[max(i - AROUND, 1) : i + AROUND + 1], min(i - 1, AROUND))
    usual = float(np.median(around)) if len(around) else 0.0
    if change[i] < CUT or change[i] < RATIO * usual:
        return False
    before, after = small[max(i - LASTS, 0) : i - 1], small[i + 1 : i + LASTS]
    pairs = [(frame, small[i]) for frame in before] + [(small[i - 1], frame) for frame in after]
    return all(_compare(a, b)[0] >= CUT for a, b in pairs)


def _compare(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """How much frame b differs from a, and how much moved between them (mean flow, in heights of the picture).

    The difference is that of the colour histograms (total variation, 0 to 1) plus 1 - correlation (0 to 2) of the luma
    after b is moved back along the optical flow (DIS, Kroeger et al. 2016): pans and brightness alone raise only one.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (a, b)]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(
        grey[0], grey[1], np.zeros((*grey[0].shape, 2), np.float32)
    )  # (H,W,2)
    y, x = np.mgrid[: a.shape[0], : a.shape[1]].astype(np.float32)
    back = cv2.remap(grey[1], x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    colours = 0.5 * float(np.abs(_histogram(a) - _histogram(b)).sum())
    return colours + 1 - _correlation(grey[0], back), float(np.hypot(*flow.transpose(2, 0, 1)).mean() / a.shape[0])


def _histogram(frame: np.ndarray) -> np.ndarray:
    """Share of pixels in each of BINS^3 colours."""
    channels, bins, span = [0, 1, 2], [BINS] * 3, [0, 256] * 3
    return cv2.calcHist([frame], channels, None, bins, span).ravel() / frame[..., 0].size


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two grey pictures; two flat ones are alike."""
    x, y = (picture.astype(np.float64) - picture.mean() for picture in (a, b))
    spread = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / spread if spread else float(bool(x.any()) == bool(y.any()))
