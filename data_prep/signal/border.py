"""A painted border around a clip: the signal that extends its picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.makers import SourceWindow
from data_prep.makers.base import Params, RegionMaker
from data_prep.makers.edit.masks import paint_mask


@dataclass(frozen=True)
class ExtendedBorder(RegionMaker):
    """Paints what was added around the frames of a clip, in the colour of `edit.outpaint`.

    borders: left, top, right, bottom, in pixels of the clip with borders, before it is scaled.
    """

    borders: tuple[int, int, int, int]
    colour: tuple[int, ...]

    def region(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        left, top, right, bottom = self.borders
        height, width = source.crop.clip_size
        added = np.ones((height, width), np.float32)
        added[top : height - bottom, left : width - right] = 0
        # any share of an added pixel makes a pixel new: black would mix into the picture
        region = source.crop.apply(added, cv2.INTER_AREA) > 0
        return np.repeat(region[None], len(frames), axis=0), {"borders": list(self.borders)}

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        border, params = self.region(frames, rng, source)
        return paint_mask(frames, border, self.colour), {**params, "covered": float(border.mean())}
