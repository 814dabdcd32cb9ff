"""FVD: is the set of all outputs of a condition like the set of all targets? It has no value per window.

Features are computed while clips are sampled, and compared at the end (`eval.statistics.clip_sets`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from rich.console import Console

from eval.clips.conditions import (
    ADAPTER_ONLY,
    ADAPTER_REFERENCE,
    BASE,
    BASE_REFERENCE,
    CEILING,
    CLASSIC,
    EMPTY_PROMPT,
    INPUT,
    SWAPPED,
    is_of_one_reference,
    judged_row,
)
from eval.metrics import Clip
from eval.metrics.extra import ClipFeatures
from eval.statistics.clip_sets import (
    DRAWS,
    MIN_RECORDINGS,
    ClipSet,
    Distance,
    SetEstimate,
    set_estimate,
    with_redrawn,
)
from eval.statistics.estimates import Values
from iclora_train.core.progress import progress_bar

ROWS = (ADAPTER_REFERENCE, BASE_REFERENCE, BASE, ADAPTER_ONLY, SWAPPED, EMPTY_PROMPT, INPUT, CLASSIC, CEILING)
COMPARED = (INPUT, BASE_REFERENCE)  # with adapter+reference
COMPARED_PLAIN = (BASE,)  # with the adapter, in a task without references
TARGETS = "target"
ENOUGH = 2048  # clips of each set from which FVD is usually reported
METRICS = {"fvd": "FVD", "kvd": "KVD, 1e-3"}  # both: lower is better


class ClipSets:
    """The features of all clips, by row. features: the network; None if `eval.metrics` does not name fvd."""

    def __init__(self, features: ClipFeatures | None, recordings: Sequence[str]) -> None:
        self.features = features
        _, self.recordings = np.unique(np.asarray(recordings), return_inverse=True)  # number of each window's recording
        self.pending: dict[str, list[tuple[int, Future[Values]]]] = {}

    def submit(
        self, pool: Executor, row: str, windows: Sequence[int], clip_of: Callable[[int], Clip]
    ) -> list[Future[Any]]:
        """Start to compute the features of the clips clip_of(0), clip_of(1), ... of a row. windows: of each clip."""
        if self.features is None or not (row == TARGETS or has_features(row)):
            return []
        embed = self.features.embed

        def features_of(i: int) -> Values:
            return embed(clip_of(i))

        started = [pool.submit(features_of, i) for i in range(len(windows))]
        self.pending.setdefault(row, []).extend(zip(windows, started, strict=True))
        return started

    def finish(self) -> None:
        """Wait for the features. The pool that computes them must not be left before."""
        for row in self.pending.values():
            for _, future in row:
                future.result()

    def compared(self, console: Console) -> dict[str, Any] | None:
        """`sets` of scores.json; None without fvd. The progress bar is on `console`.

        A distance that is not defined is left out: kvd of a single recording.
        """
        if self.features is None:
            return None
        count = int(self.recordings.max()) + 1
        rows = self._rows()
        clips, values = {row: len(self.pending[row]) for row in rows}, {}
        total = len(rows) * len(METRICS) * (1 + (DRAWS if count >= MIN_RECORDINGS else 0))
        with progress_bar("comparing sets of clips", total, console=console) as bar:
            for row in rows:
                values[row] = {m: with_redrawn(d, count, bar.advance) for m, d in self._distances(row).items()}
        with_adapter = values[judged_row(values)]
        differences = {
            other: {metric: with_adapter[metric] - values[other][metric] for metric in METRICS}
            for other in _compared_with(values)
            if other in values
        }
        return {
            "network": self.features.network,
            "metrics": METRICS,
            "targets": len(self.pending[TARGETS]),
            "enough": ENOUGH,
            "rows": {row: _estimates(values[row], count, clips[row]) for row in rows},
            "paired": {other: _estimates(row, count, clips[other]) for other, row in differences.items()},
        }

    def _rows(self) -> list[str]:
        """The rows with features in the order of ROWS; those of one of several references follow `swapped`."""
        of_one = [row for row in self.pending if is_of_one_reference(row)]
        ordered = [row for name in ROWS for row in (name, *(of_one if name == SWAPPED else ()))]
        return [row for row in ordered if row in self.pending]

    def _distances(self, row: str) -> dict[str, Distance]:
        """METRICS of the outputs of a row and the targets."""
        (outputs, of_output), (targets, of_target) = self._features(row), self._features(TARGETS)
        clip_set = ClipSet(outputs, targets, of_output, of_target)
        return {"fvd": clip_set.frechet, "kvd": _thousandfold(clip_set.kernel())}

    def _features(self, row: str) -> tuple[Values, np.ndarray]:
        """Features (n,D) of the clips of a row, and the number of the recording of each."""
        windows = [number for number, _ in self.pending[row]]
        return np.stack([future.result() for _, future in self.pending[row]]), self.recordings[windows]


def has_features(row: str) -> bool:
    """Whether the clips of a row or condition are compared as a set."""
    return row in ROWS or is_of_one_reference(row)


def _compared_with(rows: Collection[str]) -> list[str]:
    """The rows that the judged row is compared with, on the same redrawn recordings."""
    of_one = [row for row in rows if is_of_one_reference(row)]
    return [*COMPARED, *of_one] if ADAPTER_REFERENCE in rows else list(COMPARED_PLAIN)


def _estimates(values: Mapping[str, Values], recordings: int, clips: int) -> dict[str, SetEstimate]:
    """The estimates of the metrics that are defined."""
    estimates = {metric: set_estimate(of_metric, recordings, clips) for metric, of_metric in values.items()}
    return {metric: estimate for metric, estimate in estimates.items() if estimate is not None}


def _thousandfold(distance: Distance) -> Distance:
    return lambda counts: 1000 * distance(counts)
