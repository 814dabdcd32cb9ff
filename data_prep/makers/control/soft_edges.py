"""Soft edges without a network: contours that persist over several scales, without fine texture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_number, register
from iclora_train.config import require
from iclora_train.signals.edges import ContourEdges


@register("control.soft_edges")
@dataclass(frozen=True)
class SoftEdges(ContourEdges, Maker):
    """Grey contours on black, with the arguments of `ContourEdges`."""

    def __post_init__(self) -> None:
        is_list = isinstance(self.scales, list | tuple) and len(self.scales) > 0
        require(is_list, f"task.maker_args.scales={self.scales!r} must be a list of sigmas")
        for sigma in self.scales:
            check_number("scales", sigma, 0.5, 64)
        check_number("white", self.white, 50, 100)
        check_number("gamma", self.gamma, 0.2, 5)

    @property
    def margin(self) -> int:
        return int(np.ceil(3 * max(self.scales))) + 1

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        drawings, white = self.draw(frames)
        return drawings, {"white": white}
