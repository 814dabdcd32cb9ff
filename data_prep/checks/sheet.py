"""contact.html: references above their targets, worst first, with all measured values. One file, no network."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from data_prep.checks.base import Finding, Report
from iclora_train.config.checks import VERDICTS
from iclora_train.core.atomic_files import write_atomic

ASSETS = Path(__file__).parent / "sheet_assets"
MAX_ROWS = 2000  # rows in the table of excluded clips and pairs; checks.jsonl has all of them


def write_contact_sheet(
    path: Path,
    entries: Callable[[], Iterable[tuple[Report, bytes]]],
    totals: Mapping[str, Any],
    report: Mapping[str, Any],
    task: str,
    max_bytes: int,
) -> None:
    """Write the sheet. It shows the worst entries, as many as fit with their pictures into `max_bytes`.

    entries: starts a new iteration with every call.
    """
    shown, count = _worst(entries(), max_bytes)
    cards = {entry.key: _card(entry, picture) for entry, picture in entries() if entry.key in shown}
    pairs = totals["pairs"]
    page = Template((ASSETS / "sheet.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{task}: {sum(pairs.values())} pairs, {pairs['drop'] + pairs['fail']} left out"),
        style=(ASSETS / "sheet.css").read_text(encoding="utf-8"),
        script=(ASSETS / "sheet.js").read_text(encoding="utf-8"),
        checks=_checks(totals["checks"]),
        kept=_kept(report["kept"], totals),
        left_out=_left_out(report["dropped"], totals["left_out"]),
        filters=_filters(cards, shown),
        cards="".join(cards[key] for key in shown),
        rest=f"checks.jsonl has {count - len(shown)} more, none worse than these." if count > len(shown) else "",
    )
    with write_atomic(path) as file:
        file.write(page.encode())


def _worst(entries: Iterable[tuple[Report, bytes]], max_bytes: int) -> tuple[dict[str, str], int]:
    """Keys and verdicts of the worst reports whose pictures fit, worst first, and the number of all reports. Clips
    without a problem are omitted.
    """
    ranked = [
        (entry.rank, entry.key, entry.verdict, len(data)) for entry, data in entries if entry.is_pair or not entry.kept
    ]
    ranked.sort(key=lambda item: (tuple(-part for part in item[0]), item[1]))
    shown = {}
    for _, key, verdict, size in ranked:
        max_bytes -= (size + 2) // 3 * 4  # in base64
        if max_bytes < 0:
            break
        shown[key] = verdict
    return shown, len(ranked)


def _card(report: Report, picture: bytes) -> str:
    """HTML of a report: its picture, its problems, and every value."""
    data = base64.b64encode(picture).decode()
    title = "reference above target" if any(finding.reference for finding in report.findings) else "the clip"
    title = title if report.is_pair else "the clip above the one that it resembles"
    reasons = "".join(f"<li>{escape(finding.reason)}</li>" for finding in report.problems)
    return (
        f'<article class="card" data-verdict="{report.verdict}" tabindex="-1">'
        f'<h3><b class="{report.verdict}">{report.verdict}</b> {escape(report.key)} '
        f"<small>{escape(report.split)}</small></h3>"
        f'<img src="data:image/jpeg;base64,{data}" alt="{title}" title="{title}">'
        f'<ul class="reasons">{reasons}</ul><p class="caption">{escape(report.caption)}</p>'
        f'<p class="values">{" ".join(map(_value, report.findings))}</p></article>\n'
    )


def _value(finding: Finding) -> str:
    name = finding.check + (f" {finding.reference}" if finding.reference > 1 else "")
    return (
        f'<span class="{finding.verdict}" title="{escape(finding.reason)}">{name} {format_number(finding.value)}</span>'
    )


def format_number(value: float | None) -> str:
    """A value as HTML, or a dash."""
    return "&ndash;" if value is None else f"{value:.4g}"


def _filters(cards: Mapping[str, str], shown: Mapping[str, str]) -> str:
    """A button for each verdict with its count and its keyboard key."""
    buttons = []
    for key, verdict in enumerate(VERDICTS[::-1], start=1):
        count = sum(shown[name] == verdict for name in cards)
        text = f"{verdict} {count} <kbd>{key}</kbd>"
        off = "" if count else " disabled"
        buttons.append(f'<button type="button" data-show="{verdict}" aria-pressed="true"{off}>{text}</button>')
    return "".join(buttons)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table; the cells are HTML."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _checks(checks: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of the checks: counts, values and limits."""
    head = ("check", *VERDICTS, "not measured", "lowest", "median", "highest", "at least", "at most", "otherwise")
    keys = (*VERDICTS, "not_measured")
    rows = []
    for name, totals in checks.items():
        counts = [_count(key, totals[key]) for key in keys]
        values = [format_number(totals[key]) for key in ("low", "median", "high", "least", "most")]
        rows.append([name, *counts, *values, totals["action"]])
    return _table(head, rows)


def _count(verdict: str, count: int) -> str:
    return f'<b class="{verdict}">{count}</b>' if count else "0"


def _kept(kept: Mapping[str, Mapping[str, int]], totals: Mapping[str, Any]) -> str:
    """Planned clips and windows by split, and the number of pairs by verdict."""
    planned = _table(("split", "clips", "windows"), [(s, str(n["clips"]), str(n["windows"])) for s, n in kept.items()])
    return planned + _table(VERDICTS, [[_count(verdict, totals["pairs"][verdict]) for verdict in VERDICTS]])


def _left_out(dropped: list[Mapping[str, str]], left_out: list[Mapping[str, str]]) -> str:
    """Unusable clips and excluded pairs with their reasons."""
    rows = [(escape(entry["clip"]), "clip", escape(entry["reason"])) for entry in dropped]
    rows += [(escape(entry["key"]), entry["verdict"], escape(entry["reason"])) for entry in left_out]
    if not rows:
        return "<p>Nothing was left out.</p>"
    more = f"<p>{len(rows) - MAX_ROWS} more are in report.json and checks.jsonl.</p>" if len(rows) > MAX_ROWS else ""
    return _table(("clip or pair", "verdict", "reason"), rows[:MAX_ROWS]) + more
