"""Shapes of a mask over time: shapes between two painted ones, a larger or smaller shape, a soft edge, a ramp."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def interpolated(pictures: Sequence[np.ndarray], numbers: Sequence[int], frames: int) -> np.ndarray:
    """Shapes (H,W) at the frames `numbers`, and shapes between them: (F,H,W).

    Each pixel's distance to the edge of the shape (below 0 inside) changes linearly from one picture to the next, so
    the edge moves. Before the first and after the last picture the shape stays.
    """
    distances = np.stack([_signed_distance(picture) for picture in pictures])
    result = np.empty((frames, *pictures[0].shape), np.float32)
    for frame in range(frames):
        after = int(np.searchsorted(numbers, frame))
        low, high = max(after - 1, 0), min(after, len(numbers) - 1)
        span = numbers[high] - numbers[low]
        share = (frame - numbers[low]) / span if span else 0.0
        result[frame] = (1 - share) * distances[low] + share * distances[high] < 0
    return result


def _signed_distance(picture: np.ndarray) -> np.ndarray:
    """Distance in pixels to the edge of a shape (H,W), below 0 inside."""
    shape = (picture >= 0.5).astype(np.uint8)
    outside, inside = (cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for part in (1 - shape, shape))
    return outside - inside


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask (F,H,W) grown by `pixels` in all directions, or shrunk by -pixels."""
    if not pixels:
        return mask
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(pixels) + 1,) * 2)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return np.stack([change(frame, disk) for frame in mask])


def feathered(mask: np.ndarray, pixels: float) -> np.ndarray:
    """A mask (F,H,W) whose edges fade over about `pixels` (a Gaussian blur of a quarter of it)."""
    return np.stack([cv2.GaussianBlur(frame, (0, 0), pixels / 4) for frame in mask]) if pixels else mask


def ramp(frames: int, length: int) -> np.ndarray:
    """The weight (F,) of the region in each frame: from 0 to 1 over the first `length` frames, or from 1 to 0 over the
    last -length."""
    if not length:
        return np.ones(frames, np.float32)
    rise = np.clip(np.arange(frames) / max(abs(length) - 1, 1), 0, 1).astype(np.float32)
    return rise if length > 0 else rise[::-1]
