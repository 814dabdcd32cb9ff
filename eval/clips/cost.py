"""What sampling costs: seconds of a clip, measured before the first one, and the seconds that are left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eval.clips.conditions import Condition
from iclora_train.config.durations import end_text

Batch = tuple[str, int]  # name of the condition, number of the batch


@dataclass(frozen=True)
class ClipCost:
    """Measured seconds of one clip: a pass of the transformer with and without a reference, and decoding.

    passes: passes in a step (`Guidance.passes`, with sound `AudioGuidance.passes`). video_alone: seconds of a whole
    step of the video stream alone, where the others have both.
    """

    with_reference: float
    without_reference: float
    decoding: float
    passes: int
    video_alone: float | None = None

    def of(self, condition: Condition, steps: int) -> float:
        """Seconds of a clip under a condition, with `steps` sampling steps.

        A clip without one of several references counts as one with all.
        """
        if not condition.audio and self.video_alone is not None:
            return steps * self.video_alone + self.decoding
        one_pass = self.with_reference if condition.has_reference else self.without_reference
        return steps * self.passes * one_pass + self.decoding


class Forecast:
    """The seconds until all batches are sampled: the estimate, corrected by the time that finished batches took.

    seconds: batch -> estimated seconds, for the batches that are not in the cache. cost: what they were estimated from.
    """

    def __init__(self, seconds: Mapping[Batch, float], cost: ClipCost | None = None) -> None:
        self.cost = cost
        self._waiting = dict(seconds)
        self._estimated = self._taken = 0.0  # seconds of the finished batches

    @property
    def seconds_left(self) -> float:
        """Seconds until the last batch is done."""
        factor = self._taken / self._estimated if self._estimated else 1.0
        return factor * sum(self._waiting.values())

    def finish(self, batch: Batch, seconds: float) -> None:
        """Count a batch as done, after this many seconds. Batches from the cache say nothing about the speed."""
        estimated = self._waiting.pop(batch, None)
        if estimated is not None:
            self._estimated += estimated
            self._taken += seconds

    @property
    def note(self) -> str:
        """The end of the sampling, for a progress bar; empty when nothing is left."""
        return f"sampling ends {end_text(self.seconds_left)}" if self._waiting else ""
