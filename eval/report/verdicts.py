"""The section of the claims: the gates, which decide, and the diagnostics, which explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.judging.claims import Kind
from eval.judging.stopping import stopping_line
from eval.judging.verdicts import MIN_RECORDINGS, MIN_WINDOWS, Outcome, Verdict, is_small, tally
from eval.judging.verdicts import diagnostics as counts
from eval.report.tables import interval, probability, table

CLASSES: dict[Outcome, str] = {"holds": "pass", "fails": "fail", "inconclusive": "warn"}  # outcome -> CSS class
GATES = "Gates: is the output better than the input and than the base with the reference, and does it follow its own?"
GATES_PLAIN = "The gate of a plain LoRA: does the adapter predict held-out clips better than the base?"
DIAGNOSTICS_PLAIN = "The diagnostic describes the adapter's strength."
DIAGNOSTICS = "Diagnostics describe strength, masks and the null test. An adapter that does nothing can meet them."
Scores = Mapping[str, Any]


def badge(outcome: Outcome) -> str:
    """The outcome of a claim, coloured."""
    return f'<span class="{CLASSES[outcome]}">{outcome}</span>'


def gates(scores: Scores) -> str:
    """The claims that decide, as a table, and how many hold."""
    looks = ""
    if (entry := scores.get("sequential")) is not None:
        looks = f"<p>{escape(stopping_line(entry))}. Method: {escape(entry['method'])}.</p>"
    caption = GATES_PLAIN if scores["family"] == "style" else GATES
    return f"<p><strong>{escape(tally(scores))}</strong>.</p>{looks}{_table(scores, 'gate', caption, 'p (Holm)')}"


def diagnostics(scores: Scores) -> str:
    """The claims that explain, as a table, and how many hold."""
    caption = DIAGNOSTICS_PLAIN if scores["family"] == "style" else DIAGNOSTICS
    return f"<p>{escape(counts(scores['verdicts']))}.</p>{_table(scores, 'diagnostic', caption, 'p')}"


def _table(scores: Scores, kind: Kind, caption: str, p: str) -> str:
    """The claims of a kind; empty without any."""
    group: Sequence[Verdict] = [verdict for verdict in scores["verdicts"] if verdict["kind"] == kind]
    basis = "Mean and 95 % interval over recordings; every value is paired within a window, seeds are averaged first."
    text = " ".join([caption, basis, *_notes(group, scores["thresholds"])])
    return table(text, _head(group, p), [_row(verdict) for verdict in group]) if group else ""


def _head(group: Sequence[Verdict], p: str) -> list[str]:
    return ["claim", "", "value" if any("control" in v for v in group) else _count(group[0]), "required", p]


def _count(verdict: Verdict) -> str:
    return f"{verdict['value']['n']} windows of {verdict['by_source']['n']} recordings"


def _row(verdict: Verdict) -> tuple[str, list[str]]:
    p = verdict["p_holm"] if verdict["kind"] == "gate" else verdict["p"]
    cells = [badge(verdict["outcome"]), interval(verdict["value"], 3), escape(verdict["threshold"]), probability(p)]
    name = escape(verdict["name"]) + (f", {_count(verdict)}" if "control" in verdict else "")
    return f"{escape(verdict['claim'])}<small>{name}</small>", cells


def _notes(judged: Sequence[Verdict], thresholds: Scores) -> list[str]:
    few = f"Below {MIN_WINDOWS} windows or {MIN_RECORDINGS} recordings a claim is inconclusive."
    changed = thresholds.get("changed", [])
    notes = [few] if any(map(is_small, judged)) else []
    return notes + ([f"Thresholds that differ from the defaults: {escape(', '.join(changed))}."] if changed else [])
