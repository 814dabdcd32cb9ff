"""The frames of a new clip as a window, with the sizes that `iclora_train.generate` would choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, lcm
from typing import Protocol

import numpy as np

from data_prep.clips.crop import Crop
from data_prep.clips.windows import Window
from data_prep.pairs import PaddedWindow
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.config import require
from iclora_train.core.progress import progress_bar
from iclora_train.core.types import VideoShape
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.size import RequestedSizes, SizeRules, SizeSource, video_shape
from iclora_train.media.frame_times import rates_equal
from iclora_train.training.host_memory import free_host_memory

WORK = 3  # bytes of memory per byte of pixels that are read; seen: 2.6 (docs/log/measurements.md)
USUAL_RATE = 24.0  # frames per second of a video that is made of pictures, where nothing says another

Borders = tuple[int, int, int, int]  # left, top, right, bottom


class ClipSettings(RequestedSizes, Protocol):
    """Settings that choose the frames of a clip."""

    start: int
    short_side: int | None

    @property
    def clip(self) -> str | None:
        """A video, a folder of frames, or an image."""


@dataclass(frozen=True)
class SourceClip:
    """A clip and the part of it that becomes a video: source frame number of each frame, its window, and its shape.

    borders: pixels that are added around every frame; the window lies in the larger picture. is_still: one picture,
    repeated.
    """

    media: InputMedia
    shape: VideoShape
    window: Window
    rounded: str
    borders: Borders = (0, 0, 0, 0)
    is_still: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames with their borders."""
        left, top, right, bottom = self.borders
        return self.media.height + top + bottom, self.media.width + left + right

    def of_files(self) -> Window:
        """The window for files that hold a frame for each frame of the clip; of a still, for each of the video."""
        return self.window_of_video() if self.is_still else self.window

    def window_of_video(self) -> Window:
        """The window with the frame numbers 0, 1, ... of the video."""
        values = {**vars(self.window), "indices": tuple(range(self.shape.frames))}
        return Window(**values)

    def padded(self, margins: Sequence[int]) -> list[PaddedWindow]:
        """The window with each of these margins, read in one pass. ConfigError if memory cannot hold the work on it."""
        crops = [Crop.of_window(self.window, self.size, margin) for margin in margins]
        self._require_memory(sum(crop.padded_size[0] * crop.padded_size[1] for crop in crops))
        indices = np.array(self.window.indices)
        results = [np.empty((len(indices), *crop.padded_size, 3), np.uint8) for crop in crops]
        with progress_bar("reading the clip", len(set(self.window.indices)), "frame") as bar:
            for number, frame in bar.track(self._frames()):
                for result, crop in zip(results, crops, strict=True):
                    result[indices == number] = crop.apply(frame)
        return [PaddedWindow(frames, crop) for frames, crop in zip(results, crops, strict=True)]

    def _require_memory(self, pixels: int) -> None:
        """ConfigError if a frame of so many pixels in all windows, times the frames, is more than fits into memory."""
        needed, free = WORK * 3 * pixels * self.shape.frames, free_host_memory()
        require(
            free == 0 or needed <= free,
            f"clip={self.media.path}: {self.shape.bucket} needs about {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} GiB are free: make it in parts (start, frames), or smaller (width, height)",
        )

    def _frames(self) -> Iterator[tuple[int, np.ndarray]]:
        left, top, right, bottom = self.borders
        for number, frame in self.media.whole_frames(set(self.window.indices)):
            yield number, np.pad(frame, ((top, bottom), (left, right), (0, 0)))


