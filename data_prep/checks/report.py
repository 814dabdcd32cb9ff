"""Log of the check reports on disk, and the final report: checks.jsonl, totals, table, contact.html."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Column, Table

from data_prep.checks.base import Finding, Report
from data_prep.checks.sheet import write_contact_sheet
from iclora_train.config import Config, ConfigError
from iclora_train.config.checks import VERDICTS, Checks, Limit
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.console import make_console
from iclora_train.core.records import Count, DamagedFileError, Text, as_type, from_json, read_json
from iclora_train.core.regular_files import open_regular

Entry = tuple[Report, bytes]  # a report and its picture (JPEG, or empty)
# checks that compare a reference with its target, or look at what it was made from
OF_REFERENCES = ("shape", "offset", "blank", "static", "clipped", "contrast", "flicker", "coverage", "caption_control")
LATER = "later"  # the part with findings that are added after the pairs are made


@dataclass(frozen=True)
class _LogLine:
    report: Report
    picture: Text


def _parse_entry(line: bytes) -> Entry:
    """A line of a log. ValueError if it is damaged."""
    entry = from_json(line, _LogLine)
    for finding in entry.report.findings:
        if finding.check not in Checks().limits() or finding.verdict not in VERDICTS:
            raise ValueError(f"no finding is called {finding.check[:20]!r} with verdict {finding.verdict[:20]!r}")
    return entry.report, base64.b64decode(entry.picture, validate=True)


@dataclass(frozen=True)
class _LeftOut:
    key: Text
    verdict: Text
    reason: Text


@dataclass(frozen=True)
class _CheckCounts:
    fail: Count


@dataclass(frozen=True)
class _Totals:
    """The totals in report.json, as far as they are read again."""

    left_out: list[_LeftOut]
    checks: dict[Text, _CheckCounts]


@dataclass(frozen=True)
class _StoredReport:
    checks: _Totals | None = None


class CheckLog:
    """Reports and pictures on disk, one file per part (one part per pair shard), so that interrupted runs can continue.

    fingerprint: digest of the settings of the pairs. Each set of settings has its own folder.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.folder = root / f"checks-{fingerprint[:8]}"

    def has(self, part: str) -> bool:
        """Whether a part exists."""
        return self._path(part).exists()

    def write(self, part: str, entries: Iterable[Entry]) -> None:
        """Write a part atomically; an existing part is replaced."""
        with write_atomic(self._path(part)) as file:
            for report, picture in entries:
                line = {"report": report.record(), "picture": base64.b64encode(picture).decode()}
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def add(self, reports: Iterable[Report]) -> None:
        """Add findings about pairs of other parts (the VAE round trips)."""
        self.write(LATER, [(report, b"") for report in reports])

    def read(self, part: str) -> Iterator[Entry]:
        """The entries of a part; none if it does not exist."""
        return self._read(self._path(part))

    def entries(self) -> Iterator[Entry]:
        """Every report with its picture, by part and in order, including added findings."""
        added = {report.key: report.findings for report, _ in self._read(self._path(LATER))}
        for path in sorted(self.folder.glob("*.jsonl")):
            if path != self._path(LATER):
                for report, picture in self._read(path):
                    yield replace(report, findings=report.findings + added.get(report.key, ())), picture

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.jsonl"

    def _read(self, path: Path) -> Iterator[Entry]:
        if not path.exists():
            return
        try:
            with open_regular(path) as file:
                yield from map(_parse_entry, file)
        except (OSError, ValueError) as error:
            pairs = self.folder.with_name("pairs") / f"{path.stem}.tar"  # made again, it has the same bytes
            remedy = f"delete it and {pairs}" if pairs.exists() else "delete it"
            raise DamagedFileError(f"{path} is damaged ({error}): {remedy}, and run data_prep again") from error


