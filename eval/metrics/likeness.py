"""Which target does a clip look like, whatever its colours: the layout of its edges, compared with all targets'.

An output of a control task is free in colours and textures, so its PSNR does not tell a wrong file from a right one.
"""

from __future__ import annotations

import cv2
import numpy as np

from eval.metrics.base import Clip, Values

CELLS = 16  # along either side of the picture
MOMENTS = 3  # frames of a clip that are looked at, from the first to the last
SURROUNDINGS = 3.0  # cells: a layout is where there are more edges than around


def layout(clip: Clip) -> Values:
    """The layout of a clip's edges as a vector of length 1: the dot product of two is their likeness. 0 if flat.

    Root of the gradient of luma, means of CELLS x CELLS cells, minus those of their surroundings.
    """
    moments = np.linspace(0, len(clip) - 1, MOMENTS).round().astype(int)
    cells = np.stack([_edge_density(frame) for frame in clip[moments]]).ravel()
    length = float(np.linalg.norm(cells))
    return cells / length if length > 0 else cells


def _edge_density(frame: Clip) -> Values:
    smooth = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float64), (0, 0), 1.0)
    slope = np.hypot(cv2.Sobel(smooth, cv2.CV_64F, 1, 0), cv2.Sobel(smooth, cv2.CV_64F, 0, 1))
    cells = cv2.resize(np.sqrt(slope), (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    return np.asarray(cells - cv2.GaussianBlur(cells, (0, 0), SURROUNDINGS), np.float64)
