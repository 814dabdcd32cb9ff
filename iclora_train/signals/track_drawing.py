"""Tracks as Lightricks' motion-control adapter was trained on them: a trail of discs behind every point.

What is drawn is what the node LTXVDrawTracks of ComfyUI-LTXVideo (sparse_tracks.py) draws: at a short side of 1080
pixels, for ages of 0 to 50 frames a disc whose radius falls from 8 to 2 pixels and whose colour goes from blue (now)
over cyan and green to red (oldest), newer over older; then scaled down bilinearly.
"""

from __future__ import annotations

import cv2
import numpy as np

SHORT_SIDE, TRAIL = 1080, 50  # pixels of the drawing, age in frames of the oldest disc
SMALLEST, LARGEST = 2.0, 8.0  # radius of the oldest and of the newest disc


def draw_tracks(points: np.ndarray, seen: np.ndarray, size: tuple[int, int], larger: float = 1.0) -> np.ndarray:
    """Points (N,F,2) as x, y in pixels of pictures of `size` (height, width), seen (N,F) bool -> uint8 RGB (F,H,W,3).

    A point that is not seen leaves no disc, its trail fades. Of points of one age, the first track's lies on top. Discs
    are `larger` times as large as the node's, which below a short side of 540 pixels partly fall through its sampling.
    """
    height, width = size
    short = min(size)
    full = (height * SHORT_SIDE // short, width * SHORT_SIDE // short)
    scale = np.array([full[1] / width, full[0] / height])
    centres = np.rint((points * scale).astype(np.float32)).astype(np.int64)[::-1]  # (N,F,2), last track first
    seen, frames = seen[::-1], []
    for now in range(points.shape[1]):
        canvas = np.zeros((*full, 3), np.float32)
        for age in range(min(now, TRAIL), -1, -1):
            _stamp(canvas, centres[:, now - age][seen[:, now - age]], age, larger)
        shown = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_LINEAR)
        frames.append(np.rint(shown * 255).astype(np.uint8))
    return np.stack(frames)


def _stamp(canvas: np.ndarray, centres: np.ndarray, age: int, larger: float) -> None:
    """Paint discs of one age around centres (n,2) into a canvas (H,W,3) of values in [0, 1]."""
    freshness = np.float32(1 - age / TRAIL)
    radius = (SMALLEST + (LARGEST - SMALLEST) * freshness) * larger
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.stack([x, y], axis=-1)[x**2 + y**2 <= radius**2]  # (k,2)
    pixels = (centres[:, None] + disc).reshape(-1, 2)
    inside = ((pixels >= 0) & (pixels < canvas.shape[1::-1])).all(axis=1)
    canvas[pixels[inside, 1], pixels[inside, 0]] = trail_colour(float(freshness))


def trail_colour(freshness: float) -> tuple[float, float, float]:
    """RGB of a disc: red at freshness 0, green at 1/3, cyan at 2/3 and blue at 1, straight between them. (The node's
    own ramp is blue, green, yellow, red; at its end it swaps red and blue, as its training data had it.)
    """
    third = freshness * 3
    if third <= 1:
        return 1 - third, third, 0.0
    if third <= 2:
        return 0.0, 1.0, third - 1
    return 0.0, 3 - third, 1.0