def write_results(root: Path, log: CheckLog, report: dict[str, Any], config: Config) -> dict[str, Any]:
    """Write root/checks.jsonl and root/contact.html from the log, and print the table. Returns the totals.

    report: the content of report.json about the clips (`kept`, `dropped`).
    """
    with write_atomic(root / "checks.jsonl") as file:
        for entry, _ in log.entries():
            file.write(json.dumps(entry.record(), ensure_ascii=False).encode() + b"\n")
    totals = summarize((entry for entry, _ in log.entries()), limits_of(config))
    max_bytes = int(config.checks.sheet_megabytes * 2**20)
    write_contact_sheet(root / "contact.html", log.entries, totals, report, config.task.name, max_bytes)
    show_checks(totals)
    return totals


def limits_of(config: Config) -> dict[str, Limit]:
    """The limits of the checks that apply to the task, by name."""
    limits = config.checks.limits()
    if config.task.has_reference:
        return limits
    return {name: limit for name, limit in limits.items() if name not in OF_REFERENCES}


def summarize(reports: Iterable[Report], limits: dict[str, Limit]) -> dict[str, Any]:
    """Totals: pairs by verdict; per check the verdicts, the limit and the values; excluded pairs with reasons."""
    pairs = dict.fromkeys(VERDICTS, 0)
    findings: dict[str, list[Finding]] = {name: [] for name in limits}
    left_out = []
    for report in reports:
        pairs[report.verdict] += report.is_pair
        for finding in report.findings:
            findings[finding.check].append(finding)
        if not report.kept:
            left_out.append(
                {"key": report.key, "clip": report.clip, "verdict": report.verdict, "reason": report.reason}
            )
    checks = {name: _totals(values, limits[name]) for name, values in findings.items()}
    return {"pairs": pairs, "checks": checks, "left_out": left_out}


def read_totals(path: Path) -> dict[str, Any] | None:
    """The totals in a report.json; None if the preparation had not finished. DamagedFileError if it is damaged."""
    remedy = "it is written again"
    report = read_json(path, dict[str, Any], remedy)
    try:
        as_type(report, _StoredReport)
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {remedy}") from error
    totals: dict[str, Any] | None = report.get("checks")
    return totals


def _totals(findings: list[Finding], limit: Limit) -> dict[str, Any]:
    """Totals of one check: limit, count per verdict, count without a value, and range of the values."""
    values = [finding.value for finding in findings if finding.value is not None]
    low, median, high = np.quantile(values, [0, 0.5, 1]).tolist() if values else (None, None, None)
    verdicts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in VERDICTS}
    totals = {
        "least": limit.least,
        "most": limit.most,
        "action": limit.action,
        "not_measured": len(findings) - len(values),
    }
    return totals | verdicts | {"low": low, "median": median, "high": high}


def require_no_failure(totals: dict[str, Any], root: Path) -> None:
    """ConfigError if a check with action=fail found a problem. Call it after everything else is written."""
    failed = [entry for entry in totals["left_out"] if entry["verdict"] == "fail"]
    keys = ", ".join(f"checks.{name}.action=fail" for name, counts in totals["checks"].items() if counts["fail"])
    if failed:
        raise ConfigError(
            f"{keys}: {len(failed)} pairs or clips do not pass, first {failed[0]['key']}: {failed[0]['reason']}. "
            f"See {root / 'contact.html'}; fix the clips, or set drop or warn"
        )


def show_checks(totals: dict[str, Any]) -> None:
    """Print the table of the check totals (see `summarize`) on stdout."""
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
    for name, check in totals["checks"].items():
        values = (_cell(check[key]) for key in ("low", "median", "high"))
        bounds = " ".join(
            f"{sign}{check[key]:g}" for sign, key in ((">=", "least"), ("<=", "most")) if check[key] is not None
        )
        table.add_row(name, *(str(check[verdict]) for verdict in VERDICTS), *values, bounds)
    make_console().print(table)


def _cell(value: float | None) -> str:
    """A value in a table: four digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"
