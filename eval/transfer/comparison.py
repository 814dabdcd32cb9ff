"""What a choice costs: paired differences against the task's own settings, and the share of the gain that is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from eval.clips.conditions import ADAPTER_REFERENCE, BASE_REFERENCE, SWAPPED
from eval.compare import Difference, compare
from eval.judging.claims import Bound
from eval.judging.verdicts import MIN_RECORDINGS, MIN_WINDOWS, Outcome
from eval.statistics.estimates import (
    Estimate,
    Values,
    drop_nan,
    estimate,
    estimate_or_none,
    ratio_per_unit,
    recording_means,
)
from eval.statistics.significance import holm, two_sided_p

LEVEL = 0.05  # of each one-sided test
Scores = Mapping[str, Any]
CostOutcome = Literal["equivalent", "worse", "better", "not decided"]


class Cost(TypedDict):
    """What one choice costs.

    value: primary metric, None if it was measured on no window. control: loss of adherence with another recording's
    reference; control_change: the same, choice minus the task's settings, paired. differences: of every metric,
    choice minus the task's settings, paired. p_holm: of `change`, corrected for the number of choices. kept: share of
    the adapter's gain over base + reference that is kept, None if the adapter gains nothing. p: that kept lies within
    the tolerance around 1 (two one-sided tests).
    """

    value: Estimate | None
    control: Estimate | None
    control_change: Estimate | None
    differences: dict[str, Difference]
    p_holm: float | None
    kept: Estimate | None
    p: float | None
    outcome: CostOutcome


def row(scores: Scores, name: str, metric: str) -> Values | None:
    """The values per window of a metric under a condition; None if it was not measured."""
    rows = {**scores["windows"], **scores["per_window"]["conditions"]}
    values = rows.get(name, {}).get(metric)
    return None if values is None else np.array(values, np.float64)


def recordings(scores: Scores) -> list[str]:
    """The recording of each window."""
    return [clip["source"] for clip in scores["clips"]]


def better(scores: Scores, metric: str, values: Values) -> Values:
    """A difference of a metric with the sign that makes better larger."""
    return -values if scores["metrics"][metric]["better"] == "low" else values


def under(scores: Scores, condition: str) -> dict[str, Any]:
    """The scores with another condition in the place of adapter + reference."""
    conditions = scores["per_window"]["conditions"]
    return {**scores, "windows": {ADAPTER_REFERENCE: conditions[condition]}}


def gain(scores: Scores, metric: str) -> Values | None:
    """Per window, by how much the adapter is better than base + reference."""
    pair = [row(scores, name, metric) for name in (ADAPTER_REFERENCE, BASE_REFERENCE)]
    return None if pair[0] is None or pair[1] is None else better(scores, metric, pair[0] - pair[1])


def change(reference: Scores, choice: Scores, is_resized: bool = False) -> Values | None:
    """Per window, by how much the primary metric is better under a choice than under the task's settings.

    is_resized: the clips have another size, where the metric has other values for every clip; then the change is that
    of the gain over base + reference, which both sizes have of their own.
    """
    metric = reference["primary"]
    if is_resized:
        gains = gain(reference, metric), gain(choice, metric)
        return None if gains[0] is None or gains[1] is None else gains[1] - gains[0]
    values = [row(scores, ADAPTER_REFERENCE, metric) for scores in (reference, choice)]
    return None if values[0] is None or values[1] is None else better(reference, metric, values[1] - values[0])


def kept_share(reference: Scores, choice: Scores, is_resized: bool = False) -> Values | None:
    """Per window, the share of the gain in the primary metric that a choice keeps (`ratio_per_unit`); None without a
    gain."""
    gained, changed = gain(reference, reference["primary"]), change(reference, choice, is_resized)
    if gained is None or changed is None or len(drop_nan(gained)) == 0:
        return None
    if recording_means(gained, recordings(reference)).mean() <= 0:
        return None
    return ratio_per_unit(gained + changed, gained, recordings(reference))


def costs(
    reference: Scores, choices: Mapping[str, Scores], tolerance: float, resized: Collection[str] = ()
) -> dict[str, Cost]:
    """The cost of every choice by name. reference: the scores under the task's own settings. resized: names of the
    choices whose clips have another size."""
    recording_of, lost_in_reference = recordings(reference), _swap_lost(reference)
    changes = {name: change(reference, scores, name in resized) for name, scores in choices.items()}
    p_values = {name: None if x is None else two_sided_p(x, recording_of) for name, x in changes.items()}
    corrected = holm({name: p for name, p in p_values.items() if p is not None and choices[name] is not reference})
    result = {}
    for name, scores in choices.items():
        shares = kept_share(reference, scores, name in resized)
        p = None if shares is None else Bound(1 - tolerance, 1 + tolerance).p(shares, recording_of)
        result[name] = Cost(
            value=estimate_or_none(row(scores, ADAPTER_REFERENCE, reference["primary"]), recording_of),
            control=estimate_or_none(lost := _swap_lost(scores), recording_of),
            control_change=estimate_or_none(
                None if lost is None or lost_in_reference is None else lost - lost_in_reference, recording_of
            ),
            differences=compare(reference, scores, strict=False)["metrics"],
            p_holm=corrected.get(name),
            kept=estimate_or_none(shares, recording_of),
            p=p,
            outcome=_outcome(changes[name], corrected.get(name), shares, p, recording_of),
        )
    return result


def _swap_lost(scores: Scores) -> Values | None:
    """Per window, the adherence lost with the reference of another recording."""
    metric = scores["adherence"]
    pair = [row(scores, name, metric) for name in (ADAPTER_REFERENCE, SWAPPED)]
    return None if pair[0] is None or pair[1] is None else better(scores, metric, pair[0] - pair[1])


def _outcome(
    changed: Values | None, p_holm: float | None, shares: Values | None, p: float | None, recording_of: Sequence[str]
) -> CostOutcome:
    """Equivalent if both one-sided tests say so; else worse or better if the corrected p of the change is low."""
    if shares is not None and p is not None and p < LEVEL and are_enough(shares, recording_of):
        return "equivalent"
    if changed is None or p_holm is None or p_holm >= LEVEL or not are_enough(changed, recording_of):
        return "not decided"
    return "worse" if estimate(changed, recording_of)["mean"] < 0 else "better"


def are_enough(values: Values, recording_of: Sequence[str]) -> bool:
    """Whether so many windows and recordings can decide a claim."""
    enough_windows = len(drop_nan(values)) >= MIN_WINDOWS
    return enough_windows and len(recording_means(values, recording_of)) >= MIN_RECORDINGS


def judged(values: Values, recording_of: Sequence[str], bound: Bound) -> tuple[Outcome, float | None]:
    """Whether the mean lies within the bound, and the p of that.

    It holds if p of each one-sided test is below LEVEL: with two limits these are the two one-sided tests of
    equivalence (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15, 657). It fails if the whole 95 %
    interval lies outside, and else is inconclusive, as with too few windows or recordings.
    """
    value, p = estimate(values, recording_of), bound.p(values, recording_of)
    if value["low"] is None or value["high"] is None or not are_enough(values, recording_of):
        return "inconclusive", p
    if p is not None and p < LEVEL:
        return "holds", p
    return ("fails" if bound.excludes(value["low"], value["high"]) else "inconclusive"), p
