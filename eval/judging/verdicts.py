"""Is the control followed? One line per claim: a paired figure over windows, its interval, a threshold, pass or fail.

A run that changes a threshold says so in its scores.
"""

from __future__ import annotations

from typing import TypedDict

from eval.judging.claims import Claim, Evidence, claims
from eval.statistics.estimates import Estimate, Values, drop_nan, estimate, estimate_by_source
from eval.statistics.significance import holm
from iclora_train.config import Thresholds


class Verdict(TypedDict):
    """One claim, judged. value is over windows, by_source the same with recordings as units; p is one-sided, p_holm
    after Holm's correction over all claims of the run (None: no test was possible)."""

    name: str
    claim: str
    value: Estimate
    by_source: Estimate
    threshold: str
    passed: bool
    p: float | None
    p_holm: float | None


def judge(family: str, evidence: Evidence, thresholds: Thresholds) -> list[Verdict]:
    """The verdicts of a task family. A claim whose figure was not measured on any window is left out."""
    found = [
        (c, c.units) for c in claims(family, evidence, thresholds) if c.units is not None and len(drop_nan(c.units))
    ]
    tested = {claim.name: _p(claim, units) for claim, units in found}
    corrected = holm({name: p for name, p in tested.items() if p is not None})
    verdicts = []
    for claim, units in found:
        value, p_holm = estimate(units), corrected.get(claim.name)
        verdicts.append(
            Verdict(
                name=claim.name,
                claim=claim.text,
                value=value,
                by_source=estimate_by_source(units, evidence.sources),
                threshold=str(claim.bound),
                passed=claim.bound.holds(value, p_holm, thresholds.significance),
                p=tested[claim.name],
                p_holm=p_holm,
            )
        )
    return verdicts


def _p(claim: Claim, units: Values) -> float | None:
    return claim.bound.p(units) if claim.p is None else claim.p
