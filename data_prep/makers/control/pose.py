"""The pose of the people in a clip as OpenPose skeletons on black."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.makers.base import Params, SourceWindow, check_number, register
from iclora_train.config import require
from iclora_train.signals import blazepose, rtmpose
from iclora_train.signals.pose import PoseReader

WHOLE_FRAME = (
    1 << 20
)  # pixels of margin: people are looked for in the whole picture, since those cut off are hard to find


@register("control.pose")
@dataclass(frozen=True)
class Pose(PoseReader):
    """Everybody's 18-point OpenPose skeleton, drawn on black, with the arguments of `PoseReader`."""

    def __post_init__(self) -> None:
        for key, low in (("tiles", 1), ("gap", 0), ("smooth", 1), ("shortest", 1)):
            check_number(key, getattr(self, key), low)
            whole = isinstance(getattr(self, key), int)
            require(whole, f"task.maker_args.{key}={getattr(self, key)} must be a whole number")
        require(self.smooth % 2 == 1, f"task.maker_args.smooth={self.smooth} must be an odd number of frames")
        check_number("confidence", self.confidence, 0, 1)
        check_number("thickness", self.thickness, 0.1, 10)
        blazepose.require_installed()
        if self.model is not None:
            rtmpose.require_usable(Path(self.model).expanduser())

    @property
    def margin(self) -> int:
        return WHOLE_FRAME

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        people, filled = self.read(frames)
        pictures = self.draw(people, frames.shape[1:3], min(source.crop.size))
        people[..., :2] -= source.crop.inner_offset[::-1]
        return pictures, _record(people, filled, source.crop.size)


def _record(people: np.ndarray, filled: np.ndarray, size: tuple[int, int]) -> Params:
    """What the skeletons (P,F,18,3), in pixels of the target, hold, for checks and evaluation. coverage: share of
    frames that show somebody. points: of these people's points, the share that is seen. filled: of those, the share
    that was filled in. skeletons: of everybody seen, the first frame, and per frame 18 times x, y (outside of the
    target too) and confidence (0: missing).
    """
    x, y = people[..., 0], people[..., 1]
    inside = (x > -0.5) & (y > -0.5) & (x < size[1] - 0.5) & (y < size[0] - 0.5)
    shown = (people[..., 2] > 0) & inside  # (P,F,18)
    present = np.asarray(shown.any(axis=2))  # (P,F)
    skeletons = []
    for person, here in zip(people, present, strict=True):
        frames = np.flatnonzero(here)
        if len(frames):
            skeletons.append({"start": int(frames[0]), "points": _rounded(person[frames[0] : frames[-1] + 1])})
    return {
        "people": len(skeletons),
        "coverage": float(present.any(axis=0).mean()) if len(people) else 0.0,
        "points": float(shown[present].mean()) if present.any() else 0.0,
        "filled": float((filled & shown).sum() / max(shown.sum(), 1)),
        "skeletons": skeletons,
    }


def _rounded(points: np.ndarray) -> list[list[float]]:
    """Points (F,18,3) as F lists of 54 numbers: places to 0.1 pixel, confidence to 0.01."""
    fine = np.concatenate([points[..., :2].round(1), points[..., 2:].round(2)], axis=-1)
    fine[fine[..., 2] == 0] = 0
    return fine.reshape(len(fine), -1).tolist()
