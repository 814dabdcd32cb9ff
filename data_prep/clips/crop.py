"""The crop of a window: maps frames, masks, depth and points of a whole clip to the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.clips.windows import Window


@dataclass(frozen=True)
class Crop:
    """A crop of a scaled picture. Sizes are (height, width).

    A picture of the clip, `clip_size`, is scaled to `scaled`. The crop starts at `top_left`, has `size`, and up to
    `margin` more pixels on each side where the picture has them. With `flip` the crop is mirrored.
    """

    clip_size: tuple[int, int]
    scaled: tuple[int, int]
    top_left: tuple[int, int]
    size: tuple[int, int]
    flip: bool
    margin: int = 0

    @classmethod
    def of_window(cls, window: Window, clip_size: tuple[int, int], margin: int = 0) -> Crop:
        """The crop of a window in a clip of size (height, width), with a margin around it."""
        return cls(clip_size, window.scaled, window.crop, window.size, window.flip, margin)

    @property
    def start(self) -> tuple[int, int]:
        """(top, left) of the crop with margin, in the scaled clip."""
        return max(self.top_left[0] - self.margin, 0), max(self.top_left[1] - self.margin, 0)

    @property
    def stop(self) -> tuple[int, int]:
        """(bottom, right) of the crop with margin, in the scaled clip."""
        bottom, right = (start + length + self.margin for start, length in zip(self.top_left, self.size, strict=True))
        return min(bottom, self.scaled[0]), min(right, self.scaled[1])

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of the crop with the available margin."""
        return self.stop[0] - self.start[0], self.stop[1] - self.start[1]

    @property
    def inner_offset(self) -> tuple[int, int]:
        """(top, left) of the inner `size` pixels, relative to the crop with margin."""
        left = self.stop[1] - self.top_left[1] - self.size[1] if self.flip else self.top_left[1] - self.start[1]
        return self.top_left[0] - self.start[0], left

    def apply(self, picture: np.ndarray, interpolation: int = cv2.INTER_AREA) -> np.ndarray:
        """Crop, with margin, a picture (H,W) or (H,W,C) of the whole clip at any resolution.

        Use cv2.INTER_NEAREST_EXACT for labels and binary masks.
        """
        return np.ascontiguousarray(self._cropped(picture, interpolation))

    def apply_all(self, pictures: Sequence[np.ndarray], interpolation: int = cv2.INTER_AREA) -> np.ndarray:
        """`apply` of each picture of a clip: (F,H,W) or (F,H,W,C)."""
        result = np.empty((len(pictures), *self.padded_size, *pictures[0].shape[2:]), pictures[0].dtype)
        for i, picture in enumerate(pictures):
            result[i] = self._cropped(picture, interpolation)
        return result

    def _cropped(self, picture: np.ndarray, interpolation: int) -> np.ndarray:
        """The crop as a view of the scaled picture."""
        height, width = self.scaled
        if picture.shape[:2] != self.scaled:
            picture = cv2.resize(picture, (width, height), interpolation=interpolation)
        (top, left), (bottom, right) = self.start, self.stop
        cropped = picture[top:bottom, left:right]
        return cropped[:, ::-1] if self.flip else cropped

    def apply_to_points(self, points: np.ndarray) -> np.ndarray:
        """Map points (...,2), x and y in pixels of the clip, to pixels of the crop with margin, in fp64.

        Pixel centres have whole numbers, as in OpenCV. Points outside stay outside.
        """
        scale = np.array(self.scaled[::-1]) / self.clip_size[::-1]
        moved = (np.asarray(points, np.float64) + 0.5) * scale - 0.5 - self.start[::-1]
        if self.flip:
            moved[..., 0] = self.padded_size[1] - 1 - moved[..., 0]
        return moved
