"""Canny edges: the adapter learns to turn a line drawing into a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_number, register
from iclora_train.config import require
from iclora_train.signals.edges import CannyEdges

# Edges at the border are correct for targets up to this many times `size` or `reference_height`; it sets the margin.
MAX_UPSCALE = 4


@register("control.canny")
@dataclass(frozen=True)
class Canny(CannyEdges, Maker):
    """White Canny edges on black, with the arguments of `CannyEdges`."""

    def __post_init__(self) -> None:
        for key in ("low", "high", "blur", "soft"):
            check_number(key, getattr(self, key), 0)
        check_number("thickness", self.thickness, 1)
        is_whole = isinstance(self.thickness, int)
        require(is_whole, f"task.maker_args.thickness={self.thickness} must be a whole number of pixels")
        require(self.low <= self.high, f"task.maker_args.low={self.low} must not be above high={self.high}")
        for key in ("size", "reference_height"):
            if getattr(self, key) is not None:
                check_number(key, getattr(self, key), 16)
        at_most_one = self.size is None or self.reference_height is None
        message = "task.maker_args.size and reference_height cannot both be set: size already fixes the widths"
        require(at_most_one, message)

    @property
    def margin(self) -> int:
        pixels = int(np.ceil(3 * self.blur + 3 * self.soft)) + self.thickness + 4
        return pixels if self.size is None and self.reference_height is None else MAX_UPSCALE * pixels

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        return self.draw(frames, source.crop.size), {}
