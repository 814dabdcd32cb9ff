"""The tables of the report, as HTML without JavaScript. All names and units come from scores.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.clips.conditions import ADAPTER_REFERENCE, BASE_REFERENCE, CLASSIC, judged_row
from eval.judging.harm import HARM_LIMIT, gain_metric
from eval.judging.harm import harm as harm_of
from eval.judging.symptoms import OF_REFERENCES, SYMPTOMS, Symptom
from eval.metrics import MEASURED_BY, REDEFINED
from eval.statistics.clip_sets import SetEstimate
from eval.statistics.estimates import Estimate

PICKER = (
    f'<div id="another" data-redefined="{escape(json.dumps(REDEFINED))}" '
    f'data-measured-by="{escape(json.dumps(MEASURED_BY))}" hidden><label>scores.json of another evaluation '
    '<input type="file" id="another-file" accept=".json,application/json"></label><output id="another-note"></output>'
    '<div class="scroll"><table id="another-table"></table></div></div>'
)
NOT_MEASURED = "\N{EN DASH}"
LEVELS = {"ok": "ok", "warn": "check", "bad": "bad"}  # level of a symptom -> word in the report
Scores = Mapping[str, Any]


def metric_name(scores: Scores, metric: str) -> str:
    """`PSNR, dB`: title and unit of a metric."""
    properties = scores["metrics"][metric]
    return escape(f"{properties['title']}, {properties['unit']}" if properties["unit"] else properties["title"])


def metric_value(scores: Scores, metric: str, value: float | None) -> str:
    """`PSNR 31.20 dB`."""
    properties = scores["metrics"][metric]
    return escape(f"{properties['title']} {number(value, digits(scores, metric))} {properties['unit']}".strip())


def digits(scores: Scores, metric: str) -> int:
    """Decimals to show: 2 for metrics with a unit, 3 for shares and correlations."""
    return 2 if scores["metrics"][metric]["unit"] else 3


def interval(value: Estimate | SetEstimate | None, decimals: int = 2) -> str:
    """The mean, with the 95 % interval in a second line."""
    if value is None:
        return NOT_MEASURED
    low, high = value["low"], value["high"]
    span = "no interval" if low is None or high is None else f"{low:.{decimals}f} to {high:.{decimals}f}"
    return f"{value['mean']:.{decimals}f}<small>{span}</small>"


def table(caption: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], marked: str = "") -> str:
    """A table with caption, column and row headers. The row named `marked` is highlighted. Cells must be HTML."""
    columns = "".join(f'<th scope="col">{column}</th>' for column in head)
    body = "".join(
        f'<tr{" class=marked" if row == marked else ""}><th scope="row">{row}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for row, cells in rows
    )
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{caption}">'
        f"<table><caption>{caption}</caption><thead><tr>{columns}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def sources(scores: Scores) -> str:
    """The primary metric of each of data.sources under every condition; empty without sources."""
    primary, by_source = scores["primary"], scores.get("sources", {})
    if not by_source:
        return ""
    conditions = list(next(iter(by_source.values())))
    rows = [
        (escape(source), [interval(cells[name].get(primary), digits(scores, primary)) for name in conditions])
        for source, cells in by_source.items()
    ]
    caption = f"{metric_name(scores, primary)}: mean and 95 % interval over the recordings of each source"
    return table(caption, ["source", *map(escape, conditions)], rows)


def controls(scores: Scores) -> str:
    """Each control of a set with several by its own metric under every condition; empty for a set with one control."""
    several = scores.get("controls", {})
    if not several:
        return ""
    conditions = list(scores["cells"])
    rows = []
    for name, control in several.items():
        metric, few = control["metric"], "too few to decide, " if control["too_few"] else ""
        count = f"{len(control['windows'])} windows of {control['recordings']} recordings"
        head = f"{escape(name)}<small>{metric_name(scores, metric)}; {count}; {few}gates: {control['outcome']}; "
        head += f"read by {escape(control['reader'])}</small>"
        rows.append((head, [interval(control["cells"][c].get(metric), digits(scores, metric)) for c in conditions]))
    caption = "Each control by its own metric, on its own windows; all of them have to hold."
    return table(caption, ["control", *map(escape, conditions)], rows)


def probability(p: float | None) -> str:
    """A p value with three decimals."""
    if p is None:
        return NOT_MEASURED
    return "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def symptoms(entries: Sequence[Symptom], has_reference: bool = True) -> str:
    """One row per symptom: level, the values that decide it, and the remedy. Without a reference those of references
    are left out."""
    by_name = {entry["symptom"]: entry for entry in entries}
    rows = []
    for symptom in SYMPTOMS if has_reference else [name for name in SYMPTOMS if name not in OF_REFERENCES]:
        entry = by_name.get(symptom)
        if entry is None:
            rows.append((escape(symptom), ['<span class="none">not measured</span>', NOT_MEASURED, ""]))
        else:
            word = f'<span class="{entry["level"]}">{LEVELS[entry["level"]]}</span>'
            rows.append((escape(symptom), [word, escape(entry["reason"]), escape(entry["remedy"])]))
    return table("Common problems of adapters, judged from scores.json.", ["symptom", "", "reason", "remedy"], rows)


def conditions(scores: Scores) -> str:
    """Every condition, and every row measured without a model, with every metric."""
    metrics, primary = scores["metrics"], scores["primary"]
    head = ["condition", *(f"{'★ ' if metric == primary else ''}{metric_name(scores, metric)}" for metric in metrics)]
    rows = [
        (escape(row), [interval(measured.get(metric), digits(scores, metric)) for metric in metrics])
        for row, measured in {**scores["cells"], **_paired(scores)}.items()
    ]
    return table(
        f"Mean and 95 % interval over recordings; ★ marks the primary metric of this task.{_classic(scores)}",
        head,
        rows,
        marked=judged_row(scores["cells"]),
    ) + clip_sets(scores)


def clip_sets(scores: Scores) -> str:
    """FVD of every row and of the paired differences; empty without it."""
    sets = scores.get("sets")
    if sets is None:
        return ""
    judged = judged_row(scores["cells"])
    paired = {f"{judged} - {other}, paired": row for other, row in sets["paired"].items()}
    rows = [
        (escape(name), [interval(row.get(metric), 1) for metric in sets["metrics"]] + [str(row["fvd"]["clips"])])
        for name, row in {**sets["rows"], **paired}.items()
    ]
    caption = (
        f"All outputs against all {sets['targets']} targets, features of {escape(sets['network'])}; intervals by a "
        f"bootstrap over recordings. FVD needs about {sets['enough']:,} clips on each side: with fewer it is too "
        "large, and only its paired differences and KVD can be read."
    )
    return table(caption, ["condition", *map(escape, sets["metrics"].values()), "clips"], rows, judged)


def _paired(scores: Scores) -> dict[str, Mapping[str, Estimate]]:
    """The paired differences as rows of the table of conditions."""
    judged = judged_row(scores["cells"])
    return {f"{judged} - {other}, paired": row for other, row in scores.get("paired", {}).items()}


def _classic(scores: Scores) -> str:
    """What the row of the classic filter is; empty without one."""
    classic = scores.get("classic") or {}
    if not classic.get("filter"):
        return ""
    count = len(classic["candidates"])
    return escape(
        f" The classic filter is {classic['filter']}, the best of {count} by mean PSNR on {classic['windows']} windows."
    )


def harmed(scores: Scores) -> str:
    """How often and how much an output is worse than its input; empty where they cannot be compared."""
    rows = []
    for row in (ADAPTER_REFERENCE, BASE_REFERENCE, CLASSIC):
        harm = harm_of(scores, row)
        if harm is not None:
            count = f"{len(harm['windows'])} of {harm['n']}"
            losses = [number(harm["mean_loss"], 2), number(harm["worst_loss"], 2)]
            rows.append((escape(row), [count, *losses, escape(", ".join(harm["windows"])) or NOT_MEASURED]))
    if not rows:
        return ""
    metric = metric_name(scores, str(gain_metric(scores)))
    head = ["", f"windows that lose more than {HARM_LIMIT:g} dB", "mean loss of these, dB", "worst loss, dB", "windows"]
    return table(f"Windows that are worse than their input; {metric}.", head, rows, marked=ADAPTER_REFERENCE)


def windows(scores: Scores) -> str:
    """The judged row on every window."""
    judged = judged_row(scores["windows"])
    row = scores["windows"][judged]
    several = ["control"] if scores.get("controls") else []
    head = ["window", "recording", *several, *(metric_name(scores, metric) for metric in row)]
    rows = [
        (
            f'<a href="#window-{i}">{escape(clip["key"])}</a>',
            [
                *(escape(clip[key]) for key in ("source", *several)),
                *(number(row[metric][i], digits(scores, metric)) for metric in row),
            ],
        )
        for i, clip in enumerate(scores["clips"])
    ]
    return table(f"{_judged_title(scores)}, mean over seeds.", head, rows)


def _judged_title(scores: Scores) -> str:
    return "Adapter + reference" if judged_row(scores["windows"]) == ADAPTER_REFERENCE else "Adapter"


def number(value: float | None, decimals: int) -> str:
    """A number, or a dash if it could not be measured."""
    return NOT_MEASURED if value is None else f"{value:.{decimals}f}"


def not_run(scores: Scores) -> str:
    """The metrics that could not be measured on this machine, and why."""
    rows = [(escape(entry["metric"]), [escape(entry["reason"])]) for entry in scores["not_run"]]
    return table("Metrics that were not run.", ["metric", "reason"], rows) if rows else "<p>All metrics were run.</p>"


def comparison(scores: Scores, compared: Mapping[str, Any] | None) -> str:
    """The comparison with `eval.against` (from `eval.compare`), and a file picker for another scores.json."""
    return PICKER if compared is None else _compared(scores, compared) + PICKER


def _compared(scores: Scores, compared: Mapping[str, Any]) -> str:
    rows = [
        (
            escape(f"{row['title']}, {row['unit']}" if row["unit"] else row["title"]),
            [
                *(interval(row[side], 2 if row["unit"] else 3) for side in ("a", "b", "difference")),
                probability(row["p_holm"]),
            ],
        )
        for metric, row in compared["metrics"].items()
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in compared["notes"])
    head = ["metric", "earlier", "this", "this - earlier, paired", "p (Holm)"]
    return table(f"{_judged_title(scores)}.", head, rows) + (f"<p>Also different:</p><ul>{notes}</ul>" if notes else "")


def provenance(scores: Scores) -> str:
    """Provenance of the results, one row per key."""
    facts = {key: scores[key] for key in ("base", "adapter", "seeds", "thresholds", "timings")}
    leaves = [leaf for key, value in {**facts, **scores["provenance"]}.items() for leaf in _leaves(key, value)]
    return table(
        "Command, settings, data and versions.", ["key", "value"], [(escape(k), [escape(v)]) for k, v in leaves]
    )


def _leaves(key: str, value: Any) -> list[tuple[str, str]]:
    """`a.b` and its value as text, for every leaf of a JSON value (lists count as leaves)."""
    if isinstance(value, Mapping):
        return [leaf for inner, deeper in value.items() for leaf in _leaves(f"{key}.{inner}", deeper)]
    values = value if isinstance(value, list) else [value]
    return [(key, ", ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in values) or "none")]
