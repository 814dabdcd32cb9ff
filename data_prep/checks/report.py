"""What the checks found, kept on disk while pairs are made, and told in the end: checks.jsonl, totals, contact.html."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from data_prep.checks.base import Finding, Report
from data_prep.checks.sheet import write_contact_sheet
from iclora_train.config import Config, ConfigError
from iclora_train.config.checks import VERDICTS, Limit
from iclora_train.core.atomic_files import write_atomic

Entry = tuple[Report, bytes]  # and its picture (JPEG; empty for none)
LATER = "later"  # the part with findings that are made after the pairs


class CheckLog:
    """Reports and pictures in parts, a file each (one per pair shard), so that a killed run can go on.

    mark: what the pairs were made by (a digest); notes of other settings lie in another folder.
    """

    def __init__(self, root: Path, mark: str) -> None:
        self.folder = root / f"checks-{mark[:8]}"

    def has(self, part: str) -> bool:
        """Whether a part is there."""
        return self._path(part).exists()

    def write(self, part: str, entries: Iterable[Entry]) -> None:
        """Write a part, whole or not at all; one of that name is replaced."""
        with write_atomic(self._path(part)) as file:
            for report, picture in entries:
                line = {"report": report.record(), "picture": base64.b64encode(picture).decode()}
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def add(self, reports: Iterable[Report]) -> None:
        """Write more findings about pairs that are in other parts already (the VAE's)."""
        self.write(LATER, [(report, b"") for report in reports])

    def read(self, part: str) -> Iterator[Entry]:
        """What a part holds; nothing if it is not there."""
        return self._read(self._path(part))

    def entries(self) -> Iterator[Entry]:
        """Every report with its picture, by part and in order; added findings are with their pair's."""
        added = {report.key: report.findings for report, _ in self._read(self._path(LATER))}
        for path in sorted(self.folder.glob("*.jsonl")):
            if path != self._path(LATER):
                for report, picture in self._read(path):
                    yield replace(report, findings=report.findings + added.get(report.key, ())), picture

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.jsonl"

    @staticmethod
    def _read(path: Path) -> Iterator[Entry]:
        if path.exists():
            with path.open(encoding="utf-8") as file:
                for line in map(json.loads, file):
                    yield Report.from_record(line["report"]), base64.b64decode(line["picture"])


def write_results(root: Path, notes: CheckLog, report: dict[str, Any], config: Config) -> dict[str, Any]:
    """Write root/checks.jsonl and root/contact.html from the notes, show the table, return the totals for `report`,
    which is what report.json says of the clips (`kept`, `dropped`).
    """
    with write_atomic(root / "checks.jsonl") as file:
        for one, _ in notes.entries():
            file.write(json.dumps(one.record(), ensure_ascii=False).encode() + b"\n")
    totals = summarize((one for one, _ in notes.entries()), config.checks.limits())
    room = int(config.checks.sheet_megabytes * 2**20)
    write_contact_sheet(root / "contact.html", notes.entries, totals, report, config.task.name, room)
    show_checks(totals)
    return totals


def summarize(reports: Iterable[Report], limits: dict[str, Limit]) -> dict[str, Any]:
    """Totals: pairs by verdict, and per check the verdicts, its limit and the values; who is left out and why."""
    pairs = dict.fromkeys(VERDICTS, 0)
    found: dict[str, list[Finding]] = {name: [] for name in limits}
    left_out = []
    for report in reports:
        pairs[report.verdict] += report.is_pair
        for finding in report.findings:
            found[finding.check].append(finding)
        if not report.kept:
            left_out.append(
                {"key": report.key, "clip": report.clip, "verdict": report.verdict, "reason": report.reason}
            )
    checks = {name: _totals(findings, limits[name]) for name, findings in found.items()}
    return {"pairs": pairs, "checks": checks, "left_out": left_out}


def _totals(findings: list[Finding], limit: Limit) -> dict[str, Any]:
    """Of one check: its limit, how many got each verdict, where nothing could be measured, and the values' spread."""
    values = [finding.value for finding in findings if finding.value is not None]
    low, median, high = np.quantile(values, [0, 0.5, 1]).tolist() if values else (None, None, None)
    verdicts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in VERDICTS}
    told = {
        "least": limit.least,
        "most": limit.most,
        "action": limit.action,
        "not_measured": len(findings) - len(values),
    }
    return told | verdicts | {"low": low, "median": median, "high": high}


def require_no_failure(totals: dict[str, Any], root: Path) -> None:
    """ConfigError when a check with action=fail objected. Call it when all else is written."""
    failed = [one for one in totals["left_out"] if one["verdict"] == "fail"]
    keys = ", ".join(f"checks.{name}.action=fail" for name, counts in totals["checks"].items() if counts["fail"])
    if failed:
        raise ConfigError(
            f"{keys}: {len(failed)} pairs or clips do not pass, first {failed[0]['key']}: {failed[0]['reason']}. "
            f"See {root / 'contact.html'}; mend the clips, or set drop or warn"
        )


def show_checks(totals: dict[str, Any]) -> None:
    """The table of what the checks of pairs found (`checks.summarize`), on stdout."""
    pairs = ", ".join(f"{count} {verdict}" for verdict, count in totals["pairs"].items())
    table = Table(
        Column("check", no_wrap=True),
        *VERDICTS,
        "lowest",
        "median",
        "highest",
        "allowed",
        title=f"checks ({pairs})",
        box=SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    for name, found in totals["checks"].items():
        values = (_cell(found[key]) for key in ("low", "median", "high"))
        bounds = " ".join(
            f"{sign}{found[key]:g}" for sign, key in ((">=", "least"), ("<=", "most")) if found[key] is not None
        )
        table.add_row(name, *(str(found[verdict]) for verdict in VERDICTS), *values, bounds)
    Console().print(table)


def _cell(value: float | None) -> str:
    """A value in a table: four digits, a dash for none."""
    return "-" if value is None else f"{value:.4g}"
