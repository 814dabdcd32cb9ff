"""Soft edges without a network: contours that stand at several scales, fine texture left out."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from data_prep.makers.maker import Drawn, Source, check_number, register
from iclora_train.config import require


@register("control.soft_edges")
@dataclass(frozen=True)
class SoftEdges:
    """Grey contours on black from gradients at several scales. It takes the place of HED and the like but is not it: it
    knows no objects.

    scales: sigmas of the Gaussians in pixels. A contour is as strong as the geometric mean of its scale-normalised
    gradients (Lindeberg 1998), so that texture, which vanishes at the coarse scales, stays dark. white: percentile of
    all values of the clip that becomes white. gamma: below 1, weak contours are raised.
    """

    scales: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0])
    white: float = 99.5
    gamma: float = 0.8

    def __post_init__(self) -> None:
        some = isinstance(self.scales, list | tuple) and len(self.scales) > 0
        require(some, f"task.maker_args.scales={self.scales!r} must be a list of sigmas")
        for sigma in self.scales:
            check_number("scales", sigma, 0.5, 64)
        check_number("white", self.white, 50, 100)
        check_number("gamma", self.gamma, 0.2, 5)

    @property
    def margin(self) -> int:
        return int(np.ceil(3 * max(self.scales))) + 1

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, Drawn]:
        edges = np.stack([self._strength(frame) for frame in frames])  # (F,H,W)
        white = float(np.percentile(edges, self.white))
        levels = np.clip(edges / max(white, 1e-6), 0, 1) ** self.gamma
        return np.repeat(np.rint(255 * levels).astype(np.uint8)[..., None], 3, axis=-1), {"white": white}

    def _strength(self, frame: np.ndarray) -> np.ndarray:
        """Geometric mean over the scales of sigma times the gradient (H,W), of the channel that changes most."""
        product = np.ones(frame.shape[:2], np.float32)
        for sigma in self.scales:
            smooth = cv2.GaussianBlur(frame.astype(np.float32), (0, 0), sigma)
            x, y = cv2.Sobel(smooth, -1, 1, 0, scale=1 / 8), cv2.Sobel(smooth, -1, 0, 1, scale=1 / 8)
            product *= sigma * np.hypot(x, y).max(axis=2)
        return product ** (1 / len(self.scales))
