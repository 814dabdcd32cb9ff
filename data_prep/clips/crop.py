"""Where the pixels of a clip land in a cut of it: its frames, and the masks, depth and tracks that come with it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.clips.windows import Window


@dataclass(frozen=True)
class Crop:
    """A picture of the clip, `clip` (height, width) pixels, is scaled to `scaled` (height, width). Of it, `size`
    (height, width) pixels from `crop` (top, left) on are kept, and `margin` more on each side if there are any; if
    `flip`, mirrored.
    """

    clip_size: tuple[int, int]
    scaled: tuple[int, int]
    top_left: tuple[int, int]
    size: tuple[int, int]
    flip: bool
    margin: int = 0

    @classmethod
    def of_window(cls, window: Window, clip_size: tuple[int, int], margin: int = 0) -> Crop:
        """Of a window in a clip of that size, with a margin around it."""
        return cls(clip_size, window.scaled, window.crop, window.size, window.flip, margin)

    @property
    def start(self) -> tuple[int, int]:
        """(top, left) of what is kept, in the scaled clip."""
        return max(self.top_left[0] - self.margin, 0), max(self.top_left[1] - self.margin, 0)

    @property
    def stop(self) -> tuple[int, int]:
        """(bottom, right) of what is kept, in the scaled clip."""
        bottom, right = (at + length + self.margin for at, length in zip(self.top_left, self.size, strict=True))
        return min(bottom, self.scaled[0]), min(right, self.scaled[1])

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of what is kept: `size` and the margin that there is."""
        return self.stop[0] - self.start[0], self.stop[1] - self.start[1]

    @property
    def inner_offset(self) -> tuple[int, int]:
        """(top, left) in what is kept at which the `size` pixels begin."""
        left = self.stop[1] - self.top_left[1] - self.size[1] if self.flip else self.top_left[1] - self.start[1]
        return self.top_left[0] - self.start[0], left

    def apply(self, picture: np.ndarray, interpolation: int = cv2.INTER_AREA) -> np.ndarray:
        """What is kept of a picture (H,W) or (H,W,C) of the whole clip, whatever its resolution. Take
        cv2.INTER_NEAREST_EXACT for labels and masks that must stay two-valued.
        """
        height, width = self.scaled
        if picture.shape[:2] != self.scaled:
            picture = cv2.resize(picture, (width, height), interpolation=interpolation)
        (top, left), (bottom, right) = self.start, self.stop
        kept = picture[top:bottom, left:right]
        return np.ascontiguousarray(kept[:, ::-1] if self.flip else kept)

    def apply_to_points(self, points: np.ndarray) -> np.ndarray:
        """Points (...,2), x and y in the clip's pixels, in pixels of what is kept: fp64. A pixel's centre has whole
        numbers, as in OpenCV; points outside stay outside.
        """
        scale = np.array(self.scaled[::-1]) / self.clip_size[::-1]
        moved = (np.asarray(points, np.float64) + 0.5) * scale - 0.5 - self.start[::-1]
        if self.flip:
            moved[..., 0] = self.padded_size[1] - 1 - moved[..., 0]
        return moved
