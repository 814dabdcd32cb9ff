"""One-sided significance tests over recordings, and Holm's correction, in plain NumPy so that eval needs no SciPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erfc, sqrt

import numpy as np

from eval.statistics import student_t
from eval.statistics.estimates import Values, drop_nan, recording_means, standard_error


def ranks(values: Values) -> Values:
    """Rank 1 for the smallest value; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def p_above(values: Values | Sequence[float], recordings: Sequence[str], threshold: float = 0.0) -> float | None:
    """One-sided p of Student's t over recordings that the mean lies above `threshold`; None below two recordings.

    The test that belongs to the interval of `estimates.estimate`: a 95 % interval ends at the threshold if p is 0.025.
    """
    means = recording_means(values, recordings)
    if len(means) < 2:
        return None
    excess, error = float(means.mean()) - threshold, standard_error(means)
    if error == 0:
        return 0.0 if excess > 0 else 1.0
    return student_t.upper_tail(excess / error, len(means) - 1)


def two_sided_p(differences: Values | Sequence[float], recordings: Sequence[str]) -> float | None:
    """Two-sided p that the mean difference is not 0: twice the smaller tail; None below two recordings."""
    tails = [p_above(differences, recordings), p_above(-np.asarray(differences, np.float64), recordings)]
    measured = [p for p in tails if p is not None]
    return min(1.0, 2 * min(measured)) if measured else None


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p values after Holm's step-down correction (1979), which controls the chance of any false positive among them."""
    result: dict[str, float] = {}
    largest = 0.0
    for i, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - i) * p[name]))
        result[name] = largest
    return {name: result[name] for name in p}


def holm_but(p: Mapping[str, float], primary: str) -> dict[str, float]:
    """`holm` of all but the primary one, which is fixed before anything is measured and is not corrected."""
    corrected = holm({name: value for name, value in p.items() if name != primary})
    return {name: corrected.get(name, value) for name, value in p.items()}


def page_trend(table: Values, recordings: Sequence[str]) -> float | None:
    """One-sided p of Page's trend test (1963) that values rise along the rows of `table` (windows, conditions).

    Rows with NaN are left out; the rows of a recording are averaged, and recordings are the blocks of the test. Normal
    approximation L ~ N(m k (k+1)^2 / 4, m k^2 (k+1) (k^2 - 1) / 144) for m recordings and k conditions. None with fewer
    than three conditions or without a complete row.
    """
    complete = np.where(np.isnan(table).any(1, keepdims=True), np.nan, table)
    k = table.shape[1]
    if k < 3 or len(drop_nan(complete[:, 0])) == 0:
        return None
    rows = np.stack([recording_means(column, recordings) for column in complete.T], axis=1)  # (recordings, conditions)
    m, expected_ranks = len(rows), np.arange(1, k + 1)
    statistic = float(sum(ranks(row) @ expected_ranks for row in rows))
    std = sqrt(m * k**2 * (k + 1) * (k**2 - 1) / 144)
    z = (statistic - m * k * (k + 1) ** 2 / 4) / std
    return erfc(z / sqrt(2)) / 2
