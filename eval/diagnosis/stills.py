"""How well a clip follows a still: the picture of one of its frames, which gives the appearance or is to be reached."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.diagnosis.measures import COARSE, LAYOUT, Agreement, coarse, correlation
from eval.metrics import Clip
from iclora_train.config import Task

STILL = "still"  # the kind of reference
MAKER = "edit.frame"
SCENE = 0.3  # correlation of the luma with the nearest frame: the sample clips' other frames mostly exceed it
COLOURS = 0.4  # cosine of the chroma; other frames of the sample clips have at least 0.6, 12 % of other clips exceed it
COLOURLESS = 3.0  # mean chroma in levels below which a still says nothing about colours


def still_agreements(task: Task, clip: Clip, place: Clip, still: Clip) -> list[Agreement]:
    """The agreements of a clip (F,H,W,3) with the first frame of `still` (n,H,W,3).

    place: the frames of the clip at the place of the still. A still of a known frame belongs there. One of any frame is
    a picture of the scene and is compared with the clip's most similar frame.
    """
    of_scene = task.maker_args.get("frame") == "any"
    frames, needed = (clip, SCENE) if of_scene else (place[:1], LAYOUT)
    where = "the nearest frame" if of_scene else "its frame"
    of_still = _lab(still[0])
    pictures = [_lab(frame) for frame in frames]
    likeness = max(correlation(picture[..., 0], of_still[..., 0]) for picture in pictures)
    measured = [Agreement(f"layout of {where}", likeness, needed)]
    if np.linalg.norm(of_still[..., 1:], axis=-1).mean() >= COLOURLESS:
        colours = max(_cosine(picture[..., 1:], of_still[..., 1:]) for picture in pictures)
        measured.append(Agreement(f"colours of {where}", colours, COLOURS))
    return measured


def _lab(frame: Clip) -> NDArray[np.float32]:
    """A frame (H,W,3) on a grid of COARSE cells in CIELAB: lightness, and chroma around 0, in levels."""
    lab = coarse(cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)[None].astype(np.float32), COARSE)[0]
    return lab - np.array([0, 128, 128], np.float32)


def _cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Cosine of the angle between all chroma values of two pictures: 1 for equal hues; 0 if one has no colour."""
    a, b = (values.astype(np.float64).ravel() for values in (first, second))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 1e-6 else 0.0
