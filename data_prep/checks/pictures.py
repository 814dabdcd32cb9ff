"""Thumbnails for the contact sheet: frames of a reference above frames of its target."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from iclora_train.core.types import Pair
from iclora_train.data.reference_kinds import MASK_COLOUR
from iclora_train.media.frame_times import simultaneous_frames

TILES, MAX_HEIGHT, MAX_WIDTH = 6, 96, 192  # frames per row, and their limits in pixels
QUALITY = 80  # of the JPEG
TINT = np.array(MASK_COLOUR, np.uint8) // 2  # of the part that is made anew


def frame_strip(frames: Sequence[np.ndarray], count: int = TILES) -> np.ndarray:
    """Up to `count` evenly spaced frames uint8 RGB (H,W,3), side by side (h,w,3)."""
    numbers = sorted({round(i) for i in np.linspace(0, len(frames) - 1, count)})
    return np.hstack([_tile(frames[i], frames[0].shape[:2]) for i in numbers])


def _tile(frame: np.ndarray, clip_size: tuple[int, int]) -> np.ndarray:
    """A frame resized to the thumbnail size of a clip of `clip_size` (height, width)."""
    height, width = clip_size
    scale = min(MAX_HEIGHT / height, MAX_WIDTH / width, 1.0)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def pair_picture(pair: Pair) -> bytes:
    """JPEG of the references, if any, above the target. Small or slow ones are shown at the target's size and times.

    A part of the target that is made anew (`Pair.mask`) is tinted in a row of its own.
    """
    rows = []
    numbers = sorted({round(i) for i in np.linspace(0, len(pair.target) - 1, TILES)})
    for clip in (*pair.references, pair.target):
        indices = simultaneous_frames(len(pair.target), len(clip))[numbers]
        rows.append(np.hstack([_tile(clip[i], pair.target.shape[1:3]) for i in indices]))
    if pair.mask is not None:
        tinted = [np.where(pair.mask[i][..., None], pair.target[i] // 2 + TINT, pair.target[i]) for i in numbers]
        rows.append(np.hstack([_tile(frame, pair.target.shape[1:3]) for frame in tinted]))
    return encode_jpeg(np.vstack(rows))


def stack_jpegs(above: bytes, below: bytes) -> bytes:
    """JPEG of two JPEGs, one above the other."""
    rows = [np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)) for data in (above, below)]
    width = max(row.shape[1] for row in rows)
    return encode_jpeg(np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]))


def encode_jpeg(picture: np.ndarray) -> bytes:
    """JPEG of an RGB picture uint8 (h,w,3)."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes()
