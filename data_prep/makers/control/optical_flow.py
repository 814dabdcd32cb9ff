"""Optical flow of a clip on the Middlebury colour wheel."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_number, register
from data_prep.makers.colour_space import luma
from iclora_train.signals.optical_flow import dis_flow

STEPS = (15, 6, 4, 11, 13, 6)  # of the wheel from red to yellow, green, cyan, blue, magenta and back to red
MIN_SCALE = 1.0  # pixels per frame: slow clips are not amplified beyond it


@register("control.flow")
@dataclass(frozen=True)
class OpticalFlow(Maker):
    """Motion from each frame to the next: hue is the direction, saturation the speed, white is still.

    The last frame repeats the picture before it.

    scale: speed in pixels per frame at full saturation; null takes the 99th percentile of the clip.
    """

    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            check_number("scale", self.scale, 0.1)

    @property
    def margin(self) -> int:
        return 8  # the patch size of DIS

    @property
    def needs_motion(self) -> bool:
        return True

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        flows = [dis_flow(a, b) for a, b in pairwise([luma(frame) for frame in frames])]
        if not flows:
            flows = [np.zeros((*frames.shape[1:3], 2), np.float32)]  # a single frame has no motion
        speeds = np.concatenate([np.hypot(flow[..., 0], flow[..., 1]).ravel()[::16] for flow in flows])
        scale = self.scale or max(float(np.percentile(speeds, 99)), MIN_SCALE)
        pictures = [flow_to_colour(flow / scale) for flow in flows]
        return np.stack([*pictures, pictures[-1]][: len(frames)]), {"scale": scale}


def colour_wheel() -> np.ndarray:
    """The colour wheel (55,3) of Baker et al. 2011, "A database and evaluation methodology for optical flow".

    RGB from 0 to 1: linear between the six pure colours, with the number of steps that the eye distinguishes.
    """
    pure = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]], np.float64)
    arcs = [a + np.arange(n)[:, None] / n * (b - a) for n, (a, b) in zip(STEPS, pairwise(pure), strict=True)]
    return np.concatenate(arcs)


def flow_to_colour(flow: np.ndarray) -> np.ndarray:
    """A flow (H,W,2), of length 1 at full colour, as uint8 RGB (H,W,3). Right is red; longer vectors are darkened."""
    colours = colour_wheel()
    length = np.hypot(flow[..., 0], flow[..., 1])[..., None]
    position = (np.arctan2(-flow[..., 1], -flow[..., 0]) / np.pi + 1) / 2 * (len(colours) - 1)
    low = position.astype(int)
    share = (position - low)[..., None]
    hue = (1 - share) * colours[low] + share * colours[(low + 1) % len(colours)]
    return np.floor(255 * np.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)).astype(np.uint8)
