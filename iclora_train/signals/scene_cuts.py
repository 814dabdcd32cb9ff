"""Scene cuts, motion and sharpness of a clip, from one pass over small frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from iclora_train.media.clip import read_clip
from iclora_train.media.section import Section

COMPARE_HEIGHT, SHARPNESS_HEIGHT = 72, 288  # frame heights in pixels for comparison and for sharpness
BINS = 8  # per channel of a colour histogram
MIN_CHANGE = 0.75  # change (0 to 3) between two frames from which they may belong to different scenes
MIN_RATIO = 3.0  # ratio of the change at a cut to the median change nearby
NEIGHBOURS = 8  # frames on each side that count as nearby
MIN_DURATION = 3  # frames that both scenes must last; a flash is shorter


@dataclass(frozen=True, eq=False)
class SceneAnalysis:
    """cuts: frames that start a scene, except frame 0. quality (F,): motion x sharpness of each frame."""

    cuts: tuple[int, ...] = ()
    quality: np.ndarray = field(default_factory=lambda: np.zeros(0))


def analyse_scenes(path: Path, section: Section | None = None) -> SceneAnalysis:
    """Hard cuts of a clip, robust to fast pans and flashes. Dissolves are missed. ValueError: see `read_clip`.

    Memory holds the small frames near the current one, and three numbers per frame.
    """
    change, motion, sharpness = [0.0], [0.0], list[float]()  # per frame; change and motion from the previous frame
    cuts: list[int] = []
    near: dict[int, np.ndarray] = {}  # small frames by number
    last = -1
    for last, frame in enumerate(read_clip(path, None, section)):
        near[last] = _shrink(frame, COMPARE_HEIGHT)
        luma = cv2.cvtColor(_shrink(frame, SHARPNESS_HEIGHT), cv2.COLOR_RGB2GRAY)
        sharpness.append(float(cv2.Laplacian(luma, cv2.CV_32F).var()))
        if last > 0:
            values = _compare(near[last - 1], near[last])
            change.append(values[0])
            motion.append(values[1])
        near.pop(last - NEIGHBOURS - MIN_DURATION - 1, None)
        if last > NEIGHBOURS and _is_cut(last - NEIGHBOURS, change, near):
            cuts.append(last - NEIGHBOURS)
    cuts += [i for i in range(max(last - NEIGHBOURS, 0) + 1, last + 1) if _is_cut(i, change, near)]
    moved = np.array([*motion[1:2], *motion[1:]] or motion)  # the first frame moves as the second
    moved[cuts] = 0
    return SceneAnalysis(tuple(cuts), moved * np.array(sharpness))


def _shrink(frame: np.ndarray, height: int) -> np.ndarray:
    """The frame scaled to `height` pixels, or unchanged if it is smaller."""
    scale = height / frame.shape[0]
    width = max(round(frame.shape[1] * scale), 16)
    return frame if scale >= 1 else cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _is_cut(i: int, change: Sequence[float], near: Mapping[int, np.ndarray]) -> bool:
    """Whether frame i starts a scene: the change is large, exceeds nearby changes, and lasts.

    near: the small frames around i, by number.
    """
    nearby = [*change[max(i - NEIGHBOURS, 1) : i], *change[i + 1 : i + NEIGHBOURS + 1]]
    median = float(np.median(nearby)) if nearby else 0.0
    if change[i] < MIN_CHANGE or change[i] < MIN_RATIO * median:
        return False
    before = [(near[n], near[i]) for n in range(max(i - MIN_DURATION, 0), i - 1)]
    after = [(near[i - 1], near[n]) for n in range(i + 1, i + MIN_DURATION) if n in near]
    return all(_compare(a, b)[0] >= MIN_CHANGE for a, b in before + after)


def _compare(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Change from frame a to frame b, and motion between them (mean flow, in picture heights).

    The change is the total variation distance of the colour histograms (0 to 1) plus 1 - correlation (0 to 2) of the
    luma after b is warped back along the optical flow (DIS, Kroeger et al. 2016). A pan or a change of brightness
    raises only one of the two terms.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (a, b)]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(
        grey[0], grey[1], np.zeros((*grey[0].shape, 2), np.float32)
    )  # (H,W,2)
    y, x = np.mgrid[: a.shape[0], : a.shape[1]].astype(np.float32)
    warped = cv2.remap(grey[1], x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    colours = 0.5 * float(np.abs(_histogram(a) - _histogram(b)).sum())
    return colours + 1 - _correlation(grey[0], warped), float(np.hypot(*flow.transpose(2, 0, 1)).mean() / a.shape[0])


def _histogram(frame: np.ndarray) -> np.ndarray:
    """Share of pixels in each of the BINS^3 colours."""
    channels, bins, span = [0, 1, 2], [BINS] * 3, [0, 256] * 3
    return cv2.calcHist([frame], channels, None, bins, span).ravel() / frame[..., 0].size


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two grey pictures; 1 for two flat ones."""
    x, y = (picture.astype(np.float64) - picture.mean() for picture in (a, b))
    spread = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / spread if spread else float(bool(x.any()) == bool(y.any()))
