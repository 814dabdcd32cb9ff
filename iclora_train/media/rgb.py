"""Convert a decoded frame to RGB as a player shows it."""

from __future__ import annotations

import av
import numpy as np


def upright_rgb(frame: av.VideoFrame) -> np.ndarray:
    """The frame as uint8 RGB (H,W,3), turned as its metadata says."""
    rgb = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90))


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) of `upright_rgb`."""
    return (frame.width, frame.height) if frame.rotation // 90 % 2 else (frame.height, frame.width)
