"""One scale for controls of different units: `agreement`, 0 for another clip's target, 1 for the VAE round trip.

For a control with metric m, F = mean of m in the row `floor`, C = mean of m in the row `ceiling` (both over the
recordings of its windows), agreement = (m - F) / (C - F). F and C do not depend on the adapter, so the scale is a mere
change of units, and differences between conditions stay paired. Scores of several tasks are commonly put on one scale
in this way, between chance and a reachable best, before they are averaged (Mnih et al. 2015, Nature 518, 529; Agarwal
et al. 2021, arXiv 2108.13264). A mean can hide a control that is not followed: claims are made for each control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.clips.conditions import CEILING, FLOOR
from eval.metrics import Suite
from eval.metrics.structure import AGREEMENT
from eval.statistics.estimates import Values, mean_of_measured, recording_means
from iclora_train.data.controls import Control

Row = Mapping[str, Values]  # metric -> value per window


@dataclass(frozen=True)
class ControlScale:
    """A control of a set with several: its metric, the numbers of its windows, and the means of the rows floor and
    ceiling on these, None if they were not measured."""

    metric: str
    windows: tuple[int, ...]
    floor: float | None
    ceiling: float | None
    lower_is_better: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether the metric tells the ceiling from another clip's target."""
        if self.floor is None or self.ceiling is None:
            return False
        return self.ceiling < self.floor if self.lower_is_better else self.ceiling > self.floor

    def of(self, values: Values) -> Values:
        """Values of the metric on the common scale. Only if `is_usable`."""
        assert self.floor is not None
        assert self.ceiling is not None
        return (values - self.floor) / (self.ceiling - self.floor)

    @classmethod
    def recorded(cls, facts: Mapping[str, Any], lower_is_better: bool) -> ControlScale:
        """The scale in an entry of `controls` of scores.json."""
        return cls(facts["metric"], tuple(facts["windows"]), facts["floor"], facts["ceiling"], lower_is_better)


def recorded_scales(scores: Mapping[str, Any]) -> dict[str, ControlScale]:
    """The scales in scores.json, by control; empty for a set with one control."""
    better = {metric: facts["better"] for metric, facts in scores["metrics"].items()}
    return {
        name: ControlScale.recorded(facts, better[facts["metric"]] == "low")
        for name, facts in scores.get("controls", {}).items()
    }


def control_scales(
    rows: Mapping[str, Row], suite: Suite, controls: Sequence[Sequence[Control]], recordings: Sequence[str]
) -> dict[str, ControlScale]:
    """The scales of the controls of a set, by name. rows: with `floor` and `ceiling`. controls: of each window."""
    better = {metric.key: metric.better for metric in suite.metrics}
    scales = {}
    for name, metrics in suite.controls.items():
        windows = [i for i, of_window in enumerate(controls) if name in {control.name for control in of_window}]
        of = [recordings[i] for i in windows]
        floor, ceiling = (_mean(rows[row].get(metrics.primary), windows, of) for row in (FLOOR, CEILING))
        lower_is_better = better[metrics.primary] == "low"
        scales[name] = ControlScale(metrics.primary, tuple(windows), floor, ceiling, lower_is_better)
    return scales


def _mean(values: Values | None, windows: Sequence[int], recordings: Sequence[str]) -> float | None:
    means = np.zeros(0) if values is None else recording_means(values[list(windows)], recordings)
    return float(means.mean()) if len(means) else None


def with_agreement(row: Row, scales: Mapping[str, ControlScale]) -> dict[str, Values]:
    """The row with `agreement`, the mean over the controls of a window. Unchanged for a set with one control.

    Values may be (windows,) or (windows, seeds). NaN where no control of the window was measured.
    """
    if not scales or not row:
        return dict(row)
    parts = [np.full_like(next(iter(row.values())), np.nan)]
    for scale in scales.values():
        if scale.is_usable and scale.metric in row:
            numbers = list(scale.windows)
            part = np.full_like(row[scale.metric], np.nan)
            part[numbers] = scale.of(row[scale.metric][numbers])
            parts.append(part)
    return {AGREEMENT.key: mean_of_measured(parts), **{key: row[key] for key in row if key != AGREEMENT.key}}


def agreement_by_frame(
    frames: Mapping[str, Sequence[list[float] | None]], scales: Mapping[str, ControlScale]
) -> list[list[float] | None]:
    """`agreement` per frame of every window, None where the metric of no control was measured in every frame."""
    series: list[list[Values]] = [[] for _ in next(iter(frames.values()))]
    for scale in scales.values():
        for number in scale.windows if scale.is_usable and scale.metric in frames else ():
            if (frame_values := frames[scale.metric][number]) is not None:
                series[number].append(scale.of(np.asarray(frame_values, np.float64)))
    return [mean_of_measured(frame_values).tolist() if frame_values else None for frame_values in series]
