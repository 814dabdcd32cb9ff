"""Interlaced video, shown as frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.makers.base import Params, SourceWindow, register
from data_prep.makers.colour_space import to_codes
from data_prep.makers.degrade.interpolation import METHODS, FrameInterpolator
from iclora_train.config import one_of

BLEND = np.array([0.25, 0.5, 0.25], np.float32)


@register("degrade.interlace")
@dataclass(frozen=True)
class Interlace:
    """Each frame's lines are of two times: one field of the frame, the other of what follows. At the clip's end nothing
    follows, so the last frame is of one time.

    first: which lines come first, `upper` (0, 2, 4, ...), `lower`, or `either`, drawn per clip. second: where the other
    field is from: `next`, the next frame (the clip is taken to be the fields' rate), or half-way to it, by `flow` or
    `blend`. shown: `weave`, the fields as they are, with combs; or as bad deinterlacers leave it: `blend`, neighbouring
    lines mixed, or `bob`, the first field alone with its lines doubled.
    """

    first: str = "either"
    second: str = "next"
    shown: str = "weave"

    def __post_init__(self) -> None:
        one_of("task.maker_args.first", self.first, ("upper", "lower", "either"))
        one_of("task.maker_args.second", self.second, ("next", *METHODS))
        one_of("task.maker_args.shown", self.shown, ("weave", "blend", "bob"))

    @property
    def margin(self) -> int:
        return 0  # lines are counted from the window's first

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        first = ("upper", "lower")[rng.integers(2)] if self.first == "either" else self.first
        line = ("upper", "lower").index(first)
        if self.shown == "bob":
            height = frames.shape[1]
            nearest = np.clip((np.arange(height) - line) // 2 * 2 + line, line, height - 1)
            return frames[:, nearest], {"first": first}
        woven = frames.copy()
        woven[:, 1 - line :: 2] = self._later(frames)[:, 1 - line :: 2]
        return (_mixed(woven) if self.shown == "blend" else woven), {"first": first}

    def _later(self, frames: np.ndarray) -> np.ndarray:
        """What follows each frame."""
        if self.second == "next":
            return np.concatenate([frames[1:], frames[-1:]])
        between = FrameInterpolator(frames, self.second, linear=False)
        return np.stack([to_codes(between.frame_at(i + 0.5), linear=False) for i in range(len(frames))])


def _mixed(frames: np.ndarray) -> np.ndarray:
    """Every line with a quarter of each of its neighbours."""
    above = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    below = np.concatenate([frames[:, 1:], frames[:, -1:]], axis=1)
    return np.rint(BLEND[0] * above + BLEND[1] * frames + BLEND[2] * below).astype(np.uint8)
