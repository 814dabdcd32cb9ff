"""Judge every claim: value with its interval over recordings, threshold, p, and whether the claim holds or fails.

A claim holds if its whole 95 % interval lies within its bound, fails if the whole interval lies outside, and is
inconclusive otherwise. A gate needs a p below the level as well, corrected for the number of gates (Holm 1979), so that
the chance that any gate holds by accident stays below the level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, get_args

from eval.judging.claims import Claim, Kind, claims
from eval.judging.evidence import Evidence
from eval.statistics.estimates import COVERAGE, Estimate, Values, drop_nan, estimate, estimate_by_source
from eval.statistics.sequential import Looks
from eval.statistics.significance import holm
from iclora_train.config import Thresholds

# Fewer cannot decide a claim. An interval over two recordings is 12.7 standard errors wide, and with so few values
# nothing shows whether their means are near a normal distribution, which the interval assumes.
MIN_WINDOWS, MIN_RECORDINGS = 8, 3

Outcome = Literal["holds", "fails", "inconclusive"]


class Verdict(TypedDict):
    """One judged claim. value: mean over recordings with its interval, n windows. by_source: the same, n recordings.
    passed: whether the outcome is `holds`. p: one-sided, that the bound is met. p_holm: of a gate, after Holm's
    correction over all gates; None for a diagnostic, and if no test was possible. control: of a set with several
    controls, the one that the claim is about."""

    name: str
    kind: Kind
    claim: str
    value: Estimate
    by_source: Estimate
    threshold: str
    outcome: Outcome
    passed: bool
    p: float | None
    p_holm: float | None
    control: NotRequired[str]


def judge(family: str, evidence: Evidence, thresholds: Thresholds, looks: Looks | None = None) -> list[Verdict]:
    """The verdicts of a task family, gates first. Claims that were not measured on any window are left out.

    looks: of a sequential evaluation, whose intervals and p hold for all its looks together.
    """
    coverage = COVERAGE if looks is None else looks.coverage
    ordered = sorted(claims(family, evidence, thresholds), key=lambda claim: claim.kind != "gate")
    measured = [(c, c.values) for c in ordered if c.values is not None and len(drop_nan(c.values))]
    p_values = {claim.name: _p(claim, values, evidence.sources, looks) for claim, values in measured}
    gates = {claim.name for claim, _ in measured if claim.kind == "gate"}
    corrected = holm({name: p for name, p in p_values.items() if p is not None and name in gates})
    verdicts = []
    for claim, values in measured:
        value = estimate(values, evidence.sources, coverage)
        by_source = estimate_by_source(values, evidence.sources, coverage)
        p_holm = corrected.get(claim.name)
        outcome = _outcome(claim, value, by_source, p_holm, thresholds.significance)
        verdicts.append(
            Verdict(
                name=claim.name,
                kind=claim.kind,
                claim=claim.text,
                value=value,
                by_source=by_source,
                threshold=str(claim.bound),
                outcome=outcome,
                passed=outcome == "holds",
                p=p_values[claim.name],
                p_holm=p_holm,
            )
        )
        if claim.control is not None:
            verdicts[-1]["control"] = claim.control
    return verdicts


def unmeasured_gates(family: str, evidence: Evidence, thresholds: Thresholds) -> list[str]:
    """Names of the family's gates that were not measured: clips of another program have no base and no swap."""
    gates = [claim for claim in claims(family, evidence, thresholds) if claim.kind == "gate"]
    return [gate.name for gate in gates if gate.values is None or len(drop_nan(gate.values)) == 0]


def _p(claim: Claim, values: Values, recordings: Sequence[str], looks: Looks | None) -> float | None:
    if claim.p is not None:
        return claim.p
    p = claim.bound.p(values, recordings)
    return p if looks is None else looks.p(p)


def _outcome(claim: Claim, value: Estimate, by_source: Estimate, p_holm: float | None, level: float) -> Outcome:
    low, high = value["low"], value["high"]
    if low is None or high is None or _are_few(value, by_source):
        return "inconclusive"
    if claim.bound.excludes(low, high):
        return "fails"
    within = claim.bound.contains(low) and claim.bound.contains(high)
    certain = claim.kind != "gate" or (p_holm is not None and p_holm < level)
    return "holds" if within and certain else "inconclusive"


def is_small(verdict: Verdict) -> bool:
    """Whether the claim was measured on too few windows or recordings to be decided."""
    return _are_few(verdict["value"], verdict["by_source"])


def _are_few(value: Estimate, by_source: Estimate) -> bool:
    return are_few(value["n"], by_source["n"])


def are_few(windows: int, recordings: int) -> bool:
    """Whether so many windows of so many recordings cannot decide a claim."""
    return windows < MIN_WINDOWS or recordings < MIN_RECORDINGS


def gates_outcome(verdicts: Sequence[Mapping[str, Any]], unmeasured: Sequence[str]) -> Outcome:
    """`fails` if a gate fails, `holds` if every gate of the family was measured and holds, else `inconclusive`."""
    outcomes = {verdict["outcome"] for verdict in verdicts if verdict["kind"] == "gate"}
    if "fails" in outcomes:
        return "fails"
    return "holds" if outcomes == {"holds"} and not unmeasured else "inconclusive"


def tally(scores: Mapping[str, Any]) -> str:
    """`2 of 3 gates fail (gain_over_input, gain_over_base), 1 holds`: the title of an evaluation, the worst first."""
    gates = [verdict for verdict in scores["verdicts"] if verdict["kind"] == "gate"]
    names = {outcome: [gate["name"] for gate in gates if gate["outcome"] == outcome] for outcome in get_args(Outcome)}
    unmeasured = scores["gates"]["not_measured"]
    groups = [
        ("fails" if len(names["fails"]) == 1 else "fail", names["fails"], True),
        ("inconclusive", names["inconclusive"], True),
        ("not measured", unmeasured, True),
        ("holds" if len(names["holds"]) == 1 else "hold", names["holds"], False),
    ]
    parts = [
        (len(listed), f"{verb} ({', '.join(listed)})" if named else verb) for verb, listed, named in groups if listed
    ]
    (count, first), *others = parts
    return ", ".join(
        [f"{count} of {len(gates) + len(unmeasured)} gates {first}", *(f"{n} {text}" for n, text in others)]
    )


def diagnostics(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """`6 diagnostics: 5 hold, 1 fails, 0 inconclusive`."""
    count = Counter(verdict["outcome"] for verdict in verdicts if verdict["kind"] == "diagnostic")
    text = f"{count['holds']} hold, {count['fails']} fail, {count['inconclusive']} inconclusive"
    return f"{count.total()} diagnostics: {text}"
