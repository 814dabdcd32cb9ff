"""Encode clips and pictures for the report. For viewing only: all metrics are measured before encoding."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.metrics import Clip
from eval.report.exhibits import Exhibit
from iclora_train.core.atomic_files import write_atomic
from iclora_train.media.shard_clip import PREVIEW_SIDE, encode_clip, encode_preview

FOLDER = "media"
SHOWN_WIDTH = 192  # smaller clips are enlarged to about this width by repeating pixels
POSTER_WIDTH = 320
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 70)
CHANGE_FULL = 64  # levels of change shown as the brightest colour


class Media:
    """Stores the clips and pictures of a report and returns their addresses: files in `media/`, which a browser loads
    when they come near the screen, or data URIs in the page (`single`), where large clips are small versions.

    Each clip is encoded once, also for W&B (`file`) and for `outputs/` (`read`). A file's name holds a hash of its
    content, so an earlier report keeps its files until `remove_others`. bytes: size of all clips and pictures so far.
    with_files: write the files although the page does not need them.
    """

    def __init__(self, folder: Path, single: bool = False, with_files: bool = False) -> None:
        self.folder, self.single, self.with_files = folder, single, with_files
        self.bytes = 0
        self._addresses: dict[str, str] = {}
        self._files: dict[str, Path] = {}  # name -> file

    def clip(self, name: str, clip: Clip, fps: float) -> str:
        """Address of a clip as H.264 yuv420p, enlarged without smoothing. Each name is encoded once."""
        if name not in self._addresses:
            data = self.encode(clip, fps, small=self.single and is_large(clip))
            self._addresses[name] = self._address(name, "mp4", "video/mp4", data)
        return self._addresses[name]

    def encode(self, clip: Clip, fps: float, small: bool = False) -> bytes:
        """A clip as the page shows it. small: with a short side of PREVIEW_SIDE."""
        return encode_preview(clip, fps) if small else encode_clip(enlarge(clip), fps, lossless=False)

    def shown(self, exhibit: Exhibit, condition: str) -> str:
        """Address of a clip of a window."""
        name = clip_name(exhibit.window.number, condition)
        if name not in self._addresses:
            self.clip(name, exhibit.clips[condition], exhibit.fps)
        return self._addresses[name]

    def preview(self, exhibit: Exhibit, condition: str) -> str:
        """Address of a small version of a clip of a window; of the clip itself if that is small."""
        clip = exhibit.clips[condition]
        if self.single or not is_large(clip):
            return self.shown(exhibit, condition)
        name = preview_name(exhibit.window.number, condition)
        if name not in self._addresses:
            data = self.encode(clip, exhibit.fps, small=True)
            self._addresses[name] = self._address(name, "mp4", "video/mp4", data)
        return self._addresses[name]

    def read(self, exhibit: Exhibit, condition: str) -> bytes:
        """A clip of a window in its own size, encoded."""
        clip = exhibit.clips[condition]
        if enlarge(clip).shape != clip.shape or (self.single and is_large(clip)):
            return encode_clip(clip, exhibit.fps, lossless=False)
        address = self.shown(exhibit, condition)
        _, inline, data = address.partition("base64,")
        return base64.b64decode(data) if inline else (self.folder / address).read_bytes()

    def file(self, number: int, condition: str, preview: bool = False) -> Path | None:
        """The file of a clip of window `number`; None if the report does not show it. preview: the small version."""
        names = [preview_name(number, condition)] if preview else []
        written = [self._files[name] for name in (*names, clip_name(number, condition)) if name in self._files]
        return written[0] if written else None

    def picture(self, name: str, frame: Clip) -> str:
        """Address of a PNG of an RGB frame (H,W,3)."""
        return self._address(name, "png", "image/png", as_png(frame))

    def poster(self, frame: Clip) -> str:
        """A data URI of an RGB frame (H,W,3) as a small JPEG, which a page shows before anything is loaded."""
        small = thumbnail(frame, POSTER_WIDTH)
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), JPEG)
        return data_uri("image/jpeg", data.tobytes())

    def _address(self, name: str, suffix: str, kind: str, data: bytes) -> str:
        assert name not in self._files, name  # the page would lose the first one
        self.bytes += len(data)
        path = self.folder / FOLDER / f"{name}-{hashlib.sha256(data).hexdigest()[:8]}.{suffix}"
        if not self.single or self.with_files:
            with write_atomic(path) as file:
                file.write(data)
            self._files[name] = path
        return data_uri(kind, data) if self.single else f"{FOLDER}/{path.name}"

    def files(self) -> Iterator[Path]:
        """The files in `media/` of this report."""
        yield from self._files.values()

    def remove_others(self) -> None:
        """Remove the files in `media/` of an earlier report."""
        kept = set(self.files())
        for path in (self.folder / FOLDER).glob("*"):
            if path.is_file() and path not in kept:
                path.unlink()


def as_png(frame: Clip) -> bytes:
    """An RGB frame (H,W,3) as PNG."""
    _, data = cv2.imencode(".png", np.ascontiguousarray(frame[..., ::-1]))
    return data.tobytes()


def picture_address(frame: Clip) -> str:
    """A data URI of an RGB frame (H,W,3) as PNG."""
    return data_uri("image/png", as_png(frame))


def clip_name(number: int, condition: str) -> str:
    """`003-adapter+reference`: name of a clip of a window."""
    safe = re.sub(r"[^\w.+-]", "-", condition)
    return f"{number:03d}-{safe}"


def preview_name(number: int, condition: str) -> str:
    """Name of the small version of a clip of a window."""
    return f"{clip_name(number, condition)}-preview"


def data_uri(kind: str, data: bytes) -> str:
    """Data as an address, for a page that needs no other file. kind: a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def is_large(clip: Clip) -> bool:
    """Whether a small version of a clip (F,H,W,3) is smaller than the clip."""
    return min(clip.shape[1:3]) > PREVIEW_SIDE


def enlarge(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames (...,H,W,3) enlarged to about SHOWN_WIDTH by repeating pixels; larger frames are unchanged."""
    factor = max(1, round(SHOWN_WIDTH / frames.shape[-2]))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def thumbnail(frame: Clip, shown_width: int = SHOWN_WIDTH) -> NDArray[np.uint8]:
    """A frame (H,W,3) at about `shown_width`: enlarged by repeating pixels up to SHOWN_WIDTH, or averaged down."""
    height, width = frame.shape[:2]
    if width <= shown_width:
        return enlarge(frame)
    size = (shown_width, max(1, round(height * shown_width / width)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def change_clip(first: Clip, second: Clip) -> NDArray[np.uint8]:
    """Heat map (F,H,W,3) of the mean absolute difference over colours between two clips."""
    difference = np.abs(first.astype(np.int16) - second).mean(3)  # (F,H,W)
    levels = np.clip(difference * 255 / CHANGE_FULL, 0, 255).round().astype(np.uint8)
    colours = [cv2.applyColorMap(frame, cv2.COLORMAP_INFERNO)[..., ::-1] for frame in levels]
    return np.stack(colours).astype(np.uint8)
