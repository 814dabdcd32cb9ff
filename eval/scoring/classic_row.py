"""Choose the classic filter that an adapter has to beat: one for the whole evaluation, by mean PSNR."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from eval.clips.classic_filters import ClassicFilter, Degraded, classic_filters, without_filter
from eval.clips.windows import HeldOut
from eval.metrics.picture import psnr
from eval.scoring.ground_truth import GroundTruths
from iclora_train.config import Task

CHOSEN_ON = (8, 9)  # windows and frames of each, at equal steps, on which the filters are compared


@dataclass(frozen=True)
class ClassicChoice:
    """The chosen filter, or None and the reason. psnr: filter -> mean PSNR on the windows that it was chosen on."""

    chosen: ClassicFilter | None
    reason: str = ""
    psnr: Mapping[str, float] = field(default_factory=dict)
    windows: int = 0

    @property
    def json_facts(self) -> dict[str, Any]:
        """`classic` of scores.json."""
        return {
            "filter": None if self.chosen is None else self.chosen.name,
            "reason": self.reason,
            "windows": self.windows,
            "candidates": {name: round(value, 4) for name, value in self.psnr.items()},
        }


class ClassicRow:
    """Applies the filters of a task to windows by number."""

    def __init__(self, held_out: HeldOut, truths: GroundTruths, task: Task, device: torch.device) -> None:
        self.held_out, self.truths, self.task = held_out, truths, task
        self.filters = classic_filters(task, device)

    def choose(self, pool: Executor) -> ClassicChoice:
        """The filter of the highest mean PSNR over a few windows, which is the same filter for all windows."""
        if not self.filters:
            return ClassicChoice(None, without_filter(self.task))
        count = len(self.held_out.windows)
        windows = np.unique(np.linspace(0, count - 1, min(count, CHOSEN_ON[0])).round().astype(int)).tolist()
        rated = pool.map(lambda f: float(np.mean([self._psnr(f, n) for n in windows])), self.filters)
        by_name = {f.name: value for f, value in zip(self.filters, rated, strict=True)}
        return ClassicChoice(max(self.filters, key=lambda f: by_name[f.name]), "", by_name, len(windows))

    def window(self, number: int) -> Degraded:
        """What a filter sees of a window."""
        truth = self.truths.of(number)
        pair = self.held_out.pair(self.held_out.windows[number])
        return Degraded(truth.cached_reference.clip, pair.references[0], truth.region)

    def _psnr(self, f: ClassicFilter, number: int) -> float:
        """Mean PSNR over a few frames of a window."""
        window, target = self.window(number), self.truths.of(number).target
        frames = np.unique(np.linspace(0, len(target) - 1, CHOSEN_ON[1]).round().astype(int))
        return float(psnr(f.apply(window.at(frames)), target[frames]).mean())
