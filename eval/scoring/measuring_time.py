"""How long measuring takes: seconds of a clip with all metrics, measured before the first one is sampled.

It is measured as the evaluation measures, by `eval.workers` threads at once, so that what they wait for counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from eval.clips.clip_source import ClipSource
from eval.clips.conditions import SWAPPED
from eval.metrics import GroundTruth, Suite
from eval.metrics.extra import ClipFeatures
from eval.scoring.clip_sets import TARGETS, has_features
from eval.scoring.ground_truth import GroundTruths
from eval.scoring.scorer import MODEL_FREE, thread_pool
from iclora_train.config.extra_metrics import NEEDS

LONG = 5.0  # seconds of a first run that is not repeated: loading and compiling are a small part of it


@dataclass(frozen=True)
class MeasuringTime:
    """Seconds that all threads together need for a clip: `clip` for its metrics, `features` for FVD's network.

    overlaps: a batch is measured while the GPU samples the next one. Not on a CPU, and not with networks on the GPU,
    which take the time of the sampling.
    """

    clip: float = 0.0
    features: float = 0.0
    overlaps: bool = False

    def of(self, conditions: Collection[str], windows: int, seeds: int) -> float:
        """Seconds for all clips of an evaluation and for the rows without a model."""
        swapped = SWAPPED in conditions  # is measured against the clip of its reference, too
        measured = seeds * (len(conditions) + swapped) + len(MODEL_FREE)
        described = seeds * sum(map(has_features, conditions)) + sum(map(has_features, MODEL_FREE)) + len((TARGETS,))
        return windows * (measured * self.clip + described * self.features)

    def wall(self, sampling: float, measuring: float, processes: int) -> float:
        """Seconds until the last clip is measured. Several processes sample first; one of them measures then."""
        return max(sampling, measuring) if self.overlaps and processes == 1 else sampling + measuring


NOT_MEASURED = MeasuringTime()  # or measured already


def measure_measuring(source: ClipSource, suite: Suite, features: ClipFeatures | None) -> MeasuringTime:
    """The seconds of measuring a clip: targets of other recordings, measured as outputs.

    Everything is run twice and the faster run counts, so that reading the target, which is done once for a window, does
    not count for each clip. A first run of more than LONG seconds is not repeated.
    """
    settings, windows = source.config.eval, source.held_out.windows
    truths = GroundTruths(source.held_out, source.config.task, source.base.geometry, source.token_pixels)
    chosen = [truths.of(i % len(windows)) for i in range(settings.workers)]

    def measure(truth: GroundTruth) -> object:
        return suite.measure(truth.shuffled, truth)

    def describe(truth: GroundTruth) -> object:
        return None if features is None else features.embed(truth.shuffled)

    networks = any(NEEDS[name].weights for name in settings.metrics)
    overlaps = source.device.type == "cuda" and not networks
    return MeasuringTime(_seconds(measure, chosen), 0.0 if features is None else _seconds(describe, chosen), overlaps)


def _seconds(work: Callable[[GroundTruth], object], truths: Sequence[GroundTruth]) -> float:
    """Seconds per clip, a thread for each."""
    runs: list[float] = []
    with thread_pool(len(truths)) as pool:
        while not runs or (len(runs) == 1 and runs[0] < LONG):
            started = time.perf_counter()
            list(pool.map(work, truths))
            runs.append(time.perf_counter() - started)
    return min(runs) / len(truths)
