"""Write transfer.html: one file without scripts that opens from disk, in the style of report.html."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from eval.report.page import ASSETS as REPORT_ASSETS
from eval.report.page import policy_hash
from eval.report.tables import NOT_MEASURED, interval, probability, table
from eval.report.verdicts import badge
from eval.statistics.estimates import Estimate
from eval.transfer.record import Record, Row

PAGE, STYLE = (Path(__file__).parent / f"transfer.{ending}" for ending in ("html", "css"))
CLASSES = {"equivalent": "pass", "better": "pass", "worse": "fail", "not decided": "warn"}  # outcome -> CSS class
Metrics = Mapping[str, Any]


def page(record: Record) -> bytes:
    """The page of a record."""
    style = (REPORT_ASSETS / "report.css").read_text(encoding="utf-8") + STYLE.read_text(encoding="utf-8")
    text = Template(PAGE.read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src {policy_hash(style)}; base-uri 'none'; "
        "form-action 'none'",
        style=style,
        title=escape(f"{record['task']}: what other choices of sampling cost"),
        subtitle=escape(_subtitle(record)),
        sentences=_sentences(record),
        choices=_choices(record),
        differences=_differences(record),
        impossible=_impossible(record),
    )
    return text.encode()


def _subtitle(record: Record) -> str:
    recordings = {clip["source"] for clip in record["clips"]}
    seeds = ", ".join(map(str, record["seeds"]))
    effect = "" if record["effect"] is None else f"; effect LoRA {record['effect']['path']}"
    return (
        f"{len(record['clips'])} held-out windows of {len(recordings)} recordings, seeds {seeds}; "
        f"base {record['base']['name']} {record['base']['version']}; {record['adapter']['path']}{effect}; "
        f"{record['provenance']['device']}"
    )


def _sentences(record: Record) -> str:
    rows = []
    for line in record["sentences"]:
        mark = escape(line["outcome"]) if line["outcome"] == "not measured here" else badge(line["outcome"])
        measured = f"{escape(line['measured'])}<small>{escape(line['note'])}</small>"
        cells = [mark, interval(line["value"], 3), escape(line["required"]), probability(line["p"]), measured]
        rows.append((f"{escape(line['sentence'])}<small>{escape(line['name'])}</small>", cells))
    caption = "Each sentence with what was measured. Mean and 95 % interval; p that the bound is met."
    return table(caption, ["sentence", "outcome", "value", "required", "p", "measured"], rows)


def _choices(record: Record) -> str:
    metric = record["primary"]
    title, decimals = _title(record, metric), 2 if record["metrics"][metric]["unit"] else 3
    head = [
        "choice",
        title,
        f"{title}: change",
        "p (Holm)",
        "gain kept",
        "outcome",
        f"lost when swapped, {_title(record, record['adherence'])}",
        "lost when swapped: change",
        "gates",
        *(["lost when one reference is swapped"] if _has_several(record) else []),
        "s per clip",
        "passes",
    ]
    rows = [
        (
            f"{escape(row['name'])}<small>{escape(row['axis'])}</small>",
            _cells(row, metric, decimals, _has_several(record)),
        )
        for row in record["choices"]
        if row["cost"] is not None
    ]
    caption = (
        "Differences are paired over windows and seeds, with 95 % intervals over recordings. Gain kept: the share of "
        "the adapter's gain over base + reference; equivalent: two one-sided tests place it between "
        f"{1 - record['tolerance']:.2f} and {1 + record['tolerance']:.2f}. Clips of another size are measured against "
        "targets of that size. Passes of the transformer for a clip; below, in units of a pass over a clip of the "
        "windows' size."
    )
    return table(caption, head, rows, marked=f"{escape(record['choices'][0]['name'])}<small>reference</small>")


def _has_several(record: Record) -> bool:
    """Whether the task has several references."""
    return any(row["references"] for row in record["choices"])


def _of_each_reference(row: Row) -> str:
    """Each reference with the share of the gain that is lost if it alone is swapped, and whether it is followed."""
    lines = [
        f"{escape(name)} {use['lost']['mean']:.2f} {badge(use['outcome'])}" for name, use in row["references"].items()
    ]
    return "<br>".join(lines) or NOT_MEASURED


def _cells(row: Row, metric: str, decimals: int, has_several: bool) -> list[str]:
    cost = row["cost"]
    assert cost is not None
    difference, is_reference = cost["differences"].get(metric), row["axis"] == "reference"
    gates = NOT_MEASURED
    if row["gates"] is not None:
        others = [(name, judgement) for name, judgement in row["gates"]["each"].items() if judgement != "holds"]
        lines = "<br>".join(f"{escape(name)} {escape(judgement)}" for name, judgement in others)
        gates = f"{badge(row['gates']['outcome'])}<small>{lines}</small>"
    seconds = NOT_MEASURED if row["seconds_per_clip"] is None else f"{row['seconds_per_clip']:.3g}"
    outcome = f'<span class="{CLASSES[cost["outcome"]]}">{cost["outcome"]}</span>'
    return [
        interval(cost["value"], decimals),
        NOT_MEASURED if is_reference or difference is None else _signed(difference["difference"], decimals),
        NOT_MEASURED if is_reference else probability(cost["p_holm"]),
        NOT_MEASURED if is_reference else interval(cost["kept"], 2),
        "" if is_reference else outcome,
        interval(cost["control"], decimals),
        NOT_MEASURED if is_reference or cost["control_change"] is None else _signed(cost["control_change"], decimals),
        gates,
        *([_of_each_reference(row)] if has_several else []),
        seconds,
        f"{row['passes']}<small>{row['token_passes']:g}</small>",
    ]


def _signed(value: Estimate, decimals: int) -> str:
    text = interval(value, decimals)
    return f"+{text}" if value["mean"] >= 0 else text


def _differences(record: Record) -> str:
    """The change of every metric that some choice was measured with."""
    rows = [row for row in record["choices"] if row["cost"] is not None and row["axis"] != "reference"]
    keys = [key for key in record["metrics"] if any(key in row["cost"]["differences"] for row in rows if row["cost"])]
    body = []
    for row in rows:
        assert row["cost"] is not None
        differences = row["cost"]["differences"]
        cells = [NOT_MEASURED if key not in differences else _signed(differences[key]["difference"], 3) for key in keys]
        body.append((escape(row["name"]), cells))
    caption = (
        "Change of every metric, choice minus the task's settings, paired; mean and 95 % interval over recordings."
    )
    return table(caption, ["choice", *(_title(record, key) for key in keys)], body) if body else ""


def _impossible(record: Record) -> str:
    rows = [
        (escape(row["name"]), [escape(row["axis"]), escape(row["obstacle"])])
        for row in record["choices"]
        if row["obstacle"]
    ]
    return table("Choices that were not measured, and why.", ["choice", "kind", "reason"], rows) if rows else ""


def _title(record: Record, metric: str) -> str:
    known = record["metrics"][metric]
    return escape(f"{known['title']}, {known['unit']}" if known["unit"] else known["title"])
