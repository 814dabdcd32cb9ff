"""Tests of significance on paired units, and Holm's correction. Small enough to be read: eval needs no SciPy.

All are one-sided: the question is always whether something is larger than it would be by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erfc, sqrt

import numpy as np

from eval.statistics.estimates import Values, drop_nan

EXACT_UP_TO = 50  # units; the exact distribution of the signed-rank sum is used without ties


def ranks(values: Values) -> Values:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def signed_rank(differences: Values | Sequence[float]) -> float | None:
    """p of Wilcoxon's signed-rank test (1945) that paired differences lie above 0; None without any unit.

    Zeros are dropped. Exact up to 50 units without ties, beyond that the normal approximation with the variance
    corrected for ties and a continuity correction (Hollander, Wolfe, Chicken 2014, section 3.1).
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
    """Holm's step-down correction (1979): the chance of one false claim among all stays at the level asked for."""
    result: dict[str, float] = {}
    largest = 0.0
    for i, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - i) * p[name]))
        result[name] = largest
    return {name: result[name] for name in p}


def page_trend(table: Values) -> float | None:
    """p of Page's trend test (1963) that values rise along a row: table (units, conditions), NaN rows left out.

    The normal approximation L ~ N(m k (k+1)^2 / 4, m k^2 (k+1) (k^2 - 1) / 144) for m units and k conditions. None
    with fewer than three conditions or no unit.
    """
    rows = table[~np.isnan(table).any(1)]
    m, k = rows.shape
    if m == 0 or k < 3:
        return None
    place = np.arange(1, k + 1)
    statistic = float(sum(ranks(row) @ place for row in rows))
    spread = sqrt(m * k**2 * (k + 1) * (k**2 - 1) / 144)
    return upper_tail((statistic - m * k * (k + 1) ** 2 / 4) / spread)
