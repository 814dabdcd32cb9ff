"""Turn windows into pairs: cut the frames, call the maker, and record every parameter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_prep.clips.captions import caption_of
from data_prep.clips.clip_list import Clip
from data_prep.clips.crop import Crop
from data_prep.clips.windows import MAKER_USES, Window, window_seed
from data_prep.given_masks import make_mask, mask_maker
from data_prep.makers import Maker, SourceWindow, build_maker
from data_prep.makers.given import Given
from data_prep.sound import PairSounds
from data_prep.stopwatch import Stopwatch
from iclora_train.config import Config, Task
from iclora_train.config.places import frame_range, is_drawn
from iclora_train.config.references import reference_keys
from iclora_train.core.types import Pair, Sound
from iclora_train.data.shard_sample import SILENCE
from iclora_train.media.clip import read_clip
from iclora_train.media.frame_times import temporal_subsample
from iclora_train.media.section import Section

PLACE = 1  # after the seed of a reference: the seed of its place, so that the maker draws what it draws without one


@dataclass(frozen=True)
class SourceVideo:
    """The video that references are made from, its section (None: all), and further files of the clip by column.

    curve_frames: see `SourceWindow`.
    """

    path: Path
    files: Mapping[str, Path] = field(default_factory=dict)
    section: Section | None = None
    curve_frames: int | None = None


@dataclass(frozen=True)
class ReferenceScale:
    """Factors by which a reference is smaller (downscale) and has fewer frames (temporal_scale) than its target."""

    downscale: int = 1
    temporal_scale: int = 1


def read_windows(
    path: Path,
    windows: Sequence[Window],
    section: Section | None = None,
    times: dict[int, Fraction] | None = None,
) -> Iterator[list[np.ndarray]]:
    """Frames of each window, uint8 (H,W,3) at the clip's own size, in one pass. `windows` are ordered by start.

    section: the section of the video that the frame numbers of the windows count from. times: as in `read_clip`.
    """
    pending = deque(windows)
    numbers = {i for window in windows for i in window.indices}
    buffer: dict[int, np.ndarray] = {}
    for number, frame in zip(sorted(numbers), read_clip(path, numbers, section, times), strict=False):
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
    place: int | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Reference uint8 (F',H',W',3) of a window of whole frames, and the random parameters of the maker.

    The maker receives the window with the pixels around it as margin. Its output is cropped to the window, then reduced
    in time and size by `scale`. place: only this frame of it, for a reference whose place is drawn.
    """
    return reference_of(PaddedWindow.cut(frames, window, maker.margin), window, maker, video, seed, scale, place)


def reference_of(
    padded: PaddedWindow,
    window: Window,
    maker: Maker,
    video: SourceVideo,
    seed: list[int],
    scale: ReferenceScale,
    place: int | None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """`make_reference` of a window that was cut before."""
    crop, numbers = padded.crop, window.indices
    source = SourceWindow(
        *(window.clip, video.path, numbers, window.fps, crop),
        *(video.files, window.number, video.section, place, video.curve_frames),
    )
    full, params = maker(padded.frames, np.random.default_rng(seed), source)
    if place is not None and len(full) > 1:
        full = full[place : place + 1]
    reference = without_margin(temporal_subsample(full, scale.temporal_scale), crop)
    if scale.downscale > 1:
        height, width = window.size
        size = (width // scale.downscale, height // scale.downscale)
        reference = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in reference])
    return np.ascontiguousarray(reference), params


def draw_place(key: str, frame: Any, seed: list[int], frames: int) -> int:
    """A frame of a window of `frames` frames, drawn as setting `key` (`frame`: any, or [first, last]) says."""
    first, last = frame_range(key, frame, frames)
    return int(np.random.default_rng([*seed, PLACE]).integers(first, last + 1))


