"""References that you supply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, register


@register("given")
@dataclass(frozen=True)
class Given(Maker):
    """The reference is the video in the column `reference` of the clip list, unchanged."""

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        return frames, {}
