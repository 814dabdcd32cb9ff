"""Distances between two sets of clips by their features: Fréchet distance (FVD) and kernel distance (KVD).

A distance of sets has no value per clip, so its error comes from a bootstrap over recordings: a recording enters with
all its outputs and all its targets. The interval is the value -+ Student's t times the standard deviation of the
redrawn values (times the root of R / (R - 1), for R recordings). Redrawn sets repeat clips, which makes every distance
larger, but hardly changes how they spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from eval.statistics.estimates import COVERAGE, Values
from eval.statistics.student_t import two_sided_quantile

DRAWS = 200  # redrawn sets; the standard deviation of so many is known to 5 %
MIN_RECORDINGS = 3  # below, no interval
Counts = NDArray[np.int64]  # (recordings,): how often each is drawn
Distance = Callable[[Counts], float]


class SetEstimate(TypedDict):
    """A distance of sets (`mean`, as in `Estimate`), its 95 % interval (None below MIN_RECORDINGS), and the number of
    outputs."""

    mean: float
    low: float | None
    high: float | None
    clips: int


class ClipSet:
    """Features of outputs (n,D) and of targets (m,D), with the number of the recording of each clip."""

    def __init__(self, outputs: Values, targets: Values, of_output: Counts, of_target: Counts) -> None:
        self.outputs, self.targets = outputs, targets
        self.of_output, self.of_target = of_output, of_target
        self.recordings = int(max(of_output.max(), of_target.max())) + 1

    def frechet(self, counts: Counts) -> float:
        """Fréchet distance of the two sets, with every recording as often as `counts` says."""
        repeated = (
            np.repeat(features, counts[recording], axis=0)
            for features, recording in ((self.outputs, self.of_output), (self.targets, self.of_target))
        )
        return frechet(*repeated)

    def kernel(self) -> Distance:
        """The kernel distance as a function of counts; kernels are computed once. NaN for a single recording."""
        table = kernel_table(self.outputs, self.targets, self.of_output, self.of_target)

        def distance(counts: Counts) -> float:
            weights = np.outer(counts, counts).astype(np.float64)
            np.fill_diagonal(weights, 0)
            return float((weights * table).sum() / weights.sum()) if weights.any() else float("nan")

        return distance


def frechet(outputs: Values, targets: Values) -> float:
    """|mean difference|^2 + Tr(A + B - 2 sqrt(A B)) for the covariances A, B of features (n,D) and (m,D).

    The trace of the root of A B is the sum of the singular values of X Y^T, where X^T X = A and Y^T Y = B. Therefore
    fewer clips than features are no problem of the arithmetic (only of the estimate, which is too large).
    """
    (x, mean_x), (y, mean_y) = (_root(features) for features in (outputs, targets))
    shared = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(((mean_x - mean_y) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * shared)


def _root(features: Values) -> tuple[Values, Values]:
    """X with X^T X = the covariance of features (n,D), with at most D rows; and their mean (D,)."""
    mean = features.mean(0)
    x = (features - mean) / max(len(features) - 1, 1) ** 0.5
    return np.asarray(np.linalg.qr(x, mode="r") if len(x) > x.shape[1] else x), mean


def kernel_table(outputs: Values, targets: Values, of_output: Counts, of_target: Counts) -> Values:
    """k(outputs) + k(targets) - 2 k(outputs, targets) between each two recordings (R,R), mean over their clips.

    k(a, b) = (a . b / D + 1)^3 (Binkowski et al. 2018, arXiv 1801.01401). The mean off the diagonal is the squared
    maximum mean discrepancy. It has no bias, because clips of one recording, which are alike, are never compared.
    """
    count = int(max(of_output.max(), of_target.max())) + 1
    shares = [
        (np.arange(count)[:, None] == recording) / np.maximum(np.bincount(recording, minlength=count), 1)[:, None]
        for recording in (of_output, of_target)
    ]  # (R, clips): averages over the clips of a recording

    def between(a: Values, of_a: Values, b: Values, of_b: Values) -> Values:
        return np.asarray(of_a @ (a @ b.T / a.shape[1] + 1) ** 3 @ of_b.T)

    crossed = between(outputs, shares[0], targets, shares[1])
    within = between(outputs, shares[0], outputs, shares[0]) + between(targets, shares[1], targets, shares[1])
    return within - crossed - crossed.T


def with_redrawn(distance: Distance, recordings: int, count: Callable[[], None] = lambda: None) -> Values:
    """A distance and its values for the redrawn sets (1 + DRAWS,), in the order of `redrawn`; below MIN_RECORDINGS
    only the distance (1,). The difference of two conditions is that of their arrays. count: called after each value."""
    values = []
    for counts in [np.ones(recordings, np.int64), *(redrawn(recordings) if recordings >= MIN_RECORDINGS else [])]:
        values.append(distance(counts))
        count()
    return np.array(values)


def set_estimate(values: Values, recordings: int, clips: int) -> SetEstimate | None:
    """A distance with its interval over recordings, from `with_redrawn`. None if it is not defined (NaN)."""
    value, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return None
    if len(drawn) < 2:
        return {"mean": value, "low": None, "high": None, "clips": clips}
    spread = float(np.std(drawn, ddof=1)) * (recordings / (recordings - 1)) ** 0.5
    half = two_sided_quantile(COVERAGE, recordings - 1) * spread
    return {"mean": value, "low": value - half, "high": value + half, "clips": clips}


def redrawn(recordings: int) -> Sequence[Counts]:
    """How often each recording is drawn, DRAWS times; the same numbers for all conditions, so that differences pair."""
    rng = np.random.default_rng(0)
    return [np.bincount(rng.integers(0, recordings, recordings), minlength=recordings) for _ in range(DRAWS)]
