"""Small video files for tests, written in milliseconds: a moving texture, different for every seed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from iclora_train.media.shard_clip import encode_clip


def moving(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise that slides by two pixels per frame: uint8 (F,H,W,3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width + 2 * frames, 3), dtype=np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
    return np.stack([texture[:, 2 * i : 2 * i + width] for i in range(frames)])


def write_clip(
    path: Path, frames: int = 24, height: int = 48, width: int = 64, fps: float = 25.0, seed: int = 0
) -> Path:
    """Write `moving` as an H.264 mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_clip(moving(frames, height, width, seed), fps, lossless=False))
    return path
