"""The final report of a preparation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from data_prep.checks import (
    CheckLog,
    read_totals,
    require_no_failure,
    write_results,
)
from iclora_train.config import Config
from iclora_train.core.atomic_files import write_json
from iclora_train.core.records import DamagedFileError


def finish_checks(root: Path, log: CheckLog, report: dict[str, Any], config: Config) -> None:
    """Show all findings and write them to report.json, checks.jsonl and contact.html.

    ConfigError if a check with action=fail has a problem.
    """
    totals = write_results(root, log, report, config)
    write_report(root, report | {"checks": totals})
    require_no_failure(totals, root)


def read_check_totals(root: Path) -> dict[str, Any] | None:
    """Totals of the checks if an earlier run finished, else None: report.json receives the totals last.

    A damaged report.json is written again from the logs of the checks.
    """
    path = root / "report.json"
    if not path.exists():
        return None
    try:
        return read_totals(path)
    except DamagedFileError as error:
        print(f"warning: {error}", file=sys.stderr)
        return None


def write_report(root: Path, report: dict[str, Any]) -> None:
    """Write root/report.json."""
    write_json(root / "report.json", report)
