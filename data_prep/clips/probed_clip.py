"""A probed clip: its properties, its scene cuts, and the window sizes that fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from data_prep.clips.clip_list import Clip
from iclora_train.config import Data
from iclora_train.media.clip import ClipInfo

MIN_RATE, MAX_RATE = 1, 1000  # frames per second, from a slide show to wrong timestamps


@dataclass(frozen=True, eq=False)
class ProbedClip:
    """A clip and its properties.

    cuts: frames that start a scene, except frame 0. quality (F,): score of each frame for data.pick=best. part: range
    [first, last) of resampled frames that windows may be cut from; None is the whole clip.
    """

    clip: Clip
    info: ClipInfo
    cuts: tuple[int, ...] = ()
    quality: np.ndarray = field(default_factory=lambda: np.zeros(0))
    part: tuple[int, int] | None = None

    def frame_numbers(self, fps: float | None) -> tuple[np.ndarray, float]:
        """Source frame numbers (m,) of the clip at `fps`, each one once, and the rate. None is the clip's own rate."""
        return self.info.times.distinct_frames(fps)[0], self.info.fps if fps is None else fps

    def scenes(self, fps: float | None) -> list[tuple[int, int]]:
        """Range [first, last) of resampled frames of each scene, inside `part`. A scene also ends where a frame would
        be repeated."""
        frames, steps = self.info.times.distinct_frames(fps)
        scene = np.searchsorted(self.cuts, frames, side="right") if self.cuts else np.zeros(len(frames), int)  # (m,)
        breaks = (np.diff(scene) > 0) | (np.diff(steps) > 1)
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(frames)]
        first, last = self.part or (0, len(frames))
        scenes = ((max(a, first), min(b, last)) for a, b in pairwise(edges))
        return [(a, b) for a, b in scenes if a < b]

    def timing_note(self, fps: float | None) -> str | None:
        """How frames are chosen from a clip with a variable rate or with repeated frames; None if it has neither."""
        _, steps = self.info.times.distinct_frames(fps)
        repeated = int((np.diff(steps) - 1).sum())
        if self.clip.is_image or (self.info.times.is_constant and not repeated):
            return None
        kind = "constant" if self.info.times.is_constant else "variable"
        skipped = f"; no window crosses the places where {repeated} frames would be repeated" if repeated else ""
        return f"{kind} rate of {self.info.fps:g} fps, read at {fps or self.info.fps:g} fps{skipped}"

    def window_starts(self, data: Data) -> list[int]:
        """Resampled frames at which a window may start without leaving its scene."""
        return [i for first, last in self.scenes(data.fps) for i in range(first, last - data.frames + 1)]

    def scaled_size(self, data: Data, zoom: float) -> tuple[int, int]:
        """(height, width) of the clip before cropping: `zoom` times the smallest size that fits, never enlarged."""
        if data.short_side is None:
            scale = max(data.height / self.info.height, data.width / self.info.width)
        else:
            scale = data.short_side / min(self.info.height, self.info.width)
        scale = min(1.0, scale * zoom)
        return round(self.info.height * scale), round(self.info.width * scale)

    def best_bucket(self, data: Data) -> Data:
        """The settings with the best bucket. ValueError with the reasons if none fits.

        Among the buckets that the clip can fill, it is the nearest in aspect ratio, then the longest, then the largest.
        Where buckets of one frame stand beside longer ones, these are for images, and the longer ones for videos.
        """
        sizes = [size for size in data.sizes() if (size.frames == 1) == self.clip.is_image] or data.sizes()
        reasons = {f"{size.width}x{size.height}x{size.frames}": self._reason_not_to_fit(size) for size in sizes}
        fitting = [size for size, reason in zip(sizes, reasons.values(), strict=True) if reason is None]
        if not fitting:
            lines = [f"{name}: {reason}" if data.buckets else str(reason) for name, reason in reasons.items()]
            raise ValueError("; ".join(lines))
        aspect = self.info.width / self.info.height
        return min(fitting, key=lambda d: (abs(np.log(aspect * d.height / d.width)), -d.frames, -d.height * d.width))

    def _reason_not_to_fit(self, data: Data) -> str | None:
        """Why the clip has no window of this size, or None if it has."""
        info = self.info
        if data.fps is None and info.frames > 1 and not MIN_RATE <= info.times.rate <= MAX_RATE:
            return f"{info.fps:g} frames a second are not the rate of a video: set data.fps, or remove the clip"
        longest = max(last - first for first, last in self.scenes(data.fps))
        if longest < data.frames:
            return self._reason_for_length(longest, data)
        height, width = self.scaled_size(data, 1.0)
        if height < data.height or width < data.width:
            return f"{info.width}x{info.height} pixels do not hold data.width x data.height {data.width}x{data.height}"
        return None

    def _reason_for_length(self, longest: int, data: Data) -> str:
        """Why `longest`, the number of frames of the longest scene, is less than data.frames."""
        info = self.info
        frames, steps = info.times.distinct_frames(data.fps)
        where = " between two cuts" if self.cuts else ""
        if (np.diff(steps) <= 1).all():
            number = f"{longest} frames"
            if len(frames) < info.frames:
                number = f"{longest} of {info.frames} frames at {data.fps or info.fps:g} fps"
            return f"{number}{where} are fewer than data.frames={data.frames}"
        repeated = f"{longest} frames{where} without a repeated one are fewer than data.frames={data.frames}"
        if not info.times.is_constant:
            return f"{repeated}: the clip has a variable rate with gaps, {info.fps:g} fps where it is regular"
        few = f"{info.fps:g} frames a second are too few for data.fps={data.fps:g}"
        return f"{repeated}: {few}; set data.fps={info.fps:g}, or null"
