"""Interlaced video shown as progressive frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, register
from data_prep.makers.colour_space import to_codes
from data_prep.makers.degrade.interpolation import METHODS, FrameInterpolator
from iclora_train.config import one_of

BLEND = np.array([0.25, 0.5, 0.25], np.float32)


@register("degrade.interlace")
@dataclass(frozen=True)
class Interlace(Maker):
    """The lines of each frame come from two times: one field from the frame, the other field from a later time.

    The last frame of the clip has no successor, so both of its fields are from the same time.

    first: the earlier field: `upper` (lines 0, 2, 4, ...), `lower`, or `either`, drawn per clip. second: the source of
    the later field: `next` is the next frame (the clip then has the rate of the fields); `flow` and `blend` interpolate
    half-way to it. shown: `weave`, both fields with combing, or the output of a bad deinterlacer: `blend` mixes
    neighbouring lines, `bob` doubles the lines of the first field. The margin is 0, because lines are counted from the
    top of the window.
    """

    first: str = "either"
    second: str = "next"
    shown: str = "weave"

    def __post_init__(self) -> None:
        one_of("task.maker_args.first", self.first, ("upper", "lower", "either"))
        one_of("task.maker_args.second", self.second, ("next", *METHODS))
        one_of("task.maker_args.shown", self.shown, ("weave", "blend", "bob"))

    @property
    def needs_motion(self) -> bool:
        return True

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        first = ("upper", "lower")[rng.integers(2)] if self.first == "either" else self.first
        line = ("upper", "lower").index(first)
        if self.shown == "bob":
            height = frames.shape[1]
            nearest = np.clip((np.arange(height) - line) // 2 * 2 + line, line, height - 1)
            return frames[:, nearest], {"first": first}
        woven = frames.copy()
        woven[:, 1 - line :: 2] = self._second_field(frames)[:, 1 - line :: 2]
        return (_blend_lines(woven) if self.shown == "blend" else woven), {"first": first}

    def _second_field(self, frames: np.ndarray) -> np.ndarray:
        """The picture of the second field for each frame (F,H,W,3)."""
        if self.second == "next":
            return np.concatenate([frames[1:], frames[-1:]])
        interpolator = FrameInterpolator(frames, self.second, linear=False)
        return np.stack([to_codes(interpolator.frame_at(i + 0.5), linear=False) for i in range(len(frames))])


def _blend_lines(frames: np.ndarray) -> np.ndarray:
    """Half of every line plus a quarter of each neighbour."""
    above = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    below = np.concatenate([frames[:, 1:], frames[:, -1:]], axis=1)
    return np.rint(BLEND[0] * above + BLEND[1] * frames + BLEND[2] * below).astype(np.uint8)
