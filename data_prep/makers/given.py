"""References that were made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.makers.base import Params, SourceWindow, register


@register("given")
@dataclass(frozen=True)
class Given:
    """The reference is a video of its own: the column `reference` of the clip list."""

    @property
    def margin(self) -> int:
        return 0

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        return frames, {}
