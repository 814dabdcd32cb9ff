"""Edges: the adapter learns to fill a drawing with a picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.makers.maker import Drawn, Source, check_number, register
from iclora_train.config import require

LARGEST = 4  # times that a target may be larger than `size` or `reference_height` with its edges still right at borders


@register("control.canny")
@dataclass(frozen=True)
class Canny:
    """White Canny edges on black.

    low, high: hysteresis thresholds on the gradient of the luma. blur: sigma of a Gaussian before (0 for none), against
    noise. thickness: width of the drawn lines in pixels. soft: sigma of a Gaussian over the drawing, because a VAE
    loses hard thin lines (0 for none).

    Two ways to look the same at every resolution, of which one may be set. size: all is done with the target's short
    side scaled to that many pixels, where thresholds, blur, thickness and soft are meant, and the drawing is scaled
    back (Lightricks' workflows: low 92, high 200, size 512). reference_height: edges are sought at the target's own
    size, but blur, thickness and soft are pixels of a target of that height.
    """

    low: float = 100.0
    high: float = 200.0
    blur: float = 0.0
    thickness: int = 1
    soft: float = 0.0
    size: int | None = None
    reference_height: int | None = None

    def __post_init__(self) -> None:
        for key in ("low", "high", "blur", "soft"):
            check_number(key, getattr(self, key), 0)
        check_number("thickness", self.thickness, 1)
        whole = isinstance(self.thickness, int)
        require(whole, f"task.maker_args.thickness={self.thickness} must be a whole number of pixels")
        require(self.low <= self.high, f"task.maker_args.low={self.low} must not be above high={self.high}")
        for key in ("size", "reference_height"):
            if getattr(self, key) is not None:
                check_number(key, getattr(self, key), 16)
        one = self.size is None or self.reference_height is None
        require(one, "task.maker_args.size and reference_height cannot both be set: size already fixes the widths")

    @property
    def margin(self) -> int:
        needed = int(np.ceil(3 * self.blur + 3 * self.soft)) + self.thickness + 4
        return needed if self.size is None and self.reference_height is None else LARGEST * needed

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, Drawn]:
        height, width = source.placement.size
        if self.size is not None:
            scale = self.size / min(height, width)
            small = [_scaled(frame, scale) for frame in frames]
            drawings = [self._draw(frame, 1.0) for frame in small]
            back = (frames.shape[2], frames.shape[1])
            way = cv2.INTER_LINEAR if scale < 1 else cv2.INTER_AREA
            return np.stack([cv2.resize(drawing, back, interpolation=way) for drawing in drawings]), {}
        wider = 1.0 if self.reference_height is None else height / self.reference_height
        return np.stack([self._draw(frame, wider) for frame in frames]), {}

    def _draw(self, frame: np.ndarray, wider: float) -> np.ndarray:
        """Edges (H,W,3) with widths `wider` times those of the fields."""
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)  # Rec. 601 luma
        if self.blur:
            grey = cv2.GaussianBlur(grey, (0, 0), self.blur * wider)
        edges = cv2.Canny(grey, self.low, self.high, L2gradient=True)
        thickness = max(round(self.thickness * wider), 1)
        if thickness > 1:
            edges = cv2.dilate(edges, np.ones((thickness, thickness), np.uint8))
        if self.soft:
            edges = cv2.GaussianBlur(edges, (0, 0), self.soft * wider)
        return cv2.cvtColor(edges, cv2.COLOR_GRAY2RGB)


def _scaled(frame: np.ndarray, scale: float) -> np.ndarray:
    """The frame at `scale` times its size."""
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=way)
