"""Depth as grey video, near white and far black as the LTX workflows have it: estimated, or rendered elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from data_prep.makers.base import Params, SourceWindow, check_number, check_range, register
from data_prep.makers.colour_space import luma
from data_prep.makers.control.depth_files import VALUES, read_nearness
from iclora_train.config import one_of, require
from iclora_train.signals.depth_picture import depth_to_grey
from iclora_train.signals.optical_flow import dis_flow, warp_by_flow

REMEDY = (
    "give a folder in transformers' format, e.g. by "
    "`hf download depth-anything/Depth-Anything-V2-Small-hf --local-dir FOLDER`"
)
MAX_DIFFERENCE = (
    12  # grey levels: where a frame differs more from its neighbour moved onto it, nothing is taken from that
)


@register("control.depth")
@dataclass(frozen=True)
class Depth:
    """Depth by a network for single pictures (Depth-Anything-V2 and others).

    model: the folder of the network, in transformers' format. range: percentiles of all values of the clip that become
    black and white; the rest is clipped. steady: share of each value that is taken from the neighbouring frames, moved
    along the optical flow, against flicker (0 for none).
    """

    model: str | None = None
    range: list[float] = field(default_factory=lambda: [1.0, 99.0])
    steady: float = 0.0

    def __post_init__(self) -> None:
        check_range("range", self.range, 0, 100)
        check_number("steady", self.steady, 0, 0.95)
        require(self.model is not None, f"task.maker_args.model is not set: {REMEDY}; or take control.depth_given")
        assert self.model is not None
        there = (Path(self.model).expanduser() / "config.json").is_file()
        require(there, f"task.maker_args.model={self.model} holds no config.json: {REMEDY}")

    @property
    def margin(self) -> int:
        return 0

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        from iclora_train.signals.depth_network import load  # noqa: PLC0415  (transformers is slow to import)

        assert self.model is not None
        near = load(Path(self.model).expanduser()).nearness(frames)  # (F,H,W)
        return depth_reference(stabilise(near, frames, self.steady) if self.steady else near, self.range)


@register("control.depth_given")
@dataclass(frozen=True)
class DepthGiven:
    """Depth that was rendered or estimated elsewhere: the column `depth` of the clip list names, for each clip, a video
    or a folder with one EXR or PNG (16 or 8 bit) per frame, of any resolution.

    values: what they mean. distance: of the camera, in any unit (a Z pass); drawn as 1/distance. ramp: dark is near (a
    mist pass); drawn inverted. nearness: bright is near; drawn as it is. range: as in control.depth.
    """

    needs: ClassVar[tuple[str, ...]] = ("depth",)
    values: str = "distance"
    range: list[float] = field(default_factory=lambda: [1.0, 99.0])

    def __post_init__(self) -> None:
        one_of("task.maker_args.values", self.values, VALUES)
        check_range("range", self.range, 0, 100)

    @property
    def margin(self) -> int:
        return 0

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        read = read_nearness(source.file("depth"), source.indices, self.values)
        return depth_reference(np.stack([source.crop.apply(near) for near in read]), self.range)


def depth_reference(near: np.ndarray, percentiles: list[float]) -> tuple[np.ndarray, Params]:
    """Nearness (F,H,W) as uint8 (F,H,W,3), and its range for the record."""
    pictures, (low, high) = depth_to_grey(near, percentiles)
    return pictures, {"range": [low, high]}


def stabilise(near: np.ndarray, frames: np.ndarray, share: float) -> np.ndarray:
    """Nearness (F,H,W) whose every value is mixed with that of the frame before, moved along the optical flow of the
    frames (F,H,W,3), where both look alike; once forwards, once backwards, and the mean of both, so that nothing lags.
    """
    greys = [luma(frame) for frame in frames]
    forwards = _mixed(near, greys, share)
    return (forwards + _mixed(near[::-1], greys[::-1], share)[::-1]) / 2


def _mixed(near: np.ndarray, greys: list[np.ndarray], share: float) -> np.ndarray:
    result = near.copy()
    for t in range(1, len(near)):
        flow = dis_flow(greys[t], greys[t - 1])  # where each pixel of frame t was before
        alike = cv2.absdiff(warp_by_flow(greys[t - 1], flow), greys[t]) < MAX_DIFFERENCE
        result[t] += share * alike * (warp_by_flow(result[t - 1], flow) - near[t])
    return result
