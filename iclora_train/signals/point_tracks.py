"""Track points through a clip by pyramidal Lucas-Kanade with a forward-backward check."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

WINDOW, LEVELS = 21, 3  # Lucas-Kanade window in pixels, number of times the picture is halved
FINEST = 0.25  # pixels, about the accuracy of the Lucas-Kanade search
CANDIDATES = 400  # tracked points; some of them are drawn


def max_round_trip_error(lost: float, size: tuple[int, int]) -> float:
    """Largest forward-backward error in pixels for a picture of `size` (height, width).

    lost: the largest error for a short side of 512 pixels.
    """
    return max(lost * min(size) / 512, FINEST)


def detect_corners(grey: np.ndarray) -> NDArray[np.float32]:
    """Corners (N,2) of a picture (H,W) uint8, spread over the picture; none in flat regions."""
    height, width = grey.shape
    min_distance = max(np.sqrt(height * width / CANDIDATES) / 2, 1.0)
    points = cv2.goodFeaturesToTrack(grey, CANDIDATES, 0.005, min_distance)
    return np.zeros((0, 2), np.float32) if points is None else np.asarray(points, np.float32).reshape(-1, 2)


def track_points(
    grey: Sequence[np.ndarray], lost: float, start: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Track points through pictures (H,W) uint8: positions (N,F,2) as x, y, and visibility (N,F).

    start: points (N,2) of the first picture, by default its `detect_corners`. Pyramidal Lucas-Kanade (Bouguet 2001)
    runs from each picture to the next and back. A point is lost when the backward track misses the point by more than
    `lost` pixels (Kalal et al. 2010), or when it leaves the picture. A lost point keeps its last position.
    """
    first = detect_corners(grey[0]) if start is None else np.asarray(start, np.float32)
    if not len(first):
        return np.zeros((0, len(grey), 2)), np.zeros((0, len(grey)), bool)
    height, width = grey[0].shape
    current, alive = first.reshape(-1, 1, 2), np.ones(len(first), bool)
    points, visible = [current[:, 0]], [alive]
    for i in range(1, len(grey)):
        forward, forward_ok = _lucas_kanade(grey[i - 1], grey[i], current)
        backward, backward_ok = _lucas_kanade(grey[i], grey[i - 1], forward)
        error = np.linalg.norm(backward - current, axis=2)[:, 0]
        inside = ((forward >= 0) & (forward <= (width - 1, height - 1))).all(axis=(1, 2))
        alive = alive & forward_ok & backward_ok & (error <= lost) & inside
        current = np.where(alive[:, None, None], forward, current)
        points.append(current[:, 0])
        visible.append(alive)
    return np.stack(points, axis=1).astype(np.float64), np.stack(visible, axis=1)


def _lucas_kanade(source: np.ndarray, target: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in picture `target` of points (N,1,2) of `source`, and whether each was found (N,)."""
    moved = np.empty_like(points)
    _, ok, _ = cv2.calcOpticalFlowPyrLK(source, target, points, moved, winSize=(WINDOW, WINDOW), maxLevel=LEVELS)
    return moved, np.asarray(ok)[:, 0] == 1
