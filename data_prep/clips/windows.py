"""Which windows are cut from the clips: drawn or chosen ones to learn from, evenly laid out ones to judge by."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np

from data_prep.clips.probed_clip import ProbedClip
from iclora_train.config import Data

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
    def from_record(cls, record: dict[str, Any]) -> Window:
        """The window as it stands in a record (JSON has lists for tuples)."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)


def train_windows(footage: list[ProbedClip], data: Data) -> list[Window]:
    """`data.train_windows` windows, as many from each clip (a remainder: from some), in clip order. `data.pick` says
    where they begin; fewer when it finds no more places.
    """
    order = np.random.default_rng(data.seed).permutation(len(footage)).tolist()
    windows = islice(_in_turn([_windows_of(footage[i], data) for i in order]), data.train_windows)
    return sorted(windows, key=lambda window: (window.clip, window.indices, window.number))


def _in_turn(sources: list[Iterator[Window]]) -> Iterator[Window]:
    """One window of each source, one more of each that has more, and so on."""
    while sources:
        left = []
        for source in sources:
            for window in islice(source, 1):
                yield window
                left.append(source)
        sources = left


def window_seed(data: Data, clip: str, number: int, use: int) -> list[int]:
    """Seed of a window's random numbers: use 0 places the window, use 1 belongs to the maker."""
    return [data.seed, zlib.crc32(clip.encode()), number, use]


def _windows_of(footage: ProbedClip, data: Data) -> Iterator[Window]:
    """Train windows of a clip: scale, crop and mirroring are drawn at random, and the start if data.pick is random."""
    data = footage.best_bucket(data)
    frames, fps = footage.frame_numbers(data.fps)
    starts = np.array(footage.window_starts(data))
    chosen = _chosen(footage, data)
    for number in count() if chosen is None else range(len(chosen)):
        rng = np.random.default_rng(window_seed(data, footage.clip.id, number, 0))
        start = int(starts[rng.integers(len(starts))]) if chosen is None else chosen[number]
        height, width = footage.scaled_size(data, rng.uniform(1, data.zoom))
        top, left = int(rng.integers(height - data.height + 1)), int(rng.integers(width - data.width + 1))
        flip = bool(rng.integers(2)) and data.flip
        indices = tuple(frames[start : start + data.frames].tolist())
        size = (data.height, data.width)
        yield Window(footage.clip.id, number, indices, (height, width), (top, left), size, flip, fps)


def _chosen(footage: ProbedClip, data: Data) -> list[int] | None:
    """Starts by data.pick, the first to be taken first: every `data.stride` frames, in a mixed order; or the best that
    do not overlap. None for random ones.
    """
    if data.pick in (None, "random"):
        return None
    stride = data.stride or max(data.frames // 2, 1)
    places = [
        start for first, last in footage.scenes(data.fps) for start in range(first, last - data.frames + 1, stride)
    ]
    if data.pick == "stride":
        rng = np.random.default_rng(window_seed(data, footage.clip.id, 0, 2))
        return [places[i] for i in rng.permutation(len(places))]
    quality = footage.quality[footage.frame_numbers(data.fps)[0]]
    best: list[int] = []
    for start in sorted(places, key=lambda start: -float(quality[start : start + data.frames].mean())):
        if all(abs(start - other) >= data.frames for other in best):
            best.append(start)
    return best


def heldout_windows(footage: list[ProbedClip], data: Data) -> list[Window]:
    """Up to `data.heldout_windows` windows without chance: disjoint in time, spread evenly over the clips and along
    each of them, every one with a crop of its own. Fewer when the clips are too short for more.
    """
    fitted = [material.best_bucket(data) for material in footage]
    rooms = [[(b - a) // d.frames for a, b in m.scenes(d.fps)] for m, d in zip(footage, fitted, strict=True)]
    shares = _shared([sum(room) for room in rooms], data.heldout_windows)
    windows: list[Window] = []
    for material, room, share, own in zip(footage, rooms, shares, fitted, strict=True):
        windows += _laid_out(material, _shared(room, share), own)
    return windows


def _shared(rooms: list[int], total: int) -> list[int]:
    """How many of `total` go to each place, one by one in turn, as far as there is room."""
    shares = [0] * len(rooms)
    turns = (i for turn in range(max(rooms, default=0)) for i, room in enumerate(rooms) if turn < room)
    for i in islice(turns, total):
        shares[i] += 1
    return shares


def _laid_out(footage: ProbedClip, shares: list[int], data: Data) -> Iterator[Window]:
    """Windows in the runs of a clip, `shares` in each: every one in the middle of its own equal part of the run."""
    frames, fps = footage.frame_numbers(data.fps)
    height, width = footage.scaled_size(data, 1.0)
    starts = [
        first + int((number + 0.5) * (last - first) / share - data.frames / 2)
        for (first, last), share in zip(footage.scenes(data.fps), shares, strict=True)
        for number in range(share)
    ]
    for number, start in enumerate(starts):
        y, x = (0.5 + number * GOLDEN) % 1
        crop = int(y * (height - data.height + 1)), int(x * (width - data.width + 1))
        indices = tuple(frames[start : start + data.frames].tolist())
        yield Window(footage.clip.id, number, indices, (height, width), crop, (data.height, data.width), False, fps)
