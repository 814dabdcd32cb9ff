"""Means with 95 % confidence intervals.

The statistical unit is the window of a clip; the seeds of a window are averaged first. Windows of one recording are not
independent, so every verdict has a second interval whose unit is the recording (`estimate_by_source`). Trust the second
interval when there are few recordings. NaN marks a window on which a metric could not be measured. Such windows are
left out, and `n` counts the windows that remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

DRAWS = 4000  # bootstrap resamples
BOOTSTRAP_FROM = 20  # units; with fewer, a percentile bootstrap is too narrow, so Student's t is used
_SEED = 20240229
# 97.5 % quantile of Student's t for 1, 2, ... degrees of freedom
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101),
)


class Estimate(TypedDict):
    """A mean, the ends of its 95 % interval (None with a single unit), and the number of units."""

    mean: float
    low: float | None
    high: float | None
    n: int


def drop_nan(values: Values | Sequence[float]) -> Values:
    """The values that are not NaN."""
    array = np.asarray(values, np.float64)
    return array[~np.isnan(array)]


def estimate(values: Values | Sequence[float]) -> Estimate:
    """Mean over units with its 95 % interval: Student's t below 20 units, percentile bootstrap from 20 on.

    Raises ValueError if no value is left.
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


def estimate_or_none(values: Values | None) -> Estimate | None:
    """The estimate, or None if nothing was measured."""
    return None if values is None or len(drop_nan(values)) == 0 else estimate(values)


def estimate_by_source(values: Values, sources: Sequence[str]) -> Estimate:
    """The estimate with recordings as units: windows of a recording are averaged first; recordings weigh the same."""
    source_of = np.asarray(sources)
    per_source = [drop_nan(values[source_of == name]) for name in sorted(set(sources))]
    return estimate([float(windows.mean()) for windows in per_source if len(windows)])


def ratio_per_unit(numerator: Values, denominator: Values) -> Values:
    """Linearised ratio of two means, one value per unit (delta method).

    The mean of the returned values is mean(numerator) / mean(denominator), and their spread is the spread of that
    ratio. A mean of per-unit ratios would be dominated by units whose denominator is near 0. If the mean of the
    denominator is 0 the ratio is undefined and all values are 1. A unit that lacks one of the two is NaN.
    """
    both = ~(np.isnan(numerator) | np.isnan(denominator))
    scale = float(denominator[both].mean()) if both.any() else 0.0
    if scale == 0:
        return np.where(both, 1.0, np.nan)
    ratio = float(numerator[both].mean()) / scale
    return ratio + (numerator - ratio * denominator) / scale
