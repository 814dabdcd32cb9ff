"""Which windows are cut from the clips: random ones to learn from, evenly laid out ones to judge by."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from data_prep.clips import Clip
from iclora_train.config import Data
from iclora_train.video import ClipInfo

GOLDEN = np.array([0.7548776662466927, 0.5698402909980532])  # steps of the R2 sequence: points that keep apart


@dataclass(frozen=True)
class Window:
    """A cut out of a clip: these source frames, scaled to `scaled` (height, width), of which `size` (height, width) is
    cropped at `crop` (top, left), mirrored if `flip`. `fps` is that of the window.
    """

    clip: str
    number: int
    indices: tuple[int, ...]
    scaled: tuple[int, int]
    crop: tuple[int, int]
    size: tuple[int, int]
    flip: bool
    fps: float

    @property
    def key(self) -> str:
        """Name of the sample in the shards."""
        return f"{self.clip}-{self.number:05d}"

    @classmethod
    def of(cls, record: dict[str, Any]) -> Window:
        """The window as it stands in a record (JSON has lists for tuples)."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)


def resample(info: ClipInfo, fps: float | None) -> tuple[np.ndarray, float]:
    """Source frame numbers (m,) of the clip at `fps`, each the nearest by time; null keeps every frame."""
    if fps is None:
        return np.arange(info.frames), info.fps
    times = np.asarray(info.times)
    wanted = np.arange(int(times[-1] * fps + 1e-6) + 1) / fps
    after = np.searchsorted(times, wanted).clip(1, max(len(times) - 1, 1)) if len(times) > 1 else np.zeros(1, int)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - times[before] <= times[after] - wanted, before, after), fps


def unfit(info: ClipInfo, data: Data) -> str | None:
    """Why no window can be cut from a clip, or None."""
    if data.fps is not None and info.fps < 0.9 * data.fps:
        return f"{info.fps:g} frames a second are too few for data.fps={data.fps:g}: frames would be doubled"
    count = len(resample(info, data.fps)[0])
    if count < data.frames:
        return f"{count} frames are fewer than data.frames={data.frames}"
    height, width = _scaled(info, data, 1.0)
    if height < data.height or width < data.width:
        return f"{info.width}x{info.height} pixels do not hold data.width x data.height {data.width}x{data.height}"
    return None


def _scaled(info: ClipInfo, data: Data, zoom: float) -> tuple[int, int]:
    """(height, width) to which a clip is scaled before cropping: never enlarged, and `zoom` times what is needed."""
    if data.short_side is None:
        scale = max(data.height / info.height, data.width / info.width)
    else:
        scale = data.short_side / min(info.height, info.width)
    scale = min(1.0, scale * zoom)
    return round(info.height * scale), round(info.width * scale)


def train_windows(clips: list[tuple[Clip, ClipInfo]], data: Data) -> list[Window]:
    """`data.train_windows` windows drawn at random, as many from each clip (a remainder: from some), in clip order."""
    order = np.random.default_rng(data.seed).permutation(len(clips)).tolist()
    counts = dict.fromkeys(range(len(clips)), 0)
    windows = []
    for _, i in zip(range(data.train_windows), cycle(order), strict=False):
        clip, info = clips[i]
        windows.append(_drawn(clip, info, counts[i], data))
        counts[i] += 1
    return sorted(windows, key=lambda window: (window.clip, window.indices, window.number))


def seed_of(data: Data, clip: str, number: int, use: int) -> list[int]:
    """Seed of a window's random numbers: use 0 places the window, use 1 belongs to the maker."""
    return [data.seed, zlib.crc32(clip.encode()), number, use]


def _drawn(clip: Clip, info: ClipInfo, number: int, data: Data) -> Window:
    """Window `number` of a clip: start frame, scale, crop and mirroring drawn at random."""
    rng = np.random.default_rng(seed_of(data, clip.id, number, 0))
    frames, fps = resample(info, data.fps)
    start = int(rng.integers(len(frames) - data.frames + 1))
    height, width = _scaled(info, data, rng.uniform(1, data.zoom))
    top, left = int(rng.integers(height - data.height + 1)), int(rng.integers(width - data.width + 1))
    flip = bool(rng.integers(2)) and data.flip
    indices = tuple(frames[start : start + data.frames].tolist())
    size = (data.height, data.width)
    return Window(clip.id, number, indices, (height, width), (top, left), size, flip, fps)


def heldout_windows(clips: list[tuple[Clip, ClipInfo]], data: Data) -> list[Window]:
    """Up to `data.heldout_windows` windows without chance: disjoint in time, spread evenly over the clips and along
    each of them, every one with a crop of its own. Fewer when the clips are too short for more.
    """
    frames = {clip.id: resample(info, data.fps)[0] for clip, info in clips}
    room = {clip.id: len(frames[clip.id]) // data.frames for clip, _ in clips}
    shares = dict.fromkeys(room, 0)
    left = min(data.heldout_windows, sum(room.values()))
    for clip in cycle(room):
        if left == 0:
            break
        if shares[clip] < room[clip]:
            shares[clip] += 1
            left -= 1
    return [window for clip, info in clips for window in _laid_out(clip, info, shares[clip.id], data)]


def _laid_out(clip: Clip, info: ClipInfo, count: int, data: Data) -> Iterator[Window]:
    """`count` windows, each in the middle of its own equal part of the clip."""
    frames, fps = resample(info, data.fps)
    height, width = _scaled(info, data, 1.0)
    for number in range(count):
        start = int((number + 0.5) * len(frames) / count - data.frames / 2)
        y, x = (0.5 + number * GOLDEN) % 1
        crop = int(y * (height - data.height + 1)), int(x * (width - data.width + 1))
        indices = tuple(frames[start : start + data.frames].tolist())
        yield Window(clip.id, number, indices, (height, width), crop, (data.height, data.width), False, fps)
