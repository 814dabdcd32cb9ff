"""Judge every claim: value over windows with interval, threshold, Holm-corrected p, pass or fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from eval.judging.claims import Claim, Evidence, claims
from eval.statistics.estimates import Estimate, Values, drop_nan, estimate, estimate_by_source
from eval.statistics.significance import holm
from iclora_train.config import Thresholds

# Fewer cannot decide a claim: with 7 windows the smallest p of the signed-rank test is 1/128, above 0.05 after the
# correction over nine claims; an interval over two recordings is 12.7 standard errors wide.
MIN_WINDOWS, MIN_RECORDINGS = 8, 3


class Verdict(TypedDict):
    """One judged claim. value: over windows. by_source: over recordings. passed: the claim holds, on enough windows and
    recordings (`is_decided`). p: one-sided. p_holm: after Holm's correction over all claims of the evaluation (None if
    no test was possible)."""

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
        by_source = estimate_by_source(values, evidence.sources)
        verdicts.append(
            Verdict(
                name=claim.name,
                claim=claim.text,
                value=value,
                by_source=by_source,
                threshold=str(claim.bound),
                passed=claim.bound.holds(value, p_holm, thresholds.significance) and _are_enough(value, by_source),
                p=p_values[claim.name],
                p_holm=p_holm,
            )
        )
    return verdicts


def _p(claim: Claim, values: Values) -> float | None:
    return claim.bound.p(values) if claim.p is None else claim.p


def is_decided(verdict: Verdict) -> bool:
    """Whether the claim was measured on enough windows and recordings to hold or to fail."""
    return _are_enough(verdict["value"], verdict["by_source"])


def _are_enough(value: Estimate, by_source: Estimate) -> bool:
    return value["n"] >= MIN_WINDOWS and by_source["n"] >= MIN_RECORDINGS


def tally(verdicts: Sequence[Verdict]) -> str:
    """`7 of 9 claims hold`, and how many are undecided."""
    undecided = sum(not is_decided(verdict) for verdict in verdicts)
    text = f"{sum(verdict['passed'] for verdict in verdicts)} of {len(verdicts)} claims hold"
    return text + (f", {undecided} undecided" if undecided else "")
