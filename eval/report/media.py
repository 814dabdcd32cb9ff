"""Pictures and clips for the report. They are for the eye only: all figures are measured before anything is encoded."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.metrics import Clip
from iclora_train.core.atomic_files import write_atomic
from iclora_train.data.video import encode_clip

INLINE_BYTES = 48 << 20  # of media inside the page; what comes after lies beside it
SHOWN_WIDTH = 192  # smaller clips are enlarged to about this width, each pixel to a square
CHANGE_FULL = 64  # levels of change shown as the brightest colour


class Media:
    """Hands out addresses for media: data URIs up to INLINE_BYTES in all, then files in `media/` beside the page."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.room = folder, INLINE_BYTES
        self._known: dict[str, str] = {}

    def clip(self, name: str, clip: Clip, fps: float) -> str:
        """Address of an H.264 yuv420p file of a clip, enlarged without smoothing. A name stands for one clip."""
        if name not in self._known:
            data = encode_clip(enlarge(clip), fps, lossless=False)
            self._known[name] = self._address(f"{name}.mp4", "video/mp4", data)
        return self._known[name]

    def picture(self, name: str, frame: Clip) -> str:
        """Address of a PNG of an RGB frame (H,W,3)."""
        _, data = cv2.imencode(".png", np.ascontiguousarray(frame[..., ::-1]))
        return self._address(f"{name}.png", "image/png", data.tobytes())

    def _address(self, name: str, kind: str, data: bytes) -> str:
        if len(data) <= self.room:
            self.room -= len(data)
            return f"data:{kind};base64,{base64.b64encode(data).decode()}"
        with write_atomic(self.folder / "media" / name) as file:
            file.write(data)
        return f"media/{name}"


def enlarge(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames (...,H,W,3) with every pixel repeated to a square, to about SHOWN_WIDTH; larger ones as they are."""
    factor = max(1, round(SHOWN_WIDTH / frames.shape[-2]))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def thumbnail(frame: Clip) -> NDArray[np.uint8]:
    """A frame (H,W,3) at about SHOWN_WIDTH: small ones enlarged, large ones averaged down."""
    height, width = frame.shape[:2]
    if width <= SHOWN_WIDTH:
        return enlarge(frame)
    size = (SHOWN_WIDTH, max(1, round(height * SHOWN_WIDTH / width)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def change_clip(first: Clip, second: Clip) -> NDArray[np.uint8]:
    """Where and when two clips (F,H,W,3) differ: mean absolute difference over colours, as colours."""
    difference = np.abs(first.astype(np.int16) - second).mean(3)  # (F,H,W)
    levels = np.clip(difference * 255 / CHANGE_FULL, 0, 255).round().astype(np.uint8)
    colours = [cv2.applyColorMap(frame, cv2.COLORMAP_INFERNO)[..., ::-1] for frame in levels]
    return np.stack(colours).astype(np.uint8)
