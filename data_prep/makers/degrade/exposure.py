"""Long exposures: motion blur from the motion that is in the clip."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_prep.makers.base import Params, SourceWindow, check_bool, check_number, check_range, register
from data_prep.makers.colour_space import to_codes
from data_prep.makers.degrade.interpolation import METHODS, FrameInterpolator
from data_prep.makers.trajectory import Range, Trajectory
from iclora_train.config import one_of, require


@register("degrade.exposure")
@dataclass(frozen=True)
class Exposure(Trajectory):
    """Each frame is the mean light over the time that the shutter is open around it.

    shutter: [from, to] in frames (1 is a shutter of 360 degrees at the clip's rate; more, a slower one). samples:
    pictures per frame that the mean is of. between: how pictures between frames are made: `flow`, or `blend`, which
    leaves ghosts of what moves fast. linear: mean of light, as a sensor has it; false, of sRGB values.
    """

    shutter: Range = field(default_factory=lambda: [1.0, 3.0])
    samples: int = 8
    between: str = "flow"
    linear: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("shutter", self.shutter, 0.01)
        check_number("samples", self.samples, 1)
        require(isinstance(self.samples, int), f"task.maker_args.samples={self.samples} must be a whole number")
        one_of("task.maker_args.between", self.between, METHODS)
        check_bool("linear", self.linear)

    @property
    def margin(self) -> int:
        return 0

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        shutter = self.draw(self.shutter, len(frames), rng)
        between = FrameInterpolator(frames, self.between, self.linear)
        shares = _shares(shutter, self.samples)
        open_now: dict[int, np.ndarray] = {}  # frame -> its light so far, fp32 (H,W,3)
        exposed: dict[int, np.ndarray] = {}  # a long exposure may end after the next frame's short one
        for k, share in enumerate(shares.T):
            picture = between.frame_at((k - 0.5) / self.samples)
            for i in map(int, np.flatnonzero(share)):
                light = share[i] * picture
                open_now[i] = open_now[i] + light if i in open_now else light
            closed = [i for i in open_now if not shares[i, k + 1 :].any()]
            exposed |= {i: to_codes(open_now.pop(i), self.linear) for i in closed}
        return np.stack([exposed[i] for i in range(len(frames))]), {"shutter": self.summary(shutter)}


def _shares(shutter: np.ndarray, samples: int) -> np.ndarray:
    """How much of each frame's exposure falls on each picture, fp32 (F,K). Picture 0 is the first frame, which stands
    for all time before it; `samples` pictures per frame follow; the last one is the last frame.
    """
    frames = np.arange(len(shutter))
    start, stop = (frames - shutter / 2)[:, None], (frames + shutter / 2)[:, None]
    edges = np.concatenate([[-np.inf], np.arange((len(shutter) - 1) * samples + 1) / samples, [np.inf]])
    overlap = np.minimum(stop, edges[1:]) - np.maximum(start, edges[:-1])
    return (np.maximum(overlap, 0) / shutter[:, None]).astype(np.float32)
