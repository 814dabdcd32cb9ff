"""Windows become pairs: cut the frames, let the maker make the reference, write down how."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_prep.clips import Clip
from data_prep.makers import Maker, make
from data_prep.windows import Window, seed_of
from iclora_train.config import Config
from iclora_train.pair import Pair
from iclora_train.video import read_clip


def read_windows(path: Path, windows: Sequence[Window]) -> Iterator[list[np.ndarray]]:
    """Frames of each window, uint8 (H,W,3) of the clip's own size, in one pass; `windows` are ordered by start."""
    waiting = deque(windows)
    wanted = {i for window in windows for i in window.indices}
    held: dict[int, np.ndarray] = {}
    for number, frame in zip(sorted(wanted), read_clip(path, wanted), strict=False):
        held[number] = frame
        while waiting and waiting[0].indices[-1] <= number:
            yield [held[i] for i in waiting.popleft().indices]
        if not waiting:
            return
        held = {i: kept for i, kept in held.items() if i >= waiting[0].indices[0]}


def cut(frames: Sequence[np.ndarray], window: Window, margin: int = 0) -> tuple[np.ndarray, tuple[int, int]]:
    """The window with `margin` more pixels on each side where the picture has them: uint8 (F,H+,W+,3), and where in it
    the window itself begins (top, left).
    """
    (height, width), (y, x), (full_height, full_width) = window.size, window.crop, window.scaled
    top, bottom = max(y - margin, 0), min(y + height + margin, full_height)
    left, right = max(x - margin, 0), min(x + width + margin, full_width)
    pieces = []
    for frame in frames:
        same = frame.shape[:2] == window.scaled
        scaled = frame if same else cv2.resize(frame, (full_width, full_height), interpolation=cv2.INTER_AREA)
        pieces.append(scaled[top:bottom, left:right])
    if window.flip:
        return np.stack(pieces)[:, :, ::-1].copy(), (y - top, right - x - width)
    return np.stack(pieces), (y - top, x - left)


def make_reference(
    frames: Sequence[np.ndarray], window: Window, maker: Maker, seed: list[int], downscale: int, temporal_scale: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Reference uint8 (F',H',W',3) of a window, and what the maker drew. It is made with the picture around the window,
    cropped, then thinned out to every `temporal_scale`-th frame and averaged down by `downscale`.
    """
    padded, (top, left) = cut(frames, window, maker.margin)
    made, drawn = maker(padded, np.random.default_rng(seed))
    height, width = window.size
    reference = made[::temporal_scale, top : top + height, left : left + width]
    if downscale > 1:
        size = (width // downscale, height // downscale)
        reference = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in reference])
    return np.ascontiguousarray(reference), drawn


def make_pairs(clip: Clip, windows: Sequence[Window], config: Config) -> Iterator[Pair]:
    """The pairs of one clip, in the order of `windows` (by start)."""
    task = config.task
    maker = make(task.maker, task.maker_args)
    targets = read_windows(clip.path, windows)
    sources = read_windows(clip.reference, windows) if clip.reference else None
    for window, frames in zip(windows, targets, strict=True):
        seed = seed_of(config.data, clip.id, window.number, 1)
        scales = {"downscale": task.reference_downscale, "temporal_scale": task.reference_temporal_scale}
        reference, drawn = make_reference(next(sources) if sources else frames, window, maker, seed, **scales)
        record: dict[str, object] = {
            "file": clip.path.name,
            "source": clip.source,
            "licence": clip.licence,
            "window": asdict(window),
            "maker": task.maker,
            "args": asdict(maker),  # type: ignore[call-overload]  # every maker is a dataclass
            "seed": seed,
            "drawn": drawn,
            **scales,
        }
        caption = " ".join(part for part in (task.trigger, clip.caption) if part)
        yield Pair(window.key, cut(frames, window)[0], (reference,), caption, window.fps, record)


def remake(path: Path, record: dict[str, Any]) -> np.ndarray:
    """The reference once more, from its record and the video it was made from (the clip, or its given reference)."""
    window = Window.of(record["window"])
    frames = next(read_windows(path, [window]))
    maker = make(record["maker"], record["args"])
    return make_reference(frames, window, maker, record["seed"], record["downscale"], record["temporal_scale"])[0]
