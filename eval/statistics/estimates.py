"""Means with 95 % intervals. The unit is the window of a real clip: seeds are averaged inside it first.

Windows of one recording are not independent. Paired verdicts therefore carry a second interval whose unit is the
recording (`by_source`): it is the one to trust when there are few of them. NaN stands for what could not be measured
on a window; it is left out, and n says how many remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

DRAWS = 4000  # of the bootstrap
BOOTSTRAP_FROM = 20  # units; a percentile bootstrap of fewer is too narrow, the t interval is not
_SEED = 20240229
# 97.5 % quantile of Student's t for 1, 2, ... degrees of freedom
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101),
)


class Estimate(TypedDict):
    """A mean, the ends of its 95 % interval (None when there is only one unit), and the number of units."""

    mean: float
    low: float | None
    high: float | None
    n: int


def drop_nan(values: Values | Sequence[float]) -> Values:
    """The values that are numbers."""
    units = np.asarray(values, np.float64)
    return units[~np.isnan(units)]


def estimate(values: Values | Sequence[float]) -> Estimate:
    """Mean over units with its 95 % interval: Student's t below 20 units, percentile bootstrap from there on.

    ValueError when there is no unit.
    """
    units = drop_nan(values)
    n = len(units)
    if n == 0:
        raise ValueError("an estimate needs at least one unit")
    mean = float(np.mean(units))
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    if n < BOOTSTRAP_FROM:
        half = _T[n - 2] * float(np.std(units, ddof=1)) / n**0.5
        return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}
    draws = np.random.default_rng(_SEED).integers(0, n, (DRAWS, n))
    low, high = np.quantile(units[draws].mean(1), (0.025, 0.975))
    return {"mean": mean, "low": float(low), "high": float(high), "n": n}


def by_source(values: Values, sources: Sequence[str]) -> Estimate:
    """The same with recordings as units: windows of one are averaged first, recordings count alike."""
    member = np.asarray(sources)
    of_each = [drop_nan(values[member == name]) for name in sorted(set(sources))]
    return estimate([float(units.mean()) for units in of_each if len(units)])


def ratio_units(above: Values, below: Values) -> Values:
    """Values per unit whose mean is mean(above) / mean(below) and whose spread is that ratio's (delta method).

    A mean of per-unit ratios would be ruled by the units whose denominator happens to be near 0. Where `below` is 0
    throughout, nothing can be compared and all values are 1. A unit that lacks either is NaN.
    """
    both = ~(np.isnan(above) | np.isnan(below))
    whole = float(below[both].mean()) if both.any() else 0.0
    if whole == 0:
        return np.where(both, 1.0, np.nan)
    ratio = float(above[both].mean()) / whole
    return ratio + (above - ratio * below) / whole
