"""Windows become pairs: cut the frames, let the maker make the reference, write down how."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_prep.clips.captions import caption_of
from data_prep.clips.clip_list import Clip
from data_prep.clips.crop import Crop
from data_prep.clips.windows import Window, window_seed
from data_prep.makers import Maker, SourceWindow, build_maker
from iclora_train.config import Config
from iclora_train.core.types import Pair
from iclora_train.data.video import read_clip


@dataclass(frozen=True)
class SourceVideo:
    """A video that references are made from, and the files that come with it, by column of the clip list."""

    path: Path
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferenceScale:
    """How many times smaller, and how many times fewer frames a reference has than its target."""

    downscale: int = 1
    temporal_scale: int = 1


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


def crop_window(frames: Sequence[np.ndarray], window: Window) -> np.ndarray:
    """The window out of whole frames: uint8 (F,H,W,3)."""
    crop = Crop.of_window(window, frames[0].shape[:2])
    return np.stack([crop.apply(frame) for frame in frames])


def make_reference(
    frames: Sequence[np.ndarray],
    window: Window,
    maker: Maker,
    video: SourceVideo,
    seed: list[int],
    scales: ReferenceScale,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Reference uint8 (F',H',W',3) of a window, and what the maker drew. It is made with the picture around the window,
    cropped, then thinned out and averaged down by `scales`.
    """
    crop = Crop.of_window(window, frames[0].shape[:2], maker.margin)
    padded = np.stack([crop.apply(frame) for frame in frames])
    source = SourceWindow(window.clip, video.path, window.indices, window.fps, crop, video.files, window.number)
    made, drawn = maker(padded, np.random.default_rng(seed), source)
    (height, width), (top, left) = window.size, crop.inner_offset
    reference = made[:: scales.temporal_scale, top : top + height, left : left + width]
    if scales.downscale > 1:
        size = (width // scales.downscale, height // scales.downscale)
        reference = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in reference])
    return np.ascontiguousarray(reference), drawn


def make_pairs(clip: Clip, windows: Sequence[Window], config: Config) -> Iterator[Pair]:
    """The pairs of one clip, in the order of `windows` (by start)."""
    task = config.task
    maker = build_maker(task.maker, task.maker_args)
    scales = ReferenceScale(task.reference_downscale, task.reference_temporal_scale)
    video = SourceVideo(clip.reference or clip.path, clip.files)
    targets = read_windows(clip.path, windows)
    sources = read_windows(clip.reference, windows) if clip.reference else None
    for window, frames in zip(windows, targets, strict=True):
        seed = window_seed(config.data, clip.id, window.number, 1)
        reference, drawn = make_reference(next(sources) if sources else frames, window, maker, video, seed, scales)
        record: dict[str, object] = {
            "file": clip.path.name,
            "source": clip.source,
            "licence": clip.licence,
            "window": asdict(window),
            "maker": task.maker,
            "args": _args(maker),
            "seed": seed,
            "drawn": drawn,
            **asdict(scales),
        }
        yield Pair(window.key, crop_window(frames, window), (reference,), caption_of(clip, config), window.fps, record)


def _args(maker: Maker) -> dict[str, Any]:
    """The arguments of a maker, those that are null aside: it is made again from them."""
    every: dict[str, Any] = asdict(maker)  # type: ignore[call-overload]  # every maker is a dataclass
    return {name: value for name, value in every.items() if value is not None}


def remake(video: SourceVideo, record: dict[str, Any]) -> np.ndarray:
    """The reference once more, from its record and the video it was made from (the clip, or its given reference)."""
    window = Window.from_record(record["window"])
    frames = next(read_windows(video.path, [window]))
    maker, scales = (
        build_maker(record["maker"], record["args"]),
        ReferenceScale(record["downscale"], record["temporal_scale"]),
    )
    return make_reference(frames, window, maker, video, record["seed"], scales)[0]
