"""Gain and harm: by how much each window is better or worse than its input, and which windows are unlike the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.clips.conditions import ADAPTER_REFERENCE, INPUT

# The metrics that say whether an output is better than its input, by family; the first that was measured counts.
# The input of a structure task is a drawing, which an output does not have to be near; a style task has none.
GAIN_METRICS = {
    "restoration": ("psnr",),
    "colorize": ("psnr",),
    "edit": ("psnr_inside", "psnr"),
    "structure": (),
    "style": (),
}
HARM_LIMIT = 0.5  # dB: a smaller loss is not seen
OUTLIER = 3.5  # robust z-score (Iglewicz and Hoaglin 1993)
MAD_TO_SIGMA = 1.4826  # of normal values
LEAST_SPREAD = 0.02  # of the median: a spread below it is taken for this much, so that equal values have outliers too
GAIN_SPREAD = 0.25  # dB: the same for gains, whose median may be 0

Scores = Mapping[str, Any]


def gain_metric(scores: Scores) -> str | None:
    """The metric in which gain is measured; None if output and input cannot be compared."""
    output, before = (scores["windows"].get(row, {}) for row in (ADAPTER_REFERENCE, INPUT))
    return next((key for key in GAIN_METRICS[scores["family"]] if key in output and key in before), None)


def gains(scores: Scores, row: str = ADAPTER_REFERENCE) -> list[float | None]:
    """For every window, by how many dB a row is better than the input; None where one of them was not measured."""
    metric = gain_metric(scores)
    if metric is None or metric not in scores["windows"].get(row, {}):
        return [None] * len(scores["clips"])
    pairs = zip(*(scores["windows"][name][metric] for name in (row, INPUT)), strict=True)
    return [None if a is None or b is None else a - b for a, b in pairs]


def harm(scores: Scores, row: str = ADAPTER_REFERENCE) -> dict[str, Any] | None:
    """`harm` of scores.json: how many windows lose more than HARM_LIMIT against their input, and how much.

    share: of the n windows. windows: their keys, worst first. mean_loss: over them, None if there are none. worst_loss:
    of the worst window, 0 if none is worse than its input. None where output and input cannot be compared.
    """
    gained = [
        (gain, clip["key"]) for gain, clip in zip(gains(scores, row), scores["clips"], strict=True) if gain is not None
    ]
    if not gained:
        return None
    harmed = sorted((gain, key) for gain, key in gained if gain < -HARM_LIMIT)
    return {
        "metric": gain_metric(scores),
        "limit": HARM_LIMIT,
        "n": len(gained),
        "share": len(harmed) / len(gained),
        "mean_loss": -float(np.mean([gain for gain, _ in harmed])) if harmed else None,
        "worst_loss": max(0.0, -min(gained)[0]),
        "windows": [key for _, key in harmed],
    }


def outliers(values: Sequence[float | None], sign: int = 1, least: float = 1e-9) -> list[int]:
    """Numbers of the values that are far worse than the others, worst first; sign -1: high values are worse.

    least: the smallest spread that is believed.

    A value is far if it lies more than 3.5 robust standard deviations below the median (median absolute deviation).
    Unlike the mean and the standard deviation, median and MAD do not follow the outlier.
    """
    measured = [(sign * value, i) for i, value in enumerate(values) if value is not None]
    if len(measured) < 3:
        return []
    numbers = np.array([value for value, _ in measured])
    median = float(np.median(numbers))
    spread = max(MAD_TO_SIGMA * float(np.median(np.abs(numbers - median))), LEAST_SPREAD * abs(median), least)
    return [i for value, i in sorted(measured) if (median - value) / spread > OUTLIER]
