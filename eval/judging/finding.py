"""What a check of a symptom returns, and how it reads values from scores.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from eval.clips.conditions import CEILING, judged_row
from eval.statistics.estimates import Estimate

Level = Literal["ok", "warn", "bad"]
Finding = tuple[Level, str, str]  # level, reason, remedy
Scores = Mapping[str, Any]
NAMED = 3  # windows that a reason names
OF_THE_MACHINE = ("memory",)  # symptoms that say nothing about the adapter


def level_if_above(value: float, warn: float, bad: float) -> Level:
    """The level of a value that should be small."""
    return "bad" if value > bad else "warn" if value > warn else "ok"


def level_if_below(value: float, warn: float, bad: float) -> Level:
    """The level of a value that should be large."""
    return "bad" if value < bad else "warn" if value < warn else "ok"


def worst(*levels: Level) -> Level:
    """The worst of several levels."""
    return "bad" if "bad" in levels else "warn" if "warn" in levels else "ok"


def with_interval(value: Estimate) -> str:
    """`0.50 (0.40 to 0.60)`, or the mean alone."""
    if value["low"] is None or value["high"] is None:
        return f"{value['mean']:.2f}"
    return f"{value['mean']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def mean(scores: Scores, row: str, metric: str) -> float | None:
    """The mean of a metric in a row; None if it was not measured."""
    value = scores["cells"].get(row, {}).get(metric)
    return None if value is None else float(value["mean"])


def output_and_ceiling(scores: Scores, metric: str) -> tuple[float, float] | None:
    """The means of the judged row and of the VAE round trip; None if one was not measured."""
    output, ceiling = mean(scores, judged_row(scores["cells"]), metric), mean(scores, CEILING, metric)
    return None if output is None or ceiling is None else (output, ceiling)


def listed_keys(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
