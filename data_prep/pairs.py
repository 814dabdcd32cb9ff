"""Turn windows into pairs: cut the frames, call the maker, and record every parameter."""

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
from data_prep.stopwatch import Stopwatch
from iclora_train.config import Config
from iclora_train.core.types import Pair
from iclora_train.media.clip import read_clip
from iclora_train.media.frame_times import temporal_subsample
from iclora_train.media.section import Section


@dataclass(frozen=True)
class SourceVideo:
    """The video that references are made from, its section (None: all), and further files of the clip by column."""

    path: Path
    files: Mapping[str, Path] = field(default_factory=dict)
    section: Section | None = None


@dataclass(frozen=True)
class ReferenceScale:
    """Factors by which a reference is smaller (downscale) and has fewer frames (temporal_scale) than its target."""

    downscale: int = 1
    temporal_scale: int = 1


def read_windows(path: Path, windows: Sequence[Window], section: Section | None = None) -> Iterator[list[np.ndarray]]:
    """Frames of each window, uint8 (H,W,3) at the clip's own size, in one pass. `windows` are ordered by start.

    section: the section of the video that the frame numbers of the windows count from.
    """
    pending = deque(windows)
    numbers = {i for window in windows for i in window.indices}
    buffer: dict[int, np.ndarray] = {}
    for number, frame in zip(sorted(numbers), read_clip(path, numbers, section), strict=False):
        buffer[number] = frame
        while pending and pending[0].indices[-1] <= number:
            yield [buffer[i] for i in pending.popleft().indices]
        if not pending:
            return
        buffer = {i: image for i, image in buffer.items() if i >= pending[0].indices[0]}


def crop_window(frames: Sequence[np.ndarray], window: Window) -> np.ndarray:
    """The window cut from whole frames: uint8 (F,H,W,3)."""
    crop = Crop.of_window(window, frames[0].shape[:2])
    return crop.apply_all(frames)


@dataclass(frozen=True)
class PaddedWindow:
    """The pixels of a window with those around it as margin, uint8 (F,H,W,3), and their crop."""

    frames: np.ndarray
    crop: Crop

    @classmethod
    def cut(cls, frames: Sequence[np.ndarray], window: Window, margin: int) -> PaddedWindow:
        """Cut from whole frames."""
        crop = Crop.of_window(window, frames[0].shape[:2], margin)
        return cls(crop.apply_all(frames), crop)

    def inner(self) -> np.ndarray:
        """The pixels without margin: equal to `crop_window`."""
        return np.ascontiguousarray(without_margin(self.frames, self.crop))


def without_margin(frames: np.ndarray, crop: Crop) -> np.ndarray:
    """The window in frames (F,H,W,3) with margin, as a view."""
    (height, width), (top, left) = crop.size, crop.inner_offset
    return frames[:, top : top + height, left : left + width]


def make_reference(
    frames: Sequence[np.ndarray],
    window: Window,
    maker: Maker,
    video: SourceVideo,
    seed: list[int],
    scale: ReferenceScale,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Reference uint8 (F',H',W',3) of a window of whole frames, and the random parameters of the maker.

    The maker receives the window with the pixels around it as margin. Its output is cropped to the window, then reduced
    in time and size by `scale`.
    """
    return _reference_of(PaddedWindow.cut(frames, window, maker.margin), window, maker, video, seed, scale)


def _reference_of(
    padded: PaddedWindow, window: Window, maker: Maker, video: SourceVideo, seed: list[int], scale: ReferenceScale
) -> tuple[np.ndarray, dict[str, Any]]:
    crop = padded.crop
    source = SourceWindow(
        window.clip, video.path, window.indices, window.fps, crop, video.files, window.number, video.section
    )
    full, params = maker(padded.frames, np.random.default_rng(seed), source)
    reference = without_margin(temporal_subsample(full, scale.temporal_scale), crop)
    if scale.downscale > 1:
        height, width = window.size
        size = (width // scale.downscale, height // scale.downscale)
        reference = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in reference])
    return np.ascontiguousarray(reference), params


def make_pairs(clip: Clip, windows: Sequence[Window], config: Config, watch: Stopwatch | None = None) -> Iterator[Pair]:
    """The pairs of one clip, in the order of `windows` (by start). watch: gets the seconds of `decode` and `maker`."""
    task, watch = config.task, watch or Stopwatch()
    if not task.has_reference:
        yield from _targets(clip, windows, config, watch)
        return
    maker = build_maker(task.maker, task.maker_args)
    scale = ReferenceScale(task.reference_downscale, task.reference_temporal_scale)
    video = SourceVideo(
        clip.reference or clip.path, clip.files, clip.reference_section if clip.reference else clip.section
    )
    targets = watch.each("decode", read_windows(clip.path, windows, clip.section))
    supplied = read_windows(clip.reference, windows, clip.reference_section) if clip.reference else None
    sources = watch.each("decode", supplied) if supplied else None
    for window, frames in zip(windows, targets, strict=True):
        seed = window_seed(config.data, clip.id, window.number, 1)
        source = next(sources) if sources else frames
        with watch.part("maker"):
            padded = PaddedWindow.cut(source, window, maker.margin)
            target = crop_window(frames, window) if sources else padded.inner()
            reference, params = _reference_of(padded, window, maker, video, seed, scale)
        record = _record(clip, window, task.maker)
        record |= {"args": _set_args(maker), "seed": seed, "drawn": params, **asdict(scale)}
        if scale.temporal_scale > 1:
            record["reference_frames"] = temporal_subsample(np.arange(len(frames)), scale.temporal_scale).tolist()
        yield Pair(window.key, target, (reference,), caption_of(clip, config), window.fps, record)


def _targets(clip: Clip, windows: Sequence[Window], config: Config, watch: Stopwatch) -> Iterator[Pair]:
    """The windows of one clip as pairs without a reference."""
    for window, frames in zip(
        windows, watch.each("decode", read_windows(clip.path, windows, clip.section)), strict=True
    ):
        record = _record(clip, window, config.task.maker)
        yield Pair(window.key, crop_window(frames, window), (), caption_of(clip, config), window.fps, record)


def _record(clip: Clip, window: Window, maker: str) -> dict[str, object]:
    """What the record of every pair has."""
    record: dict[str, object] = {
        "file": clip.path.name,
        "source": clip.source,
        "licence": clip.licence,
        "window": asdict(window),
        "maker": maker,
    }
    return record if clip.section is None else record | {"section": clip.section.bounds}


def _set_args(maker: Maker) -> dict[str, Any]:
    """The arguments of a maker that are not null; together they rebuild the maker."""
    args: dict[str, Any] = asdict(maker)  # type: ignore[call-overload]  # every maker is a dataclass
    return {name: value for name, value in args.items() if value is not None}
