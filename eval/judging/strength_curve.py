"""How the reference's effect grows with attention strength: order, shape, and where the usable range lies.

A weight enters the attention logits as its logarithm, so a flat top and a knee near 0 are what to expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from eval.statistics.estimates import Estimate, Values, estimate
from eval.statistics.significance import page_trend, ranks

DEAD, SATURATED = 0.1, 0.9  # shares of the whole effect


class StrengthCurve(TypedDict):
    """spearman, isotonic_r2: means over windows; page_p: of the trend over all windows; of the mean curve dead_zone,
    s50, saturation: strengths; largest_step: share of the whole effect between neighbours. None: there is no effect."""

    spearman: Estimate
    isotonic_r2: Estimate
    page_p: float | None
    dead_zone: float | None
    s50: float | None
    saturation: float | None
    largest_step: float | None


def response_curve(strengths: Sequence[float], effects: Values) -> StrengthCurve | None:
    """The curve of effects (windows, strengths), larger is more of what the reference asks for. None: no window has it.

    ValueError unless strengths rise.
    """
    levels = np.asarray(strengths, np.float64)
    if not (np.diff(levels) > 0).all():
        raise ValueError(f"strengths must rise, got {list(strengths)}")
    rows = effects[~np.isnan(effects).any(1)]
    if len(rows) == 0:
        return None
    return {
        "spearman": estimate([spearman(levels, row) for row in rows]),
        "isotonic_r2": estimate([isotonic_r2(row) for row in rows]),
        "page_p": page_trend(rows),
        **_usable_range(levels, rows.mean(0)),
    }


def spearman(x: Values, y: Values) -> float:
    """Correlation of the ranks; 0 when one of them does not vary."""
    a, b = ranks(x) - (len(x) + 1) / 2, ranks(y) - (len(y) + 1) / 2
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def isotonic(values: Values) -> Values:
    """The rising sequence nearest to values in least squares (pool adjacent violators; Barlow et al. 1972)."""
    pools: list[tuple[float, int]] = []  # mean, count
    for value in values:
        mean, count = float(value), 1
        while pools and pools[-1][0] >= mean:
            before, many = pools.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    return np.repeat([mean for mean, _ in pools], [count for _, count in pools]).astype(np.float64)


def isotonic_r2(values: Values) -> float:
    """Share of the variance along strengths that the best rising curve explains; 0 when there is no variance."""
    whole = float(((values - values.mean()) ** 2).sum())
    return 1 - float(((values - isotonic(values)) ** 2).sum()) / whole if whole else 0.0


class _Range(TypedDict):
    dead_zone: float | None
    s50: float | None
    saturation: float | None
    largest_step: float | None


def _usable_range(levels: Values, mean: Values) -> _Range:
    """Of the mean curve, made rising: the largest strength below 10 % of the effect, the one at half of it (linear
    between neighbours), the smallest from 90 % on, and the largest share that one step makes."""
    shape = isotonic(mean)
    whole = float(shape[-1] - shape[0])
    if whole == 0:
        return {"dead_zone": None, "s50": None, "saturation": None, "largest_step": None}
    share = (shape - shape[0]) / whole
    after = int(np.argmax(share >= 0.5))
    part = (0.5 - share[after - 1]) / (share[after] - share[after - 1])
    return {
        "dead_zone": float(levels[share < DEAD].max()),
        "s50": float(levels[after - 1] + part * (levels[after] - levels[after - 1])),
        "saturation": float(levels[share > SATURATED].min()),
        "largest_step": float(np.diff(share).max()),
    }


def fade_correlation(weights: Sequence[float], effects: Values) -> Values:
    """Per window the correlation (Pearson) of effects (windows, blocks) with the blocks' weights; NaN where the effect
    does not vary or was not measured."""
    w = np.asarray(weights, np.float64) - np.mean(weights)
    e = effects - effects.mean(1, keepdims=True)
    scale = np.sqrt((w @ w) * (e**2).sum(1))  # (windows,)
    varies = ~np.isnan(scale) & (scale > 0)
    return np.where(varies, (e @ w) / np.where(varies, scale, 1), np.nan)