@dataclass(frozen=True)
class ReferenceSource:
    """How one reference of a clip's windows is made. supplied: it is made from its own video, not from the target's."""

    number: int
    task: Task
    maker: Maker
    video: SourceVideo
    supplied: bool

    @classmethod
    def of(cls, clip: Clip, task: Task, number: int) -> ReferenceSource:
        """Reference `number` (0: the first) of a clip."""
        part = task.of_reference(number)
        maker = build_maker(part.maker, part.maker_args)
        supplied = clip.reference if number == 0 else clip.files[maker.column] if isinstance(maker, Given) else None
        section = clip.reference_section if number == 0 and supplied else clip.section
        return cls(number, part, maker, SourceVideo(supplied or clip.path, clip.files, section), supplied is not None)

    def frames(
        self, windows: Sequence[Window], times: dict[int, Fraction] | None = None
    ) -> Iterator[list[np.ndarray]] | None:
        """The whole frames of each window; None if the reference is made from the target's frames. times: as in
        `read_clip`."""
        return read_windows(self.video.path, windows, self.video.section, times) if self.supplied else None

    def make(
        self, padded: PaddedWindow, window: Window, seed: list[int], frames: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The reference of a window of `frames` frames, and its part of the record."""
        scale = ReferenceScale(self.task.reference_downscale, self.task.reference_temporal_scale)
        place = self._draw_place(seed, frames)
        reference, drawn = reference_of(padded, window, self.maker, self.video, seed, scale, place)
        record = {"args": _set_args(self.maker), "seed": seed, "drawn": drawn, **asdict(scale)}
        if place is not None:
            record["place"] = place
        if scale.temporal_scale > 1:
            record["reference_frames"] = temporal_subsample(np.arange(frames), scale.temporal_scale).tolist()
        return reference, record

    def _draw_place(self, seed: list[int], frames: int) -> int | None:
        """The frame of the window at which the reference stands, if it is drawn (`task.reference_frame`)."""
        frame = self.task.reference_frame
        return draw_place(reference_keys(self.number)[2], frame, seed, frames) if is_drawn(frame) else None


def make_pairs(clip: Clip, windows: Sequence[Window], config: Config, watch: Stopwatch | None = None) -> Iterator[Pair]:
    """The pairs of one clip, in the order of `windows` (by start). watch: gets the seconds of `decode` and `maker`."""
    task, watch = config.task, watch or Stopwatch()
    sources = [ReferenceSource.of(clip, task, number) for number in range(len(task.reference_names))]
    sounds = PairSounds(clip, config)
    streams = [source.frames(windows, None if source.number else sounds.reference_times) for source in sources]
    decoded = [None if stream is None else watch.each("decode", stream) for stream in streams]
    region = mask_maker(task)
    targets = watch.each("decode", read_windows(clip.path, windows, clip.section, sounds.times))
    for window, frames in zip(windows, targets, strict=True):
        target, references, reference_records = None, [], []
        for source, stream in zip(sources, decoded, strict=True):
            whole_frames = next(stream) if stream else frames
            seed = window_seed(config.data, clip.id, window.number, MAKER_USES + source.number if source.number else 1)
            with watch.part("maker"):
                padded = PaddedWindow.cut(whole_frames, window, source.maker.margin)
                target = padded.inner() if target is None and stream is None else target
                reference, values = source.make(padded, window, seed, len(frames))
            references.append(reference)
            reference_records.append({"maker": source.task.maker, **values})
        record = _record(clip, window, task.maker, reference_records, task.reference_names)
        target = crop_window(frames, window) if target is None else target
        mask = None
        if region is not None:
            with watch.part("maker"):
                crop = Crop.of_window(window, frames[0].shape[:2])
                mask, record["mask"] = make_mask(region, target, crop, window, clip, task, config.data)
        with watch.part("decode"):
            heard = sounds.read(window)
        record |= _record_of_sounds(config, *heard)
        yield Pair(window.key, target, tuple(references), caption_of(clip, config), window.fps, record, mask, *heard)


def _record_of_sounds(config: Config, sound: Sound | None, reference: Sound | None) -> dict[str, object]:
    """The part of the record on the sounds that the settings ask for."""
    asked = {"sound": (config.data.sound, sound), "reference_sound": (config.task.reference_sound, reference)}
    return {
        name: SILENCE if heard is None else {"rate": heard.rate}
        for name, (setting, heard) in asked.items()
        if setting is not None
    }


def _record(
    clip: Clip, window: Window, maker: str, reference_records: Sequence[dict[str, Any]], names: Sequence[str]
) -> dict[str, object]:
    """The record of a pair. It has the values of the first reference. If there are several, `references` has the values
    of each, with its name."""
    record: dict[str, object] = {
        "file": clip.path.name,
        "source": clip.source,
        "licence": clip.licence,
        "window": asdict(window),
        "maker": maker,
    }
    if clip.section is not None:
        record["section"] = clip.section.bounds
    if reference_records:
        record |= reference_records[0]
    if len(reference_records) > 1:
        named = zip(names, reference_records, strict=True)
        record["references"] = [{"name": name, **values} for name, values in named]
    return record


def _set_args(maker: Maker) -> dict[str, Any]:
    """The arguments of a maker that are not null; together they rebuild the maker."""
    args: dict[str, Any] = asdict(maker)  # type: ignore[call-overload]  # every maker is a dataclass
    return {name: value for name, value in args.items() if value is not None}
