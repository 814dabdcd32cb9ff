"""Means with 95 % confidence intervals that account for recordings.

Windows of one recording are alike, so they are not independent: the statistical unit is the recording. The seeds of a
window are averaged first, then the windows of a recording. The interval is Student's t over the means of the
recordings. It covers at least 95 % for normal means of any variances, so also for recordings with different numbers of
windows (Ibragimov and Müller 2010, Journal of Business & Economic Statistics 28, 453). NaN marks a window on which a
metric could not be measured. Such windows are left out, and `n` counts the windows that remain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from eval.statistics.student_t import two_sided_quantile

Values = NDArray[np.float64]

COVERAGE = 0.95


class Estimate(TypedDict):
    """A mean over recordings, the ends of its 95 % interval (None with a single recording), and the number of units."""

    mean: float
    low: float | None
    high: float | None
    n: int


def drop_nan(values: Values | Sequence[float]) -> Values:
    """The values that are not NaN."""
    array = np.asarray(values, np.float64)
    return array[~np.isnan(array)]


def mean_of_measured(parts: Sequence[Values]) -> Values:
    """The mean of arrays of one shape, each element over the arrays in which it is not NaN; NaN if there is none."""
    stacked = np.stack(parts)
    count = (~np.isnan(stacked)).sum(0)
    return np.divide(np.nansum(stacked, 0), count, out=np.full(stacked.shape[1:], np.nan), where=count > 0)


def recording_means(values: Values | Sequence[float], recordings: Sequence[str]) -> Values:
    """The mean over the measured windows of each recording, one value per recording that has any.

    values: per window. recordings: the recording of each window.
    """
    array = np.asarray(values, np.float64)
    measured = ~np.isnan(array)
    _, number = np.unique(np.asarray(recordings)[measured], return_inverse=True)  # (measured windows,)
    return np.bincount(number, array[measured]) / np.bincount(number)


def standard_error(means: Values) -> float:
    """Standard error of the mean of at least two recordings."""
    return float(np.std(means, ddof=1)) / len(means) ** 0.5


def estimate(values: Values | Sequence[float], recordings: Sequence[str], coverage: float = COVERAGE) -> Estimate:
    """Mean over recordings with its 95 % interval, or one of another coverage; n counts windows.

    Raises ValueError if no value is left.
    """
    return {**estimate_by_source(values, recordings, coverage), "n": len(drop_nan(values))}


def estimate_by_source(
    values: Values | Sequence[float], recordings: Sequence[str], coverage: float = COVERAGE
) -> Estimate:
    """As `estimate`, but n counts recordings."""
    means = recording_means(values, recordings)
    n = len(means)
    if n == 0:
        raise ValueError("an estimate needs at least one unit")
    mean = float(means.mean())
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    half = two_sided_quantile(coverage, n - 1) * standard_error(means)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def estimate_or_none(values: Values | None, recordings: Sequence[str]) -> Estimate | None:
    """The estimate, or None if nothing was measured."""
    return None if values is None or len(drop_nan(values)) == 0 else estimate(values, recordings)


def estimates_of(row: Mapping[str, Values], recordings: Sequence[str]) -> dict[str, Estimate]:
    """Estimates of the metrics that were measured on at least one window."""
    estimates = {metric: estimate_or_none(values, recordings) for metric, values in row.items()}
    return {metric: value for metric, value in estimates.items() if value is not None}


def format_estimate(value: Estimate, digits: int = 3) -> str:
    """`mean [low, high] (n)`, without the interval for a single unit."""
    if value["low"] is None or value["high"] is None:
        return f"{value['mean']:.{digits}f} (n {value['n']})"
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}] (n {value['n']})"


def ratio_per_unit(numerator: Values, denominator: Values, recordings: Sequence[str]) -> Values:
    """Linearised ratio of two means, one value per window (delta method).

    The mean over recordings of the returned values is the ratio of the means over recordings, and their spread is the
    spread of that ratio. A mean of per-window ratios would be dominated by windows whose denominator is near 0. If the
    mean of the denominator is 0 the ratio is undefined and all values are 1. A window that lacks one of the two is NaN.
    """
    both = ~(np.isnan(numerator) | np.isnan(denominator))
    scale = _mean(np.where(both, denominator, np.nan), recordings)
    if scale == 0:
        return np.where(both, 1.0, np.nan)
    ratio = _mean(np.where(both, numerator, np.nan), recordings) / scale
    return ratio + (numerator - ratio * denominator) / scale


def _mean(values: Values, recordings: Sequence[str]) -> float:
    """The mean over recordings; 0 if nothing was measured."""
    means = recording_means(values, recordings)
    return float(means.mean()) if len(means) else 0.0
