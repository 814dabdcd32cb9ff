"""A probed clip: its properties, its scene cuts, and the window sizes that fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from data_prep.clips.clip_list import Clip
from iclora_train.config import Data
from iclora_train.media.clip import ClipInfo


@dataclass(frozen=True, eq=False)
class ProbedClip:
    """A clip and its properties.

    cuts: frames that start a scene, except frame 0. quality (F,): score of each frame for data.pick=best.
    """

    clip: Clip
    info: ClipInfo
    cuts: tuple[int, ...] = ()
    quality: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def frame_numbers(self, fps: float | None) -> tuple[np.ndarray, float]:
        """Source frame numbers (m,) of the clip at `fps`, and the rate. None is the clip's own rate."""
        return frames_at_rate(self.info, fps)

    def scenes(self, fps: float | None) -> list[tuple[int, int]]:
        """Range [first, last) of resampled frames of each scene."""
        frames, _ = self.frame_numbers(fps)
        scene = np.searchsorted(self.cuts, frames, side="right") if self.cuts else np.zeros(len(frames), int)  # (m,)
        edges = [0, *(np.flatnonzero(np.diff(scene)) + 1).tolist(), len(frames)]
        return list(pairwise(edges))

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
        """
        reasons = {f"{size.width}x{size.height}x{size.frames}": self._reason_not_to_fit(size) for size in data.sizes()}
        fitting = [size for size, reason in zip(data.sizes(), reasons.values(), strict=True) if reason is None]
        if not fitting:
            lines = [f"{name}: {reason}" if data.buckets else str(reason) for name, reason in reasons.items()]
            raise ValueError("; ".join(lines))
        aspect = self.info.width / self.info.height
        return min(fitting, key=lambda d: (abs(np.log(aspect * d.height / d.width)), -d.frames, -d.height * d.width))

    def _reason_not_to_fit(self, data: Data) -> str | None:
        """Why the clip has no window of this size, or None if it has."""
        info = self.info
        if data.fps is not None and info.fps < 0.9 * data.fps and not self.clip.is_image:
            return f"{info.fps:g} frames a second are too few for data.fps={data.fps:g}: frames would be doubled"
        longest = max(last - first for first, last in self.scenes(data.fps))
        if longest < data.frames:
            where = "between two cuts " if self.cuts else ""
            return f"{longest} frames {where}are fewer than data.frames={data.frames}"
        height, width = self.scaled_size(data, 1.0)
        if height < data.height or width < data.width:
            return f"{info.width}x{info.height} pixels do not hold data.width x data.height {data.width}x{data.height}"
        return None


def frames_at_rate(info: ClipInfo, fps: float | None) -> tuple[np.ndarray, float]:
    """Source frame numbers (m,) of a clip at `fps`, each the nearest in time. None keeps every frame."""
    if fps is None:
        return np.arange(info.frames), info.fps
    times = np.asarray(info.times)
    targets = np.arange(int(times[-1] * fps + 1e-6) + 1) / fps
    after = np.searchsorted(times, targets).clip(1, max(len(times) - 1, 1)) if len(times) > 1 else np.zeros(1, int)
    before = np.maximum(after - 1, 0)
    return np.where(targets - times[before] <= times[after] - targets, before, after), fps
