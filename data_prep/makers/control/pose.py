"""Pose: OpenPose skeletons of all people in a clip, on black."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_number, check_path, register
from iclora_train.config import require
from iclora_train.config.paths import user_path
from iclora_train.signals import blazepose, rtmpose
from iclora_train.signals.pose import PoseReader

WHOLE_FRAME = 1 << 20  # margin in pixels: people are detected in the whole frame, because cropped people are missed


@register("control.pose")
@dataclass(frozen=True)
class Pose(PoseReader, Maker):
    """The 18-point OpenPose skeleton of every person on black, with the arguments of `PoseReader`."""

    def __post_init__(self) -> None:
        for key, low in (("tiles", 1), ("gap", 0), ("smooth", 1), ("shortest", 1)):
            check_number(key, getattr(self, key), low)
            is_whole = isinstance(getattr(self, key), int)
            require(is_whole, f"task.maker_args.{key}={getattr(self, key)} must be a whole number")
        require(self.smooth % 2 == 1, f"task.maker_args.smooth={self.smooth} must be an odd number of frames")
        check_number("confidence", self.confidence, 0, 1)
        check_number("thickness", self.thickness, 0.1, 10)
        blazepose.require_installed()
        check_path("model", self.model)
        if self.model is not None:
            rtmpose.require_usable(user_path(self.model))

    @property
    def margin(self) -> int:
        return WHOLE_FRAME

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        people, filled = self.read(frames)
        pictures = self.draw(people, frames.shape[1:3], min(source.crop.size))
        people[..., :2] -= source.crop.inner_offset[::-1]
        return pictures, _record(people, filled, source.crop.size)


def _record(people: np.ndarray, filled: np.ndarray, size: tuple[int, int]) -> Params:
    """Statistics of the skeletons (P,F,18,3), in pixels of the target, for checks and evaluation.

    coverage: share of frames with at least one person. points: share of the points of visible people that are visible.
    filled: share of the visible points that were interpolated. skeletons: for every visible person, the first frame,
    and per frame 18 times x, y (also outside of the target) and confidence (0: missing).
    """
    x, y = people[..., 0], people[..., 1]
    inside = (x > -0.5) & (y > -0.5) & (x < size[1] - 0.5) & (y < size[0] - 0.5)
    visible = (people[..., 2] > 0) & inside  # (P,F,18)
    present = np.asarray(visible.any(axis=2))  # (P,F)
    skeletons = []
    for person, in_frame in zip(people, present, strict=True):
        frames = np.flatnonzero(in_frame)
        if len(frames):
            skeletons.append({"start": int(frames[0]), "points": _rounded(person[frames[0] : frames[-1] + 1])})
    return {
        "people": len(skeletons),
        "coverage": float(present.any(axis=0).mean()) if len(people) else 0.0,
        "points": float(visible[present].mean()) if present.any() else 0.0,
        "filled": float((filled & visible).sum() / max(visible.sum(), 1)),
        "skeletons": skeletons,
    }


def _rounded(points: np.ndarray) -> list[list[float]]:
    """Points (F,18,3) as F lists of 54 numbers: positions rounded to 0.1 pixel, confidences to 0.01."""
    rounded = np.concatenate([points[..., :2].round(1), points[..., 2:].round(2)], axis=-1)
    rounded[rounded[..., 2] == 0] = 0
    return rounded.reshape(len(rounded), -1).tolist()
