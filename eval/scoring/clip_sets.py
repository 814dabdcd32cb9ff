"""FVD: is the set of all outputs of a condition like the set of all targets? It has no value per window.

Features are computed while clips are sampled, and compared at the end (`eval.statistics.clip_sets`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

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
)
from eval.metrics import Clip
from eval.metrics.extra import ClipFeatures
from eval.statistics.clip_sets import ClipSet, Distance, SetEstimate, set_estimate
from eval.statistics.estimates import Values

ROWS = (ADAPTER_REFERENCE, BASE_REFERENCE, BASE, ADAPTER_ONLY, SWAPPED, EMPTY_PROMPT, INPUT, CLASSIC, CEILING)
COMPARED = (INPUT, BASE_REFERENCE)  # with adapter+reference, on the same redrawn recordings
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
        if self.features is None or row not in (*ROWS, TARGETS):
            return []
        embed = self.features.embed

        def features_of(i: int) -> Values:
            return embed(clip_of(i))

        started = [pool.submit(features_of, i) for i in range(len(windows))]
        self.pending.setdefault(row, []).extend(zip(windows, started, strict=True))
        return started

    def compared(self) -> dict[str, Any] | None:
        """`sets` of scores.json; None without fvd. Waits for the features."""
        if self.features is None:
            return None
        targets, of_target = self._features(TARGETS)
        distances, clips = {}, {}
        for row in (row for row in ROWS if row in self.pending):
            outputs, of_output = self._features(row)
            clip_set, clips[row] = ClipSet(outputs, targets, of_output, of_target), len(outputs)
            distances[row] = {"fvd": clip_set.frechet, "kvd": _thousandfold(clip_set.kernel())}
        own = distances[ADAPTER_REFERENCE]
        return {
            "network": self.features.network,
            "metrics": METRICS,
            "targets": len(targets),
            "enough": ENOUGH,
            "rows": {row: self._estimates(by_metric, clips[row]) for row, by_metric in distances.items()},
            "paired": {
                other: self._estimates({m: _minus(own[m], distances[other][m]) for m in METRICS}, clips[other])
                for other in COMPARED
                if other in distances
            },
        }

    def _features(self, row: str) -> tuple[Values, np.ndarray]:
        """Features (n,D) of the clips of a row, and the number of the recording of each."""
        windows = [number for number, _ in self.pending[row]]
        return np.stack([future.result() for _, future in self.pending[row]]), self.recordings[windows]

    def _estimates(self, distances: dict[str, Distance], clips: int) -> dict[str, SetEstimate]:
        count = int(self.recordings.max()) + 1
        return {metric: set_estimate(distance, count, clips) for metric, distance in distances.items()}


def _thousandfold(distance: Distance) -> Distance:
    return lambda counts: 1000 * distance(counts)


def _minus(first: Distance, second: Distance) -> Distance:
    return lambda counts: first(counts) - second(counts)
