"""Points followed through a clip by pyramidal Lucas-Kanade, checked forth and back."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

WINDOW, LEVELS = 21, 3  # of the Lucas-Kanade search: pixels, halvings of the picture
FINEST = 0.25  # pixels, about what that search can tell
CANDIDATES = 400  # points that are followed, of which some are drawn


def max_round_trip_error(lost: float, size: tuple[int, int]) -> float:
    """Pixels that a point may miss by in a picture of `size` (height, width), `lost` being that for 512."""
    return max(lost * min(size) / 512, FINEST)


def detect_corners(grey: np.ndarray) -> NDArray[np.float32]:
    """Corners (N,2) of a picture (H,W) uint8, spread over it; none where it is flat."""
    height, width = grey.shape
    apart = max(np.sqrt(height * width / CANDIDATES) / 2, 1.0)
    found = cv2.goodFeaturesToTrack(grey, CANDIDATES, 0.005, apart)
    return np.zeros((0, 2), np.float32) if found is None else np.asarray(found, np.float32).reshape(-1, 2)


def track_points(
    grey: Sequence[np.ndarray], lost: float, start: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the first picture (H,W) uint8 followed through all: (N,F,2) as x, y, and (N,F) whether still seen.

    `start` (N,2), or `detect_corners` of the first picture. Pyramidal Lucas-Kanade (Bouguet 2001) from each
    picture to the next and back. A point is lost when it comes back more than `lost` pixels from where it was (Kalal et
    al. 2010), or leaves the picture; it stays where it was seen last.
    """
    first = detect_corners(grey[0]) if start is None else np.asarray(start, np.float32)
    if not len(first):
        return np.zeros((0, len(grey), 2)), np.zeros((0, len(grey)), bool)
    height, width = grey[0].shape
    now, alive = first.reshape(-1, 1, 2), np.ones(len(first), bool)
    points, seen = [now[:, 0]], [alive]
    for i in range(1, len(grey)):
        there, found = _search(grey[i - 1], grey[i], now)
        back, returned = _search(grey[i], grey[i - 1], there)
        missed = np.linalg.norm(back - now, axis=2)[:, 0]
        inside = ((there >= 0) & (there <= (width - 1, height - 1))).all(axis=(1, 2))
        alive = alive & found & returned & (missed <= lost) & inside
        now = np.where(alive[:, None, None], there, now)
        points.append(now[:, 0])
        seen.append(alive)
    return np.stack(points, axis=1).astype(np.float64), np.stack(seen, axis=1)


def _search(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points (N,1,2) of picture a are in b, and whether they were found (N,)."""
    there = np.empty_like(points)
    _, found, _ = cv2.calcOpticalFlowPyrLK(a, b, points, there, winSize=(WINDOW, WINDOW), maxLevel=LEVELS)
    return there, np.asarray(found)[:, 0] == 1
