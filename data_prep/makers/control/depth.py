"""Depth as grey video, near white and far black as in the LTX workflows: estimated by a network, or supplied."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_number, check_path, check_range, register
from data_prep.makers.colour_space import luma
from data_prep.makers.control.depth_files import VALUES, read_nearness
from iclora_train.config import one_of, require
from iclora_train.config.paths import user_path
from iclora_train.signals.depth_picture import depth_to_grey
from iclora_train.signals.optical_flow import dis_flow, warp_by_flow

REMEDY = (
    "give a folder in transformers' format, e.g. by "
    "`hf download depth-anything/Depth-Anything-V2-Small-hf --local-dir FOLDER`"
)
MAX_DIFFERENCE = 12  # grey levels: a pixel is mixed with its warped neighbour if the frames differ by less


@register("control.depth")
@dataclass(frozen=True)
class Depth(Maker):
    """Depth by a network for single pictures (Depth-Anything-V2 and others).

    model: folder of the network, in transformers' format. range: percentiles of all values of the clip that become
    black and white; values outside are clipped. steady: share of each value that comes from the neighbouring frames,
    warped along the optical flow, to reduce flicker (0: off).
    """

    model: str | None = None
    range: list[float] = field(default_factory=lambda: [1.0, 99.0])
    steady: float = 0.0

    def __post_init__(self) -> None:
        check_range("range", self.range, 0, 100)
        check_number("steady", self.steady, 0, 0.95)
        require(self.model is not None, f"task.maker_args.model is not set: {REMEDY}; or use control.depth_given")
        check_path("model", self.model)
        assert self.model is not None
        exists = (user_path(self.model) / "config.json").is_file()
        require(exists, f"task.maker_args.model={self.model} holds no config.json: {REMEDY}")

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        from iclora_train.signals.depth_network import load  # noqa: PLC0415  (transformers is slow to import)

        assert self.model is not None
        nearness = load(user_path(self.model)).nearness(frames)  # (F,H,W)
        return depth_reference(stabilise(nearness, frames, self.steady) if self.steady else nearness, self.range)


@register("control.depth_given")
@dataclass(frozen=True)
class DepthGiven(Maker):
    """Depth that was rendered or estimated by another program.

    The column `depth` of the clip list names, for each clip, a video or a folder with one EXR or PNG (16 or 8 bit) per
    frame, at any resolution.

    values: meaning of the numbers. distance: from the camera, in any unit (a Z pass); drawn as 1/distance. ramp: dark
    is near (a mist pass); drawn inverted. nearness: bright is near; drawn unchanged. range: see control.depth.
    """

    values: str = "distance"
    range: list[float] = field(default_factory=lambda: [1.0, 99.0])

    def __post_init__(self) -> None:
        one_of("task.maker_args.values", self.values, VALUES)
        check_range("range", self.range, 0, 100)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("depth",)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        pictures = read_nearness(source.file("depth"), source.indices, self.values)
        return depth_reference(np.stack([source.crop.apply(picture) for picture in pictures]), self.range)


def depth_reference(nearness: np.ndarray, percentiles: list[float]) -> tuple[np.ndarray, Params]:
    """Nearness (F,H,W) as uint8 (F,H,W,3), and its value range for the record."""
    pictures, (low, high) = depth_to_grey(nearness, percentiles)
    return pictures, {"range": [low, high]}


def stabilise(nearness: np.ndarray, frames: np.ndarray, share: float) -> np.ndarray:
    """Reduce flicker of nearness (F,H,W) along the optical flow of the frames (F,H,W,3).

    Where neighbouring frames are similar, each value is mixed with the warped value of the previous frame. One pass
    runs forwards, one backwards; their mean has no lag.
    """
    greys = [luma(frame) for frame in frames]
    forwards = _mix_with_previous(nearness, greys, share)
    return (forwards + _mix_with_previous(nearness[::-1], greys[::-1], share)[::-1]) / 2


def _mix_with_previous(nearness: np.ndarray, greys: list[np.ndarray], share: float) -> np.ndarray:
    result = nearness.copy()
    for t in range(1, len(nearness)):
        flow = dis_flow(greys[t], greys[t - 1])  # from each pixel of frame t to its position in frame t - 1
        is_similar = cv2.absdiff(warp_by_flow(greys[t - 1], flow), greys[t]) < MAX_DIFFERENCE
        result[t] += share * is_similar * (warp_by_flow(result[t - 1], flow) - nearness[t])
    return result
