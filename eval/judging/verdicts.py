"""Judge every claim: value over windows with interval, threshold, Holm-corrected p, pass or fail."""

from __future__ import annotations

from typing import TypedDict

from eval.judging.claims import Claim, Evidence, claims
from eval.statistics.estimates import Estimate, Values, drop_nan, estimate, estimate_by_source
from eval.statistics.significance import holm
from iclora_train.config import Thresholds


class Verdict(TypedDict):
    """One judged claim. value: over windows. by_source: over recordings. p: one-sided. p_holm: after Holm's correction
    over all claims of the evaluation (None if no test was possible)."""

    name: str
    claim: str
    value: Estimate
    by_source: Estimate
    threshold: str
    passed: bool
    p: float | None
    p_holm: float | None


def judge(family: str, evidence: Evidence, thresholds: Thresholds) -> list[Verdict]:
    """The verdicts of a task family. Claims that were not measured on any window are left out."""
    measured = [(c, c.values) for c in claims(family, evidence, thresholds) if c.values is not None]
    measured = [(claim, values) for claim, values in measured if len(drop_nan(values))]
    p_values = {claim.name: _p(claim, values) for claim, values in measured}
    corrected = holm({name: p for name, p in p_values.items() if p is not None})
    verdicts = []
    for claim, values in measured:
        value, p_holm = estimate(values), corrected.get(claim.name)
        verdicts.append(
            Verdict(
                name=claim.name,
                claim=claim.text,
                value=value,
                by_source=estimate_by_source(values, evidence.sources),
                threshold=str(claim.bound),
                passed=claim.bound.holds(value, p_holm, thresholds.significance),
                p=p_values[claim.name],
                p_holm=p_holm,
            )
        )
    return verdicts


def _p(claim: Claim, values: Values) -> float | None:
    return claim.bound.p(values) if claim.p is None else claim.p
