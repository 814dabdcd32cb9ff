"""The strength curve: how the effect of the reference grows with attention strength, and the usable range.

A strength s enters the attention logits as log s, so the curve is flat near 1 and has a knee near 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from eval.statistics.estimates import Estimate, Values, estimate
from eval.statistics.significance import page_trend, ranks

DEAD, SATURATED = 0.1, 0.9  # shares of the total effect


class StrengthCurve(TypedDict):
    """The strength curve in numbers.

    spearman, isotonic_r2: means over recordings. page_p: Page's trend test over them. Of the mean curve: dead_zone
    (largest strength below 10 % of the effect), s50 (half of it), saturation (smallest strength above 90 %),
    largest_step (largest share of the effect between neighbouring strengths); None without an effect.
    """

    spearman: Estimate
    isotonic_r2: Estimate
    page_p: float | None
    dead_zone: float | None
    s50: float | None
    saturation: float | None
    largest_step: float | None


def response_curve(strengths: Sequence[float], effects: Values, recordings: Sequence[str]) -> StrengthCurve | None:
    """The curve of effects (windows, strengths), larger is closer to the reference. None without a complete window.

    recordings: the recording of each window.

    Raises ValueError unless strengths rise.
    """
    levels = np.asarray(strengths, np.float64)
    if not (np.diff(levels) > 0).all():
        raise ValueError(f"strengths must rise, got {list(strengths)}")
    complete = ~np.isnan(effects).any(1)
    if not complete.any():
        return None
    rows, of = effects[complete], np.asarray(recordings)[complete].tolist()
    return {
        "spearman": estimate([spearman(levels, row) for row in rows], of),
        "isotonic_r2": estimate([isotonic_r2(row) for row in rows], of),
        "page_p": page_trend(rows, of),
        **_usable_range(levels, rows.mean(0)),
    }


def spearman(x: Values, y: Values) -> float:
    """Spearman correlation; 0 if one of the two is constant."""
    a, b = ranks(x) - (len(x) + 1) / 2, ranks(y) - (len(y) + 1) / 2
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def isotonic(values: Values) -> Values:
    """Least-squares non-decreasing fit to `values` (pool adjacent violators; Barlow et al. 1972)."""
    pools: list[tuple[float, int]] = []  # mean, count
    for value in values:
        mean, count = float(value), 1
        while pools and pools[-1][0] >= mean:
            left_mean, left_count = pools.pop()
            mean, count = (left_mean * left_count + mean * count) / (left_count + count), left_count + count
        pools.append((mean, count))
    return np.repeat([mean for mean, _ in pools], [count for _, count in pools]).astype(np.float64)


def isotonic_r2(values: Values) -> float:
    """Share of the variance along strengths that the best non-decreasing curve explains; 0 without variance."""
    total = float(((values - values.mean()) ** 2).sum())
    return 1 - float(((values - isotonic(values)) ** 2).sum()) / total if total else 0.0


class _Range(TypedDict):
    dead_zone: float | None
    s50: float | None
    saturation: float | None
    largest_step: float | None


def _usable_range(levels: Values, mean: Values) -> _Range:
    """dead_zone, s50 (linear interpolation), saturation, largest_step of the mean curve after an isotonic fit."""
    shape = isotonic(mean)
    total = float(shape[-1] - shape[0])
    if total == 0:
        return {"dead_zone": None, "s50": None, "saturation": None, "largest_step": None}
    share = (shape - shape[0]) / total
    after = int(np.argmax(share >= 0.5))
    fraction = (0.5 - share[after - 1]) / (share[after] - share[after - 1])
    return {
        "dead_zone": float(levels[share < DEAD].max()),
        "s50": float(levels[after - 1] + fraction * (levels[after] - levels[after - 1])),
        "saturation": float(levels[share > SATURATED].min()),
        "largest_step": float(np.diff(share).max()),
    }


def fade_correlation(weights: Sequence[float], effects: Values) -> Values:
    """Pearson correlation per window of effects (windows, latent frames) with the weights of the latent frames.

    NaN for windows on which the effect is constant or was not measured.
    """
    w = np.asarray(weights, np.float64) - np.mean(weights)
    e = effects - effects.mean(1, keepdims=True)
    scale = np.sqrt((w @ w) * (e**2).sum(1))  # (windows,)
    varies = ~np.isnan(scale) & (scale > 0)
    return np.where(varies, (e @ w) / np.where(varies, scale, 1), np.nan)
