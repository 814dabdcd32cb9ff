"""Control signals: the adapter learns to fill them with a picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.makers.degrade import luma
from data_prep.makers.maker import Drawn, check_number, register
from iclora_train.config import require


@register("control.canny")
@dataclass(frozen=True)
class Canny:
    """White Canny edges on black.

    low, high: hysteresis thresholds on the gradient of the luma. blur: sigma of a Gaussian before (0 for none), against
    noise. thickness: width of the drawn lines in pixels. soft: sigma of a Gaussian over the drawing, because a VAE
    loses hard thin lines (0 for none).
    """

    low: float = 100.0
    high: float = 200.0
    blur: float = 0.0
    thickness: int = 1
    soft: float = 0.0

    def __post_init__(self) -> None:
        for key in ("low", "high", "blur", "soft"):
            check_number(key, getattr(self, key), 0)
        check_number("thickness", self.thickness, 1)
        whole = isinstance(self.thickness, int)
        require(whole, f"task.maker_args.thickness={self.thickness} must be a whole number of pixels")
        require(self.low <= self.high, f"task.maker_args.low={self.low} must not be above high={self.high}")

    @property
    def margin(self) -> int:
        return int(np.ceil(3 * self.blur + 3 * self.soft)) + self.thickness + 4

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Drawn]:
        return np.stack([self._draw(frame) for frame in frames]), {}

    def _draw(self, frame: np.ndarray) -> np.ndarray:
        grey = luma(frame)
        if self.blur:
            grey = cv2.GaussianBlur(grey, (0, 0), self.blur)
        edges = cv2.Canny(grey, self.low, self.high, L2gradient=True)
        if self.thickness > 1:
            edges = cv2.dilate(edges, np.ones((self.thickness, self.thickness), np.uint8))
        if self.soft:
            edges = cv2.GaussianBlur(edges, (0, 0), self.soft)
        return cv2.cvtColor(edges, cv2.COLOR_GRAY2RGB)


@register("given")
@dataclass(frozen=True)
class Given:
    """The reference is a video of its own: the column `reference` of the clip list."""

    @property
    def margin(self) -> int:
        return 0

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Drawn]:
        return frames, {}
