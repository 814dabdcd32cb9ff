"""Long exposure: motion blur computed from the motion in the clip."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_bool, check_number, check_range, register
from data_prep.makers.colour_space import to_codes
from data_prep.makers.degrade.interpolation import METHODS, FrameInterpolator
from data_prep.makers.trajectory import Range, Trajectory
from iclora_train.config import one_of, require


@register("degrade.exposure")
@dataclass(frozen=True)
class Exposure(Trajectory, Maker):
    """Each frame is the mean light over the time in which the shutter is open around it.

    shutter: [from, to] in frames (1 is a 360-degree shutter at the clip's rate, larger values are slower). samples:
    pictures per frame in the mean. between: how pictures between frames are computed: `flow`, or `blend`, which leaves
    ghosts of fast motion. linear: average linear light, as a sensor does; false averages sRGB values.
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
    def needs_motion(self) -> bool:
        return True

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        shutter = self.draw(self.shutter, len(frames), rng)
        interpolator = FrameInterpolator(frames, self.between, self.linear)
        weights = _exposure_weights(shutter, self.samples)
        accumulating: dict[int, np.ndarray] = {}  # frame -> sum of its light so far, fp32 (H,W,3)
        exposed: dict[int, np.ndarray] = {}  # not in order: a long exposure may end after the next frame's short one
        for k, weight in enumerate(weights.T):
            picture = interpolator.frame_at((k - 0.5) / self.samples)
            for i in map(int, np.flatnonzero(weight)):
                light = weight[i] * picture
                accumulating[i] = accumulating[i] + light if i in accumulating else light
            complete = [i for i in accumulating if not weights[i, k + 1 :].any()]
            exposed |= {i: to_codes(accumulating.pop(i), self.linear) for i in complete}
        return np.stack([exposed[i] for i in range(len(frames))]), {"shutter": self.summary(shutter)}


def _exposure_weights(shutter: np.ndarray, samples: int) -> np.ndarray:
    """Weight of each picture in each frame's exposure, fp32 (F,K).

    Picture 0 is the first frame and stands for all time before it. `samples` pictures per frame follow. The last
    picture is the last frame and stands for all time after it.
    """
    frames = np.arange(len(shutter))
    start, stop = (frames - shutter / 2)[:, None], (frames + shutter / 2)[:, None]
    edges = np.concatenate([[-np.inf], np.arange((len(shutter) - 1) * samples + 1) / samples, [np.inf]])
    overlap = np.minimum(stop, edges[1:]) - np.maximum(start, edges[:-1])
    return (np.maximum(overlap, 0) / shutter[:, None]).astype(np.float32)
