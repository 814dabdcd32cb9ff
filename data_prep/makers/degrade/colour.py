"""Loss of colour: grey and aged film."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_range, register
from data_prep.makers.colour_space import SRGB, luma
from data_prep.makers.trajectory import Range, Trajectory

CB, CR = np.array([0.0, -0.344136, 1.772]), np.array([1.402, -0.714136, 0.0])  # RGB of one unit of Rec. 601 chroma


@register("degrade.grey")
@dataclass(frozen=True)
class Grey(Trajectory, Maker):
    """Rec. 601 luma in all three channels, unchanged or aged.

    gamma: [from, to] of an exponent on the luma in [0, 1]. contrast: [from, to] of a factor on the distance from
    mid-grey, applied after gamma. tint: [from, to] of the chroma that mid-grey receives; black and white receive none;
    a tint preserves the luma. hue: [from, to] in degrees on the plane of Cb and Cr (120 to 160 is sepia, 320 to 350 a
    cold blue).
    """

    gamma: Range = field(default_factory=lambda: [1.0, 1.0])
    contrast: Range = field(default_factory=lambda: [1.0, 1.0])
    tint: Range = field(default_factory=lambda: [0.0, 0.0])
    hue: Range = field(default_factory=lambda: [120.0, 160.0])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("gamma", self.gamma, 0.1, 10)
        check_range("contrast", self.contrast, 0, 10)
        check_range("tint", self.tint, 0, 0.5)
        check_range("hue", self.hue, 0, 360)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        if [*self.gamma, *self.contrast, *self.tint] == [1, 1, 1, 1, 0, 0]:
            return np.stack([cv2.cvtColor(luma(frame), cv2.COLOR_GRAY2RGB) for frame in frames]), {}
        ranges = {"gamma": self.gamma, "contrast": self.contrast, "tint": self.tint, "hue": self.hue}
        params = {name: self.draw(bounds, len(frames), rng) for name, bounds in ranges.items()}
        tables = [_tone_table(*values) for values in zip(*params.values(), strict=True)]
        aged = np.stack([table[luma(frame)] for table, frame in zip(tables, frames, strict=True)])
        return aged, {name: self.summary(values) for name, values in params.items()}


def _tone_table(gamma: float, contrast: float, tint: float, hue: float) -> np.ndarray:
    """RGB (256,3) uint8 for each luma code."""
    tone = np.clip((SRGB**gamma - 0.5) * contrast + 0.5, 0, 1)[:, None]
    chroma = np.cos(np.radians(hue)) * CB + np.sin(np.radians(hue)) * CR
    return np.rint(np.clip(tone + tint * 4 * tone * (1 - tone) * chroma, 0, 1) * 255).astype(np.uint8)
