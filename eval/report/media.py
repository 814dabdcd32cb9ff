"""Encode clips and pictures for the report. For viewing only: all metrics are measured before encoding."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.metrics import Clip
from iclora_train.core.atomic_files import write_atomic
from iclora_train.media.shard_clip import encode_clip

INLINE_BYTES = 48 << 20  # media up to this total size are inlined in report.html, the rest are files in media/
SHOWN_WIDTH = 192  # smaller clips are enlarged to about this width by repeating pixels
CHANGE_FULL = 64  # levels of change shown as the brightest colour


class Media:
    """Stores media and returns their addresses: data URIs up to INLINE_BYTES in total, then files in `media/`.

    A file's name holds a hash of its content, so an earlier report keeps its files until `remove_others`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bytes_left = folder, INLINE_BYTES
        self._addresses: dict[str, str] = {}
        self._files: set[str] = set()

    def clip(self, name: str, clip: Clip, fps: float) -> str:
        """Address of a clip as H.264 yuv420p, enlarged without smoothing. Each name is encoded once."""
        if name not in self._addresses:
            data = encode_clip(enlarge(clip), fps, lossless=False)
            self._addresses[name] = self._address(f"{name}.mp4", "video/mp4", data)
        return self._addresses[name]

    def picture(self, name: str, frame: Clip) -> str:
        """Address of a PNG of an RGB frame (H,W,3)."""
        _, data = cv2.imencode(".png", np.ascontiguousarray(frame[..., ::-1]))
        return self._address(f"{name}.png", "image/png", data.tobytes())

    def _address(self, name: str, kind: str, data: bytes) -> str:
        if len(data) <= self.bytes_left:
            self.bytes_left -= len(data)
            return f"data:{kind};base64,{base64.b64encode(data).decode()}"
        stem, _, suffix = name.rpartition(".")
        name = f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}.{suffix}"
        with write_atomic(self.folder / "media" / name) as file:
            file.write(data)
        self._files.add(name)
        return f"media/{name}"

    def remove_others(self) -> None:
        """Remove the files in `media/` of an earlier report."""
        for path in (self.folder / "media").glob("*"):
            if path.is_file() and path.name not in self._files:
                path.unlink()


def enlarge(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames (...,H,W,3) enlarged to about SHOWN_WIDTH by repeating pixels; larger frames are unchanged."""
    factor = max(1, round(SHOWN_WIDTH / frames.shape[-2]))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def thumbnail(frame: Clip) -> NDArray[np.uint8]:
    """A frame (H,W,3) at about SHOWN_WIDTH: enlarged by repeating pixels, or averaged down."""
    height, width = frame.shape[:2]
    if width <= SHOWN_WIDTH:
        return enlarge(frame)
    size = (SHOWN_WIDTH, max(1, round(height * SHOWN_WIDTH / width)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def change_clip(first: Clip, second: Clip) -> NDArray[np.uint8]:
    """Heat map (F,H,W,3) of the mean absolute difference over colours between two clips."""
    difference = np.abs(first.astype(np.int16) - second).mean(3)  # (F,H,W)
    levels = np.clip(difference * 255 / CHANGE_FULL, 0, 255).round().astype(np.uint8)
    colours = [cv2.applyColorMap(frame, cv2.COLORMAP_INFERNO)[..., ::-1] for frame in levels]
    return np.stack(colours).astype(np.uint8)
