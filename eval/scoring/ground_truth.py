"""What a window's clips are measured against, from the held-out shards."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from eval.clips.windows import HeldOut
from eval.metrics import Clip, GroundTruth, edited_region
from iclora_train.config import Task

LEAST = 8  # windows whose truths stay in memory: those of a batch and its partners
KEPT_BYTES = 2**30  # more windows, as far as this goes
COPIES = 6  # size of a truth over that of its target: three clips, and what metrics read from them once


class GroundTruths:
    """Targets and truths by a window's number, read when they are asked for. band: pixels of a reference token."""

    def __init__(self, held: HeldOut, task: Task, band: int) -> None:
        self.held, self.task, self.band = held, task, band
        kept = max(LEAST, KEPT_BYTES // (COPIES * held.pair(held.windows[0]).target.nbytes))
        self.target: Callable[[int], Clip] = lru_cache(kept)(lambda n: held.pair(held.windows[n]).target)
        self.of: Callable[[int], GroundTruth] = lru_cache(kept)(self._truth)

    def _truth(self, number: int) -> GroundTruth:
        window = self.held.windows[number]
        pair = self.held.pair(window)
        return GroundTruth(
            target=pair.target,
            shuffled=self.target(window.partner),
            reference=fit_to_shape(pair.references[0], pair.target.shape),
            region=edited_region(self.task, pair.target, pair.references[0]),
            record=pair.record,
            fps=pair.fps,
            band=self.band,
        )


def fit_to_shape(given: Clip, shape: tuple[int, ...]) -> Clip:
    """A clip brought to the size (cubic) and frame count (frames repeated) of `shape` (F,H,W,3)."""
    frames, height, width = shape[:3]
    which = np.arange(frames) * len(given) // frames
    if given.shape[1:3] == (height, width):
        return given[which]
    resized = [cv2.resize(given[i], (width, height), interpolation=cv2.INTER_CUBIC) for i in which]
    return np.stack(resized).astype(np.uint8)
