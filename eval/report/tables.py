"""The tables of the report, as HTML that reads without JavaScript. All names and units come from scores.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.clips.conditions import ADAPTER_REFERENCE
from eval.judging.symptoms import SYMPTOMS, Symptom
from eval.judging.verdicts import Verdict
from eval.statistics.estimates import Estimate

PICKER = (
    '<div id="another" hidden><label>scores.json of another evaluation '
    '<input type="file" id="another-file" accept=".json,application/json"></label><output id="another-note"></output>'
    '<div class="scroll"><table id="another-table"></table></div></div>'
)
ABSENT = "\N{EN DASH}"  # in place of a figure that was not measured
WORDS = {"ok": "ok", "warn": "look", "bad": "bad"}  # level of a flag -> what the report calls it
Scores = Mapping[str, Any]


def name(scores: Scores, metric: str) -> str:
    """`PSNR, dB`: title and unit of a metric."""
    facts = scores["metrics"][metric]
    return escape(f"{facts['title']}, {facts['unit']}" if facts["unit"] else facts["title"])


def said(scores: Scores, metric: str, value: float | None) -> str:
    """`PSNR 31.20 dB`."""
    facts = scores["metrics"][metric]
    return escape(f"{facts['title']} {number(value, digits(scores, metric))} {facts['unit']}".strip())


def digits(scores: Scores, metric: str) -> int:
    """Decimals to show: figures with a unit are large, shares and correlations are small."""
    return 2 if scores["metrics"][metric]["unit"] else 3


def interval(figure: Estimate | None, decimals: int = 2) -> str:
    """Mean, and under it the 95 % interval."""
    if figure is None:
        return ABSENT
    low, high = figure["low"], figure["high"]
    span = "no interval" if low is None or high is None else f"{low:.{decimals}f} to {high:.{decimals}f}"
    return f"{figure['mean']:.{decimals}f}<small>{span}</small>"


def table(caption: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], marked: str = "") -> str:
    """A table with a caption, column and row headers; the row named `marked` stands out. Cells are HTML already."""
    columns = "".join(f'<th scope="col">{column}</th>' for column in head)
    body = "".join(
        f'<tr{" class=ours" if row == marked else ""}><th scope="row">{row}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for row, cells in rows
    )
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{caption}">'
        f"<table><caption>{caption}</caption><thead><tr>{columns}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def badge(passed: bool) -> str:
    """The word pass or fail."""
    word = "pass" if passed else "fail"
    return f'<span class="{word}">{word}</span>'


def verdicts(judged: Sequence[Verdict], thresholds: Scores) -> str:
    """One row per claim: the figure, what was wanted, the Holm-corrected p, and the figure over recordings."""
    rows = [
        (
            f"{escape(verdict['claim'])}<small>{escape(verdict['name'])}</small>",
            [
                badge(verdict["passed"]),
                interval(verdict["value"], 3),
                escape(verdict["threshold"]),
                probability(verdict.get("p_holm")),
                interval(verdict["by_source"], 3),
            ],
        )
        for verdict in judged
    ]
    units, sources = judged[0]["value"]["n"], judged[0]["by_source"]["n"]
    head = ["claim", "", f"over {units} windows", "wanted", "p (Holm)", f"over {sources} recordings"]
    changed = thresholds.get("changed", [])
    note = f" Thresholds that differ from the defaults: {escape(', '.join(changed))}." if changed else ""
    return table(
        f"Mean and 95 % interval; each figure is paired within a window, seeds are averaged first.{note}", head, rows
    )


def probability(p: float | None) -> str:
    """A p value as people write it."""
    if p is None:
        return ABSENT
    return "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def flags(found: Sequence[Symptom]) -> str:
    """The common complaints, the figure that speaks for or against each, and what to do."""
    known = {flag["symptom"]: flag for flag in found}
    rows = []
    for symptom in SYMPTOMS:
        flag = known.get(symptom)
        if flag is None:
            rows.append((escape(symptom), ['<span class="none">not measured</span>', ABSENT, ""]))
        else:
            word = f'<span class="{flag["level"]}">{WORDS[flag["level"]]}</span>'
            rows.append((escape(symptom), [word, escape(flag["reason"]), escape(flag["remedy"])]))
    return table("The complaints that are heard most, as far as figures tell.", ["symptom", "", "why", "remedy"], rows)


def cells(scores: Scores) -> str:
    """Every cell and row against every metric."""
    metrics, primary = scores["metrics"], scores["primary"]
    head = ["cell", *(f"{'★ ' if metric == primary else ''}{name(scores, metric)}" for metric in metrics)]
    rows = [
        (escape(row), [interval(measured.get(metric), digits(scores, metric)) for metric in metrics])
        for row, measured in scores["cells"].items()
    ]
    return table(
        "Mean and 95 % interval over windows; ★ the primary metric of this task.", head, rows, marked=ADAPTER_REFERENCE
    )


def windows(scores: Scores) -> str:
    """Adapter + reference on every window: nothing is left out."""
    row = scores["windows"][ADAPTER_REFERENCE]
    head = ["window", "recording", *(name(scores, metric) for metric in row)]
    rows = [
        (
            f'<a href="#window-{i}">{escape(clip["key"])}</a>',
            [escape(clip["source"]), *(number(row[metric][i], digits(scores, metric)) for metric in row)],
        )
        for i, clip in enumerate(scores["clips"])
    ]
    return table("Adapter + reference, mean over seeds.", head, rows)


def number(value: float | None, decimals: int) -> str:
    """A figure, or a dash where it could not be measured."""
    return ABSENT if value is None else f"{value:.{decimals}f}"


def not_run(scores: Scores) -> str:
    """The metrics without a figure, and why."""
    rows = [(escape(entry["metric"]), [escape(entry["reason"])]) for entry in scores["not_run"]]
    return table("Not run.", ["metric", "why"], rows) if rows else "<p>Every metric of this family was run.</p>"


def difference(scores: Scores, compared: Mapping[str, Any] | None) -> str:
    """The difference to an earlier run, as `eval.compare` finds it, and the place where the reader puts another one."""
    return PICKER if compared is None else _compared(scores, compared) + PICKER


def _compared(scores: Scores, compared: Mapping[str, Any]) -> str:
    rows = [
        (
            name(scores, metric),
            [
                *(interval(found[side], digits(scores, metric)) for side in ("a", "b", "difference", "by_source")),
                probability(found["p_holm"]),
            ],
        )
        for metric, found in compared["metrics"].items()
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in compared["notes"])
    head = ["metric", "before", "now", "now - before, paired", "over recordings", "p (Holm)"]
    return table("Adapter + reference.", head, rows) + (f"<p>Differs as well:</p><ul>{notes}</ul>" if notes else "")


def provenance(scores: Scores) -> str:
    """Where the figures come from, key by key."""
    facts = {key: scores[key] for key in ("base", "adapter", "seeds", "thresholds", "timings")}
    leaves = [leaf for key, value in {**facts, **scores["provenance"]}.items() for leaf in _leaves(key, value)]
    return table("What was run, on what, with what.", ["key", "value"], [(escape(k), [escape(v)]) for k, v in leaves])


def _leaves(key: str, value: Any) -> list[tuple[str, str]]:
    """`a.b` and its value as text, for every leaf of a JSON value (lists count as leaves)."""
    if isinstance(value, Mapping):
        return [leaf for inner, deeper in value.items() for leaf in _leaves(f"{key}.{inner}", deeper)]
    values = value if isinstance(value, list) else [value]
    return [(key, ", ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in values) or "none")]
