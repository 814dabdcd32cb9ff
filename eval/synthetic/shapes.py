"""Synthetic scenes: a near shape in front of a far background, known in every frame to a fraction of a pixel.

A scene is a signed distance per frame: (H,W) pixels to the outline of the near shape, negative inside. Picture, depth
and drawing are computed from it without an extractor, so the request is exact rather than estimated.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from iclora_train.core.types import VideoShape

Array = NDArray[np.float64]
Clip = NDArray[np.uint8]
SignedDistance = Callable[[int], Array]  # frame number -> (H,W)

NEAR = np.array([226.0, 178.0, 96.0])  # RGB of the shape: sand
FAR = np.array([42.0, 60.0, 92.0])  # RGB of the background: dark blue, which differs from sand in luma and hue
SQUARE, DOT = 0.17, 0.11  # half the side of the square, and the radius of the dot, as shares of the short side
DARK, BRIGHT = 40.0, 216.0  # levels at the ends of the ramp and of depth
WARM = np.array([1.0, 0.95, 0.8])  # colour of the ramp


def pixels(shape: VideoShape) -> tuple[Array, Array]:
    """Pixel centres x (1,W) and y (H,1)."""
    x, y = (np.arange(count, dtype=np.float64) + 0.5 for count in (shape.width, shape.height))
    return x[None], y[:, None]


def path(shape: VideoShape, start: tuple[float, float], end: tuple[float, float], bow: float = 0.0) -> Array:
    """Points (F,2) as x, y in pixels, at constant speed from `start` to `end` (shares of width and height).

    bow: share of the height by which the middle of the path lies below the straight line.
    """
    share = np.linspace(0, 1, shape.frames)[:, None]  # (F,1)
    points = (1 - share) * np.array(start) + share * np.array(end)
    points[:, 1] += bow * 4 * (share * (1 - share))[:, 0]
    return points * np.array([shape.width, shape.height])


def square(shape: VideoShape, centres: Array) -> SignedDistance:
    """Signed distance to a square with centres (F,2)."""
    (x, y), half = pixels(shape), SQUARE * min(shape.height, shape.width)
    return lambda t: np.maximum(np.abs(x - centres[t, 0]), np.abs(y - centres[t, 1])) - half


def dot(shape: VideoShape, centres: Array) -> SignedDistance:
    """Signed distance to a disc with centres (F,2)."""
    (x, y), radius = pixels(shape), DOT * min(shape.height, shape.width)
    return lambda t: np.hypot(x - centres[t, 0], y - centres[t, 1]) - radius


def left_of(shape: VideoShape, columns: Array) -> SignedDistance:
    """Signed distance to the half plane left of a vertical line at `columns` (F,)."""
    x, y = pixels(shape)
    return lambda t: x - columns[t] + 0 * y


def picture(distance: SignedDistance, frames: int) -> Clip:
    """The scene in colour (F,H,W,3)."""

    def frame(t: int) -> Clip:
        near = np.clip(0.5 - distance(t), 0, 1)[..., None]  # share of the pixel that the near shape covers
        return np.rint(near * NEAR + (1 - near) * FAR).astype(np.uint8)

    return np.stack([frame(t) for t in range(frames)])


def ramp(shape: VideoShape) -> Clip:
    """A still clip (F,H,W,3) whose brightness rises linearly from left to right, in one warm hue."""
    x, y = pixels(shape)
    level = DARK + (BRIGHT - DARK) * x / shape.width + 0 * y  # (H,W)
    return np.rint(level[..., None] * WARM).astype(np.uint8)[None].repeat(shape.frames, axis=0)


def drawing(distance: SignedDistance, frames: int, thickness: float, soft: float) -> Clip:
    """The outline as white lines on black (F,H,W,3), `thickness` pixels wide, blurred by a Gaussian of sigma `soft`."""

    def frame(t: int) -> Clip:
        lines = 255 * np.clip(thickness / 2 + 0.5 - np.abs(distance(t)), 0, 1)
        return grey(cv2.GaussianBlur(lines, (0, 0), soft).astype(np.float64) if soft else lines)

    return np.stack([frame(t) for t in range(frames)])


def depth(distance: SignedDistance, frames: int) -> Clip:
    """Depth (F,H,W,3) as depth controls show it: near is bright, far is dark."""
    return np.stack([grey(DARK + (BRIGHT - DARK) * np.clip(0.5 - distance(t), 0, 1)) for t in range(frames)])


def grey(levels: Array) -> Clip:
    """Levels (...) as grey RGB pixels (...,3)."""
    return np.rint(levels).astype(np.uint8)[..., None].repeat(3, axis=-1)
