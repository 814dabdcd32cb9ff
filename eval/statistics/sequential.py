"""Tests at several looks at growing data whose error rate over all looks together is the nominal one.

The error rate is spent as O'Brien and Fleming's test spends it (1979, Biometrics 35, 549), by the function of Lan and
DeMets (1983, Biometrika 70, 659), so the looks need not lie at equal distances: at a share t of the planned recordings,
2 - 2 Phi(z / sqrt(t)) of the error rate of each side is spent, with z such that all of it is spent at t = 1.

The tests are Student's t over recordings. With few of them, boundaries that are computed for a known variance reject
too often (5.9 % instead of 5 % for seven), so the boundaries are quantiles of simulated t statistics of normal values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import erfc, exp, inf, log, sqrt

import numpy as np

from eval.statistics.estimates import COVERAGE, Values
from eval.statistics.student_t import two_sided_quantile, upper_tail

DRAWS = 200_000  # simulated sequences of recordings
_SEED = 1
_NEVER = 1e-9  # levels below it are never reached


@dataclass(frozen=True)
class Looks:
    """The looks that were taken: how many recordings each had, of how many planned ones."""

    counts: tuple[int, ...]
    planned: int

    @property
    def coverage(self) -> float:
        """Coverage of a Student's t interval now, so that those of all looks cover together with 95 %."""
        return 1 - nominal_levels(self.counts, self.planned, 1 - COVERAGE)[-1]

    def p(self, p: float | None) -> float | None:
        """A one-sided p of now as `sequential_p`."""
        return None if p is None else sequential_p(p, self.counts, self.planned)


@lru_cache(maxsize=512)
def nominal_levels(counts: tuple[int, ...], planned: int, level: float) -> tuple[float, ...]:
    """The two-sided level of the t test at each look, so that the chance to reject at any look is `level`.

    counts: recordings that each look has, at least 2 and rising to at most `planned`.
    """
    levels: list[float] = []
    goes_on, spent = np.ones(DRAWS, bool), 0.0
    for count, values in zip(counts, _statistics(counts), strict=True):
        total = spending(count / planned, level)
        rejected = round((total - spent) * DRAWS)
        if levels and rejected:
            boundary = float(-np.partition(np.where(goes_on, -values, 0.0), rejected)[rejected])
            levels.append(2 * upper_tail(boundary, count - 1))
        else:  # exact at the first look, and a little too small where too little is spent to be simulated
            levels.append(total - spent)
            boundary = inf if levels[-1] < _NEVER else two_sided_quantile(1 - levels[-1], count - 1)
        goes_on &= values <= boundary
        spent = total
    return tuple(levels)


def spending(share: float, level: float) -> float:
    """The part of a two-sided error rate that is spent at a share of the planned recordings."""
    quantile = _bisect(lambda z: erfc(z / sqrt(2)) <= level / 2, 0.0, 40.0)
    return 2 * erfc(quantile / sqrt(2 * share))


def sequential_p(p: float, counts: tuple[int, ...], planned: int) -> float:
    """The one-sided p of the last of several looks, as a p that is valid whenever one stops.

    It is the smallest one-sided error rate at which this look rejects (Jennison and Turnbull 1989, JRSS B 51, 305), and
    p itself for a single look at all recordings.
    """
    if counts == (planned,) or p >= 0.5 or p < _NEVER:
        return p

    def rejects(logarithm: float) -> bool:
        return nominal_levels(counts, planned, 2 * exp(logarithm))[-1] / 2 >= p

    return exp(_bisect(rejects, log(p) - 1e-6, log(0.5), halvings=22))


@lru_cache(maxsize=4)
def _statistics(counts: tuple[int, ...]) -> Values:
    """|t| (looks, DRAWS) of the same sequences of standard normal recordings, at each look."""
    generator = np.random.default_rng(_SEED)
    total, squares = np.zeros((2, DRAWS))
    statistics = []
    for number in range(1, counts[-1] + 1):
        values = generator.standard_normal(DRAWS)
        total, squares = total + values, squares + values**2
        if number in counts:
            variance = (squares - total**2 / number) / (number - 1)
            statistics.append(np.abs(total) / np.sqrt(number * variance))
    return np.stack(statistics)


def _bisect(is_reached: Callable[[float], bool], low: float, high: float, halvings: int = 50) -> float:
    """The smallest argument, between low and high, from which on `is_reached` is true."""
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (low, middle) if is_reached(middle) else (middle, high)
    return high
