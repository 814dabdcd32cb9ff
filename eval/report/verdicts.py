"""The section of the claims: the gates, which decide, and the diagnostics, which explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.judging.verdicts import MIN_RECORDINGS, MIN_WINDOWS, Outcome, Verdict, diagnostics, is_small, tally
from eval.report.tables import interval, probability, table

CLASSES: dict[Outcome, str] = {"holds": "pass", "fails": "fail", "inconclusive": "warn"}  # outcome -> CSS class
GATES = "Gates: is the output better than the input and than the base, and does it follow its own reference?"
DIAGNOSTICS = "Diagnostics describe strength, masks and the null test. An adapter that does nothing can meet them."
Scores = Mapping[str, Any]


def badge(outcome: Outcome) -> str:
    """The outcome of a claim, coloured."""
    return f'<span class="{CLASSES[outcome]}">{outcome}</span>'


def section(scores: Scores) -> str:
    """The gates and the diagnostics as tables, and how many hold."""
    judged: Sequence[Verdict] = scores["verdicts"]
    gates = [verdict for verdict in judged if verdict["kind"] == "gate"]
    others = [verdict for verdict in judged if verdict["kind"] == "diagnostic"]
    summary = f"<p><strong>{escape(tally(scores))}</strong>; {escape(diagnostics(judged))}.</p>"
    basis = "Mean and 95 % interval over recordings; every value is paired within a window, seeds are averaged first."
    notes = [basis, *_notes(judged, scores["thresholds"])]
    tables = [(GATES, gates, "p (Holm)"), (DIAGNOSTICS, others, "p")]
    return summary + "".join(
        table(" ".join([caption, *notes]), _head(group, p), [_row(verdict) for verdict in group])
        for caption, group, p in tables
        if group
    )


def _head(group: Sequence[Verdict], p: str) -> list[str]:
    windows, recordings = group[0]["value"]["n"], group[0]["by_source"]["n"]
    return ["claim", "", f"{windows} windows of {recordings} recordings", "required", p]


def _row(verdict: Verdict) -> tuple[str, list[str]]:
    p = verdict["p_holm"] if verdict["kind"] == "gate" else verdict["p"]
    cells = [badge(verdict["outcome"]), interval(verdict["value"], 3), escape(verdict["threshold"]), probability(p)]
    return f"{escape(verdict['claim'])}<small>{escape(verdict['name'])}</small>", cells


def _notes(judged: Sequence[Verdict], thresholds: Scores) -> list[str]:
    few = f"Below {MIN_WINDOWS} windows or {MIN_RECORDINGS} recordings a claim is inconclusive."
    changed = thresholds.get("changed", [])
    notes = [few] if any(map(is_small, judged)) else []
    return notes + ([f"Thresholds that differ from the defaults: {escape(', '.join(changed))}."] if changed else [])
