"""The values that claims are computed from: rows of metrics, the strength curve, masks, and the controls of a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eval.judging.strength_curve import StrengthCurve
from eval.statistics.estimates import Values, ratio_per_unit, recording_means

Table = Mapping[str, Mapping[str, Values]]  # row -> metric -> value per window, seeds averaged; NaN: not measured


@dataclass(frozen=True)
class Evidence:
    """The values that claims are computed from.

    rows: values of every condition and of every row measured without a model. strengths: (strength, its row). changes:
    `condition_changes`. sources: the recording of each window. adherence: the metric of how well the reference is
    followed (`Suite.adherence`). effects (windows, strengths): the adherence, by rising strength, larger is better.
    curve: the strength curve of `effects`. fade: per window, the share of the reference's effect in each latent frame
    under the fade mask. lower_is_better: keys of metrics that are better when lower. titles: metric key -> title, for
    the claims. controls: of a set with several controls, the evidence of each. references: of several references, name
    -> metric by which one sees that it is followed.
    """

    rows: Table
    strengths: Sequence[tuple[float, Mapping[str, Values]]]
    changes: Mapping[str, Values]
    sources: Sequence[str]
    adherence: str
    effects: Values | None = None
    curve: StrengthCurve | None = None
    fade: Values | None = None
    lower_is_better: frozenset[str] = field(default_factory=frozenset)
    titles: Mapping[str, str] = field(default_factory=dict)
    controls: Mapping[str, ControlEvidence] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)

    def title(self, metric: str) -> str:
        """The title of a metric, by default its key."""
        return self.titles.get(metric, metric)

    def difference(self, metric: str, row: str, other: str) -> Values | None:
        """By how much `row` is better than `other`, per window; None if one of them was not measured."""
        if metric not in self.rows.get(row, {}) or metric not in self.rows.get(other, {}):
            return None
        sign = -1 if metric in self.lower_is_better else 1
        return sign * (self.rows[row][metric] - self.rows[other][metric])

    def ratio(self, metric: str, row: str, other: str) -> Values | None:
        """Ratio of two rows (`ratio_per_unit`); None if one of them was not measured."""
        if metric not in self.rows.get(row, {}) or metric not in self.rows.get(other, {}):
            return None
        return self.quotient(self.rows[row][metric], self.rows[other][metric])

    def share(self, metric: str, row: str, start: str, end: str) -> Values | None:
        """Position of `row` between row `start` (0) and row `end` (1), as `ratio_per_unit`.

        Not measured (NaN) if `end` is not better than `start`: the metric then does not tell the two apart.
        """
        gained, total = self.difference(metric, row, start), self.difference(metric, end, start)
        if gained is None or total is None:
            return None
        return self.quotient(gained, total) if self.mean(total) > 0 else np.full_like(total, np.nan)

    def kept(self, metric: str, row: str, start: str, end: str) -> Values | None:
        """As `share`, but 1 if `end` is not better than `start`: `row` keeps all of nothing."""
        share, total = self.share(metric, row, start, end), self.difference(metric, end, start)
        if share is None or total is None or self.mean(total) > 0:
            return share
        return np.where(np.isnan(total + self.rows[row][metric]), np.nan, 1.0)

    def mean(self, values: Values) -> float:
        """The mean over recordings; 0 if nothing was measured."""
        means = recording_means(values, self.sources)
        return float(means.mean()) if len(means) else 0.0

    def quotient(self, numerator: Values, denominator: Values) -> Values:
        """`ratio_per_unit` over the recordings of the windows."""
        return ratio_per_unit(numerator, denominator, self.sources)


@dataclass(frozen=True)
class ControlEvidence:
    """The evidence of one control of a set with several: its windows by number, and the values of these."""

    windows: Sequence[int]
    evidence: Evidence

    def spread(self, values: Values, count: int) -> Values:
        """Values of the control's windows as values of all `count` windows, NaN elsewhere."""
        everywhere = np.full(count, np.nan)
        everywhere[list(self.windows)] = values
        return everywhere
