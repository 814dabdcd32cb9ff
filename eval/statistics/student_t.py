"""Student's t distribution for a whole number of degrees of freedom, in closed form, so that eval needs no SciPy."""

from __future__ import annotations

from functools import lru_cache
from math import atan, cos, pi, sin, sqrt

_STEPS = 200  # halvings of the bracket of a quantile; more than a double can resolve


def share_within(t: float, freedom: int) -> float:
    """P(|T| <= t) for t >= 0 (Abramowitz and Stegun 1964, 26.7.3 for odd and 26.7.4 for even degrees of freedom)."""
    angle = atan(t / sqrt(freedom))
    if freedom == 1:
        return 2 * angle / pi
    odd = freedom % 2
    term, total = (cos(angle), cos(angle)) if odd else (1.0, 1.0)
    for power in range(2 + odd, freedom - 1, 2):
        term *= cos(angle) ** 2 * (power - 1) / power
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


def upper_tail(t: float, freedom: int) -> float:
    """P(T >= t)."""
    tail = max(0.0, 1 - share_within(abs(t), freedom)) / 2
    return tail if t >= 0 else 1 - tail


@lru_cache
def two_sided_quantile(share: float, freedom: int) -> float:
    """The t with P(|T| <= t) = share, found by bisection: 12.706 for a share of 0.95 and one degree of freedom."""
    low, high = 0.0, 1.0
    while share_within(high, freedom) < share:
        high *= 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if share_within(middle, freedom) < share else (low, middle)
    return (low + high) / 2
