"""Order the windows of an evaluation by what the adapter gained, and choose the three that a reader sees first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.clips.conditions import BASE, INPUT, judged_row
from eval.judging.harm import gain_metric, gains

Scores = Mapping[str, Any]


@dataclass(frozen=True)
class Ranking:
    """What the adapter gained on each window; more is better, None where it was not measured.

    metric: the key in which it is measured. over: the row that it is compared with; None if that was not measured, and
    the values are the metric itself (negative if it is better when low).
    """

    values: list[float | None]
    metric: str
    over: str | None

    def worst_first(self) -> list[int]:
        """Window numbers, worst first; windows that were not measured come last."""
        return sorted(range(len(self.values)), key=lambda i: (self.values[i] is None, self.values[i] or 0.0))


@dataclass(frozen=True)
class Example:
    """A window that stands for others. rank: its place from 1, the worst, to `of`, the best."""

    number: int
    title: str
    rank: int
    of: int


def ranking(scores: Scores) -> Ranking:
    """The gain over the input, which does not depend on how easy a clip is. Where output and input cannot be compared,
    the agreement with the reference above that of the base alone."""
    metric = gain_metric(scores)
    if metric is not None and any(gain is not None for gain in gains(scores)):
        return Ranking(gains(scores), metric, INPUT)
    row = judged_row(scores["windows"])
    metric = scores["adherence"] if scores["adherence"] in scores["windows"][row] else scores["primary"]
    sign = -1 if scores["metrics"][metric]["better"] == "low" else 1
    output, base = scores["windows"][row][metric], scores["windows"].get(BASE, {}).get(metric)
    if base is None:
        return Ranking([None if value is None else sign * value for value in output], metric, None)
    pairs = zip(output, base, strict=True)
    return Ranking([None if a is None or b is None else sign * (a - b) for a, b in pairs], metric, BASE)


def first_examples(scores: Scores) -> list[Example]:
    """The windows of worst, median and best gain, each of another recording as far as there are enough.

    The worst is exact. If the best, or the median, is of a recording that is shown already, the nearest window of
    another recording stands for it, and its title says so.
    """
    ranked = ranking(scores)
    measured = [i for i in ranked.worst_first() if ranked.values[i] is not None] or ranked.worst_first()
    recordings, last = [scores["clips"][i]["source"] for i in measured], len(measured) - 1
    chosen = {0: "the only window" if last == 0 else "worst gain"}  # rank from 0 -> title

    def nearest(position: float) -> int:
        used = {recordings[rank] for rank in chosen}
        free = [rank for rank in range(last + 1) if rank not in chosen]
        others = [rank for rank in free if recordings[rank] not in used]
        return min(others or free, key=lambda rank: abs(rank - position))

    if last > 0:
        best = nearest(last)
        chosen[best] = "best gain" if best == last else "best gain of another recording"
    if last > 1:
        median = nearest(last / 2)
        chosen[median] = "median" if abs(median - last / 2) < 1 else "near the median"
    return [Example(measured[rank], chosen[rank], rank + 1, last + 1) for rank in sorted(chosen)]
