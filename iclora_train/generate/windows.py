"""A long video as windows that follow one another: each begins with the last frames of the window before.

A window is an ordinary video whose first frames are known: its times begin anew at 0, and every window has the noise of
the seed. The VAE gives the first frame of a clip a latent frame of its own. The known frames are therefore carried as
pixels and encoded again: a latent frame from the middle of a clip, which stands for several frames, never stands where
one frame is expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclora_train.config import require
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.size import SizeRules

OVERLAP = 0.3  # share of a window that is carried from the one before, without a setting (ComfyUI: 24 of 80 frames)


@dataclass(frozen=True)
class Window:
    """Frames [start, start + frames) of the video, of which the window before has made the first `carried`."""

    start: int
    frames: int
    carried: int = 0

    @property
    def end(self) -> int:
        """The frame after the last."""
        return self.start + self.frames


def plan_windows(settings: GenerateSettings, frames: int, rules: SizeRules, temporal: int) -> list[Window]:
    """Windows that cover a video; one window without `window_frames`.

    All windows have `window_frames` frames, as in training. The last one begins earlier where the length does not
    divide, so that more than `window_overlap` of its frames are carried. temporal: frames per latent frame.
    ConfigError names the setting that does not fit the video or the VAE, and sizes that do.
    """
    size = settings.window_frames
    if size is None:
        return [Window(0, frames)]
    fitting = rules.round_down("frames", size)
    require(
        size == fitting, f"window_frames={size} is not {rules.temporal}k+1: use {fitting} or {fitting + rules.temporal}"
    )
    require(
        size <= frames,
        f"window_frames={size} is longer than the video of {frames} frames: set {frames} or less, or null",
    )
    overlap = settings.window_overlap
    if overlap is None:
        overlap = round(OVERLAP * (size - 1) / temporal) * temporal + 1
    low = (overlap - 1) // temporal * temporal + 1
    require(overlap == low, f"window_overlap={overlap} is not {temporal}k+1: use {low} or {low + temporal}")
    require(
        overlap < size,
        f"window_overlap={overlap} must be less than window_frames={size}: use {size - temporal} or less",
    )
    starts = [*range(0, frames - size, size - overlap), frames - size]
    ends = [0, *(start + size for start in starts)]
    return [Window(start, size, max(end - start, 0)) for start, end in zip(starts, ends[:-1], strict=True)]


def describe_windows(windows: Sequence[Window]) -> str:
    """What is sampled: `5 windows of 33 frames, of which 9 are carried: 165 frames are sampled for 129`."""
    sampled, frames = sum(window.frames for window in windows), windows[-1].end
    carried = " to ".join(str(number) for number in sorted({window.carried for window in windows[1:]}))
    return (
        f"{len(windows)} windows of {windows[0].frames} frames, of which {carried} are carried from the window before: "
        f"{sampled} frames are sampled for {frames}, {sampled / frames:.1f} times the work of a frame without windows"
    )


def join_windows(before: np.ndarray, new: np.ndarray, carried: int) -> np.ndarray:
    """The video up to a window and the window, uint8 (F,H,W,3) each, of whose frames the first `carried` are the last
    of the video.

    The carried frames went through the VAE once more in the window, which changes them a little. They fade from one to
    the other, so that the change is spread over all of them and not seen at the seam.
    """
    if carried == 0:
        return np.concatenate([before, new])
    share = (np.arange(1, carried + 1, dtype=np.float32) / (carried + 1))[:, None, None, None]
    faded = (1 - share) * before[-carried:] + share * new[:carried]
    return np.concatenate([before[:-carried], np.rint(faded).astype(np.uint8), new[carried:]])
