"""One-sided significance tests on paired values, and Holm's correction, in plain NumPy so that eval needs no SciPy.

The alternative hypothesis is always "larger than by chance".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erfc, sqrt

import numpy as np

from eval.statistics.estimates import Values, drop_nan

EXACT_UP_TO = 50  # units; up to here, and without ties, the exact signed-rank distribution is used


def ranks(values: Values) -> Values:
    """Rank 1 for the smallest value; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def signed_rank(differences: Values | Sequence[float]) -> float | None:
    """One-sided p of Wilcoxon's signed-rank test (1945) that paired differences lie above 0; None without a unit.

    Zeros are dropped. Exact up to 50 units without ties; otherwise the normal approximation with a tie-corrected
    variance and a continuity correction (Hollander, Wolfe, Chicken 2014, section 3.1).
    """
    units = drop_nan(differences)
    if len(units) == 0:
        return None
    units = units[units != 0]
    n = len(units)
    if n == 0:
        return 1.0
    size = np.abs(units)
    rank = ranks(size)
    positive = float(rank[units > 0].sum())
    _, counts = np.unique(size, return_counts=True)
    if n <= EXACT_UP_TO and counts.max() == 1:
        return _exact_tail(round(positive), n)
    variance = n * (n + 1) * (2 * n + 1) / 24 - float((counts**3 - counts).sum()) / 48
    return upper_tail((positive - n * (n + 1) / 4 - 0.5) / sqrt(variance))


def _exact_tail(positive: int, n: int) -> float:
    """P(sum of positive ranks >= positive) where each of the ranks 1..n is positive with probability 1/2."""
    ways = np.zeros(n * (n + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, n + 1):
        ways[rank:] += ways[:-rank].copy()
    return float(ways[positive:].sum() / 2.0**n)


def upper_tail(z: float) -> float:
    """P(Z >= z) of the standard normal."""
    return erfc(z / sqrt(2)) / 2


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p values after Holm's step-down correction (1979), which controls the chance of any false positive among them."""
    result: dict[str, float] = {}
    largest = 0.0
    for i, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - i) * p[name]))
        result[name] = largest
    return {name: result[name] for name in p}


def page_trend(table: Values) -> float | None:
    """One-sided p of Page's trend test (1963) that values rise along the rows of `table` (units, conditions).

    Rows with NaN are left out. Normal approximation L ~ N(m k (k+1)^2 / 4, m k^2 (k+1) (k^2 - 1) / 144) for m units
    and k conditions. None with fewer than three conditions or without a unit.
    """
    rows = table[~np.isnan(table).any(1)]
    m, k = rows.shape
    if m == 0 or k < 3:
        return None
    expected_ranks = np.arange(1, k + 1)
    statistic = float(sum(ranks(row) @ expected_ranks for row in rows))
    std = sqrt(m * k**2 * (k + 1) * (k**2 - 1) / 144)
    return upper_tail((statistic - m * k * (k + 1) ** 2 / 4) / std)
