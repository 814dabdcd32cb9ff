"""Edges: Canny lines, and soft contours from gradients at several scales."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np


@dataclass(frozen=True)
class CannyEdges:
    """White Canny edges on black.

    low, high: hysteresis thresholds on the gradient of the luma. blur: sigma of a Gaussian on the luma, against noise
    (0 for none). thickness: width of the drawn lines in pixels. soft: sigma of a Gaussian over the drawing, because a
    VAE loses hard thin lines (0 for none).

    Two settings make drawings look the same at every resolution; at most one may be set. size: the target is scaled to
    this short side, edges are drawn at that size (all settings are in its pixels), and the drawing is scaled back
    (Lightricks' workflows: low 92, high 200, size 512). reference_height: edges are detected at the target's own size,
    but blur, thickness and soft are in pixels of a target of this height.
    """

    low: float = 100.0
    high: float = 200.0
    blur: float = 0.0
    thickness: int = 1
    soft: float = 0.0
    size: int | None = None
    reference_height: int | None = None

    def draw(self, frames: np.ndarray, target: tuple[int, int]) -> np.ndarray:
        """Draw the edges of frames uint8 (F,H,W,3) as uint8 (F,H,W,3); target: (height, width) of the target."""
        height, width = target
        if self.size is not None:
            scale = self.size / min(height, width)
            drawings = [self._lines(_scaled(frame, scale), 1.0) for frame in frames]
            full_size = (frames.shape[2], frames.shape[1])
            interpolation = cv2.INTER_LINEAR if scale < 1 else cv2.INTER_AREA
            return np.stack([cv2.resize(drawing, full_size, interpolation=interpolation) for drawing in drawings])
        widen = 1.0 if self.reference_height is None else height / self.reference_height
        return np.stack([self._lines(frame, widen) for frame in frames])

    def _lines(self, frame: np.ndarray, widen: float) -> np.ndarray:
        """Edges (H,W,3) with blur, thickness and soft multiplied by `widen`."""
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)  # Rec. 601 luma
        if self.blur:
            grey = cv2.GaussianBlur(grey, (0, 0), self.blur * widen)
        edges = cv2.Canny(grey, self.low, self.high, L2gradient=True)
        thickness = max(round(self.thickness * widen), 1)
        if thickness > 1:
            edges = cv2.dilate(edges, np.ones((thickness, thickness), np.uint8))
        if self.soft:
            edges = cv2.GaussianBlur(edges, (0, 0), self.soft * widen)
        return cv2.cvtColor(edges, cv2.COLOR_GRAY2RGB)


def _scaled(frame: np.ndarray, scale: float) -> np.ndarray:
    """The frame at `scale` times its size."""
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=interpolation)


@dataclass(frozen=True)
class ContourEdges:
    """Grey contours on black from gradients at several scales: a substitute for HED that does not recognise objects.

    scales: sigmas of the Gaussians in pixels. A contour is as strong as the geometric mean of its scale-normalised
    gradients (Lindeberg 1998), so that texture, which vanishes at the coarse scales, stays dark. white: percentile of
    all values of the clip that becomes white. gamma: a value below 1 raises weak contours.
    """

    scales: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0])
    white: float = 99.5
    gamma: float = 0.8

    def draw(self, frames: np.ndarray) -> tuple[np.ndarray, float]:
        """Draw the contours of frames uint8 (F,H,W,3). Also returns the contour strength that is drawn white."""
        edges = np.stack([self._strength(frame) for frame in frames])  # (F,H,W)
        white = float(np.percentile(edges, self.white))
        levels = np.clip(edges / max(white, 1e-6), 0, 1) ** self.gamma
        return np.repeat(np.rint(255 * levels).astype(np.uint8)[..., None], 3, axis=-1), white

    def _strength(self, frame: np.ndarray) -> np.ndarray:
        """Geometric mean over the scales of sigma times the gradient magnitude (H,W) of the strongest channel."""
        product = np.ones(frame.shape[:2], np.float32)
        for sigma in self.scales:
            smooth = cv2.GaussianBlur(frame.astype(np.float32), (0, 0), sigma)
            x, y = cv2.Sobel(smooth, -1, 1, 0, scale=1 / 8), cv2.Sobel(smooth, -1, 0, 1, scale=1 / 8)
            product *= sigma * np.hypot(x, y).max(axis=2)
        return product ** (1 / len(self.scales))
