"""contact.html: references over their targets, the worst first, with what was measured. One file, no network."""

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
ROWS = 2000  # of the table of what was left out; checks.jsonl has all


def write_contact_sheet(
    path: Path,
    entries: Callable[[], Iterable[tuple[Report, bytes]]],
    totals: Mapping[str, Any],
    report: Mapping[str, Any],
    task: str,
    room: int,
) -> None:
    """Write the sheet. entries: begins again with every call; of these, the worst are shown whose pictures fit into
    `room` bytes.
    """
    shown, count = _chosen(entries(), room)
    cards = {one.key: _card(one, picture) for one, picture in entries() if one.key in shown}
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
        rest=f"{count - len(shown)} more, none of them worse, are in checks.jsonl." if count > len(shown) else "",
    )
    with write_atomic(path) as file:
        file.write(page.encode())


def _chosen(entries: Iterable[tuple[Report, bytes]], room: int) -> tuple[dict[str, str], int]:
    """Keys of the worst reports with their verdicts, worst first, as far as their pictures fit; and how many there are.
    Clips of which nothing is wrong are left aside.
    """
    ranked = [(one.rank, one.key, one.verdict, len(data)) for one, data in entries if one.is_pair or not one.kept]
    ranked.sort(key=lambda item: (tuple(-part for part in item[0]), item[1]))
    shown = {}
    for _, key, verdict, size in ranked:
        room -= (size + 2) // 3 * 4  # in base64
        if room < 0:
            break
        shown[key] = verdict
    return shown, len(ranked)


def _card(report: Report, picture: bytes) -> str:
    """A report: its picture, what is wrong, and every value."""
    data = base64.b64encode(picture).decode()
    what = "reference over target" if report.is_pair else "the clip over the one it is like"
    reasons = "".join(f"<li>{escape(finding.reason)}</li>" for finding in report.problems)
    return (
        f'<article class="card" data-verdict="{report.verdict}" tabindex="-1">'
        f'<h3><b class="{report.verdict}">{report.verdict}</b> {escape(report.key)} '
        f"<small>{escape(report.split)}</small></h3>"
        f'<img src="data:image/jpeg;base64,{data}" alt="{what}" title="{what}">'
        f'<ul class="reasons">{reasons}</ul><p class="caption">{escape(report.caption)}</p>'
        f'<p class="values">{" ".join(map(_value, report.findings))}</p></article>\n'
    )


def _value(finding: Finding) -> str:
    name = finding.check + (f" {finding.reference}" if finding.reference > 1 else "")
    return (
        f'<span class="{finding.verdict}" title="{escape(finding.reason)}">{name} {format_number(finding.value)}</span>'
    )


def format_number(value: float | None) -> str:
    """A value as HTML; a dash where there is none."""
    return "&ndash;" if value is None else f"{value:.4g}"


def _filters(cards: Mapping[str, str], shown: Mapping[str, str]) -> str:
    """A switch for each verdict that occurs, with its key."""
    buttons = []
    for key, verdict in enumerate(VERDICTS[::-1], start=1):
        count = sum(shown[name] == verdict for name in cards)
        text = f"{verdict} {count} <kbd>{key}</kbd>"
        off = "" if count else " disabled"
        buttons.append(f'<button type="button" data-show="{verdict}" aria-pressed="true"{off}>{text}</button>')
    return "".join(buttons)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; the cells are HTML already."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _checks(checks: Mapping[str, Mapping[str, Any]]) -> str:
    """What every check found, and what it allows."""
    head = ("check", *VERDICTS, "not measured", "lowest", "median", "highest", "at least", "at most", "otherwise")
    keys = (*VERDICTS, "not_measured")
    rows = []
    for name, totals in checks.items():
        counts = [_count(key, totals[key]) for key in keys]
        spread = [format_number(totals[key]) for key in ("low", "median", "high", "least", "most")]
        rows.append([name, *counts, *spread, totals["action"]])
    return _table(head, rows)


def _count(verdict: str, count: int) -> str:
    return f'<b class="{verdict}">{count}</b>' if count else "0"


def _kept(kept: Mapping[str, Mapping[str, int]], totals: Mapping[str, Any]) -> str:
    """Clips and windows by split as planned, and how many pairs each verdict got."""
    planned = _table(("split", "clips", "windows"), [(s, str(n["clips"]), str(n["windows"])) for s, n in kept.items()])
    return planned + _table(VERDICTS, [[_count(verdict, totals["pairs"][verdict]) for verdict in VERDICTS]])


def _left_out(dropped: list[Mapping[str, str]], left_out: list[Mapping[str, str]]) -> str:
    """Clips that could not be used and pairs that were left out, each with its reason."""
    rows = [(escape(one["clip"]), "clip", escape(one["reason"])) for one in dropped]
    rows += [(escape(one["key"]), one["verdict"], escape(one["reason"])) for one in left_out]
    if not rows:
        return "<p>Nothing was left out.</p>"
    more = f"<p>{len(rows) - ROWS} more are in report.json and checks.jsonl.</p>" if len(rows) > ROWS else ""
    return _table(("clip or pair", "verdict", "reason"), rows[:ROWS]) + more
