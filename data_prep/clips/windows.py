"""Choose the windows that are cut from clips: random or selected for training, evenly spaced for val and heldout."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np

from data_prep.clips.probed_clip import ProbedClip
from iclora_train.config import Data

MAKER_USES = 10  # of `window_seed`: before the uses of the makers of further references
GOLDEN = np.array([0.7548776662466927, 0.5698402909980532])  # steps of the R2 sequence: well spread points in 2D


@dataclass(frozen=True)
class Window:
    """A part of a clip in time and space.

    The source frames `indices` are scaled to `scaled` (height, width), cropped to `size` (height, width) at `crop`
    (top, left), and mirrored if `flip`. fps: frame rate of the window.
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
        """Key of the sample in the shards."""
        return f"{self.clip}-{self.number:05d}"

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Window:
        """The window in the record of a pair, where JSON has lists for tuples."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)


def train_windows(clips: list[ProbedClip], data: Data) -> list[Window]:
    """`data.train_windows` windows, equally many per clip (a remainder goes to some clips), in clip order.

    `data.pick` selects where the windows start. There are fewer windows if `data.pick` allows fewer starts.
    """
    order = np.random.default_rng(data.seed).permutation(len(clips)).tolist()
    windows = islice(_round_robin([_windows_of(clips[i], data) for i in order]), data.train_windows)
    return sorted(windows, key=lambda window: (window.clip, window.indices, window.number))


def _round_robin(sources: list[Iterator[Window]]) -> Iterator[Window]:
    """One window of each source, then another one of each source that is not exhausted, and so on."""
    while sources:
        active = []
        for source in sources:
            for window in islice(source, 1):
                yield window
                active.append(source)
        sources = active


def window_seed(data: Data, clip: str, number: int, use: int) -> list[int]:
    """Seed of a window's random numbers.

    use: 0 for its position, 1 for the maker of its first reference, 2 for the order of the starts, MAKER_USES + n for
    the maker of reference n (1: the second).
    """
    return [data.seed, zlib.crc32(clip.encode()), number, use]


def _windows_of(clip: ProbedClip, data: Data) -> Iterator[Window]:
    """Train windows of a clip. Scale, crop and mirroring are random; the start is random if data.pick is random."""
    data = clip.best_bucket(data)
    frames, fps = clip.frame_numbers(data.fps)
    starts = np.array(clip.window_starts(data))
    picked_starts = _picked_starts(clip, data)
    for number in count() if picked_starts is None else range(len(picked_starts)):
        rng = np.random.default_rng(window_seed(data, clip.clip.id, number, 0))
        start = int(starts[rng.integers(len(starts))]) if picked_starts is None else picked_starts[number]
        height, width = clip.scaled_size(data, rng.uniform(1, data.zoom))
        top, left = int(rng.integers(height - data.height + 1)), int(rng.integers(width - data.width + 1))
        flip = bool(rng.integers(2)) and data.flip
        indices = tuple(frames[start : start + data.frames].tolist())
        size = (data.height, data.width)
        yield Window(clip.clip.id, number, indices, (height, width), (top, left), size, flip, fps)


def _picked_starts(clip: ProbedClip, data: Data) -> list[int] | None:
    """Starts by data.pick in order of use: every `data.stride` frames, shuffled, or the best starts without overlap.

    None for random starts.
    """
    if data.pick in (None, "random"):
        return None
    stride = data.stride or max(data.frames // 2, 1)
    starts = [start for first, last in clip.scenes(data.fps) for start in range(first, last - data.frames + 1, stride)]
    if data.pick == "stride":
        rng = np.random.default_rng(window_seed(data, clip.clip.id, 0, 2))
        return [starts[i] for i in rng.permutation(len(starts))]
    quality = clip.quality[clip.frame_numbers(data.fps)[0]]
    best: list[int] = []
    for start in sorted(starts, key=lambda start: -float(quality[start : start + data.frames].mean())):
        if all(abs(start - other) >= data.frames for other in best):
            best.append(start)
    return best


def heldout_windows(clips: list[ProbedClip], data: Data) -> list[Window]:
    """Up to `data.heldout_windows` deterministic windows; fewer if the clips are too short.

    The windows are disjoint in time, evenly spread over the clips and along each clip, and have different crops.
    """
    settings = [clip.best_bucket(data) for clip in clips]
    capacities = [[(b - a) // d.frames for a, b in c.scenes(d.fps)] for c, d in zip(clips, settings, strict=True)]
    shares = _distribute([sum(capacity) for capacity in capacities], data.heldout_windows)
    windows: list[Window] = []
    for clip, capacity, share, clip_data in zip(clips, capacities, shares, settings, strict=True):
        windows += _evenly_spaced(clip, _distribute(capacity, share), clip_data)
    return windows


def _distribute(capacities: list[int], total: int) -> list[int]:
    """Distribute `total` items one by one in turn, up to each capacity. Returns the number of items per capacity."""
    shares = [0] * len(capacities)
    turns = (
        i for turn in range(max(capacities, default=0)) for i, capacity in enumerate(capacities) if turn < capacity
    )
    for i in islice(turns, total):
        shares[i] += 1
    return shares


def _evenly_spaced(clip: ProbedClip, shares: list[int], data: Data) -> Iterator[Window]:
    """Windows in the scenes of a clip, `shares` per scene, each in the middle of an equal part of its scene."""
    frames, fps = clip.frame_numbers(data.fps)
    height, width = clip.scaled_size(data, 1.0)
    starts = [
        first + int((number + 0.5) * (last - first) / share - data.frames / 2)
        for (first, last), share in zip(clip.scenes(data.fps), shares, strict=True)
        for number in range(share)
    ]
    for number, start in enumerate(starts):
        y, x = (0.5 + number * GOLDEN) % 1
        crop = int(y * (height - data.height + 1)), int(x * (width - data.width + 1))
        indices = tuple(frames[start : start + data.frames].tolist())
        yield Window(clip.clip.id, number, indices, (height, width), crop, (data.height, data.width), False, fps)
