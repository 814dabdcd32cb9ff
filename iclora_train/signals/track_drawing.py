"""Draw point tracks as Lightricks' motion-control adapter was trained on them: a trail of discs behind every point.

The drawing matches the node LTXVDrawTracks of ComfyUI-LTXVideo (sparse_tracks.py). At a short side of 1080 pixels,
each age from 0 to 50 frames is a disc. Its radius falls from 8 to 2 pixels, and its colour goes from blue (now) over
cyan and green to red (oldest). Newer discs cover older ones. The drawing is then scaled down bilinearly.
"""

from __future__ import annotations

import cv2
import numpy as np

SHORT_SIDE, TRAIL = 1080, 50  # short side of the drawing in pixels, age of the oldest disc in frames
SMALLEST, LARGEST = 2.0, 8.0  # radius of the oldest and of the newest disc


def draw_tracks(points: np.ndarray, visible: np.ndarray, size: tuple[int, int], larger: float = 1.0) -> np.ndarray:
    """Draw points (N,F,2), x, y in pixels of `size` (height, width), with visibility (N,F): uint8 RGB (F,H,W,3).

    An invisible point leaves no disc, so that its trail fades. Among discs of one age the first track is on top.
    larger: size of the discs relative to the node's. Below a short side of 540 pixels the node's bilinear sampling
    misses parts of its discs.
    """
    height, width = size
    short = min(size)
    canvas_size = (height * SHORT_SIDE // short, width * SHORT_SIDE // short)
    scale = np.array([canvas_size[1] / width, canvas_size[0] / height])
    centres = np.rint((points * scale).astype(np.float32)).astype(np.int64)[::-1]  # (N,F,2), last track first
    visible, frames = visible[::-1], []
    for now in range(points.shape[1]):
        canvas = np.zeros((*canvas_size, 3), np.float32)
        for age in range(min(now, TRAIL), -1, -1):
            _draw_discs(canvas, centres[:, now - age][visible[:, now - age]], age, larger)
        scaled = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_LINEAR)
        frames.append(np.rint(scaled * 255).astype(np.uint8))
    return np.stack(frames)


def _draw_discs(canvas: np.ndarray, centres: np.ndarray, age: int, larger: float) -> None:
    """Draw discs of one age around centres (n,2) into a canvas (H,W,3) with values in [0, 1]."""
    freshness = np.float32(1 - age / TRAIL)
    radius = (SMALLEST + (LARGEST - SMALLEST) * freshness) * larger
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.stack([x, y], axis=-1)[x**2 + y**2 <= radius**2]  # (k,2)
    pixels = (centres[:, None] + disc).reshape(-1, 2)
    inside = ((pixels >= 0) & (pixels < canvas.shape[1::-1])).all(axis=1)
    canvas[pixels[inside, 1], pixels[inside, 0]] = trail_colour(float(freshness))


def trail_colour(freshness: float) -> tuple[float, float, float]:
    """RGB of a disc: red at freshness 0, green at 1/3, cyan at 2/3 and blue at 1, linear between them.

    The node's own ramp is blue, green, yellow, red. It then swaps red and blue, as in the adapter's training data.
    """
    third = freshness * 3
    if third <= 1:
        return 1 - third, third, 0.0
    if third <= 2:
        return 0.0, 1.0, third - 1
    return 0.0, 3 - third, 1.0
