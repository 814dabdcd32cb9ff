"""References that you supply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.clips.columns import MORE_REFERENCES
from data_prep.makers.base import Maker, Params, SourceWindow, register
from iclora_train.config import one_of

FIRST_COLUMN = "reference"


@register("given")
@dataclass(frozen=True)
class Given(Maker):
    """The reference is a video that the clip list names, unchanged.

    column: of the list. The first reference is in the column `reference`, others are in reference_2 to reference_4.
    """

    column: str = FIRST_COLUMN

    def __post_init__(self) -> None:
        one_of("task.maker_args.column", self.column, (FIRST_COLUMN, *MORE_REFERENCES))

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.column == FIRST_COLUMN else (self.column,)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        return frames, {}