def open_clip(
    settings: ClipSettings,
    layouts: Sequence[ReferenceLayout],
    cell: tuple[int, int],
    fps: float | None,
    borders: Borders = (0, 0, 0, 0),
) -> SourceClip:
    """The clip of the settings, cut as `generate` cuts it with `fit=crop`: its middle, as large as possible.

    layouts: of the references, whose factors the sizes must be divisible by. cell: pixels and frames of a latent cell.
    fps: of a video of pictures. ConfigError names what is too short or too small.
    """
    media = InputMedia.open("clip", str(settings.clip))
    rate = settings.fps or media.fps or fps or USUAL_RATE
    numbers = media.frame_numbers(rate)
    is_still = media.times is None and len(numbers) == 1
    if is_still:
        numbers = np.repeat(numbers, settings.start + (settings.frames or 1))
    require(
        settings.start < len(numbers), f"start={settings.start}: {media.path} has {len(numbers)} frames at {rate:g} fps"
    )
    numbers = numbers[settings.start :]
    rules = SizeRules(
        cell[0] * lcm(*(layout.downscale for layout in layouts)),
        cell[1] * lcm(*(layout.temporal_scale for layout in layouts)),
    )
    height, width = media.height + borders[1] + borders[3], media.width + borders[0] + borders[2]
    source = SizeSource(str(media.path), width, height, rate, len(numbers))
    shape, rounded = video_shape(settings, source, rules)
    _require_enough(settings, media, shape, (height, width), len(numbers), rules)
    scale = max(shape.height / height, shape.width / width)
    if settings.short_side is not None:
        require(
            scale <= settings.short_side / min(height, width) <= 1,
            f"short_side={settings.short_side}: {media.path} has {width}x{height} pixels, the video {shape.width}x"
            f"{shape.height}: set it from {ceil(scale * min(height, width))} to {min(height, width)}, or null",
        )
        scale = settings.short_side / min(height, width)
    window = _centred(media.path.stem, numbers[: shape.frames], shape, (height, width), scale)
    return SourceClip(media, shape, window, rounded, borders, is_still)


def _require_enough(
    settings: ClipSettings,
    media: InputMedia,
    shape: VideoShape,
    size: tuple[int, int],
    frames: int,
    rules: SizeRules,
) -> None:
    """ConfigError if a clip of `size` (height, width) and `frames` frames is smaller or shorter than the video."""
    height, width = size
    require(
        shape.width <= width and shape.height <= height,
        f"clip={media.path} has {width}x{height} pixels, which do not hold {shape.width}x{shape.height}, multiples of "
        f"{rules.spatial}: give a larger clip"
        + (", or a smaller width and height" if min(width, height) >= rules.spatial else ""),
    )
    longest = rules.round_down("frames", frames)
    after = f" after frame {settings.start}" if settings.start else ""
    require(
        shape.frames <= frames,
        f"clip={media.path} has {frames} frames{after} at {shape.fps:g} fps, the video has {shape.frames}: set "
        f"frames={longest} or less, or give a longer clip",
    )


def _centred(name: str, numbers: np.ndarray, shape: VideoShape, size: tuple[int, int], scale: float) -> Window:
    """The window in the middle of frames of `size` (height, width) that are multiplied by `scale`.

    It is the first held-out window that a preparation would cut from these frames (`windows.heldout_windows`).
    """
    height, width = round(size[0] * scale), round(size[1] * scale)
    crop = int(0.5 * (height - shape.height + 1)), int(0.5 * (width - shape.width + 1))
    indices, cut = tuple(numbers.tolist()), (shape.height, shape.width)
    return Window(name, 0, indices, (height, width), crop, cut, False, shape.fps)


def rate_note(source: SourceClip) -> str | None:
    """A line for a video whose rate is higher than the clip's, so that frames are repeated; None if it is not."""
    fps = source.media.fps
    repeated = len(source.window.indices) - len(set(source.window.indices))
    if fps is None or source.is_still or not repeated or rates_equal(fps, source.shape.fps):
        return None
    return (
        f"rate: {source.media.path} has {fps:g} fps, the signal {source.shape.fps:g}: {repeated} frames are repeated, "
        f"and the motion stands still in them: set fps={fps:g}"
    )
