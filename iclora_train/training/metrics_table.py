"""Read a table of metrics (metrics.csv, throughput.csv) of which some lines may be damaged, as after a power cut."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.records import read_limited
from iclora_train.training.validation_metrics import current_column

KEY = "step"


@dataclass(frozen=True)
class MetricsTable:
    """Current column names, the rows that can be read, and a sentence about lines that cannot (or "").

    Columns that have been renamed have their current names (`validation_metrics.current_column`).
    """

    columns: list[str]
    rows: list[dict[str, str]]
    problem: str = ""


def read_metrics(path: Path) -> MetricsTable:
    """Read a table whose first column is the step.

    Damaged lines are left out; unless the last line was merely cut off, a copy of the file is kept. OSError if the file
    cannot be read.
    """
    data = read_limited(path)
    *lines, rest = data.decode("utf-8-sig", "replace").replace("\r\n", "\n").split("\n")
    header = _cells(lines[0]) if lines else None
    if header is None or header[0] != KEY or len(set(header)) < len(header):
        return MetricsTable([], [], f"{path} has no readable header and was begun again; {_keep(path, data)}")
    rows = [_row(line, len(header)) for line in lines[1:]]
    columns = [current_column(name) for name in header]
    intact = [dict(zip(columns, row, strict=True)) for row in rows if row is not None]
    damaged = rows.count(None)
    problem = f"the last line of {path} was cut off and is left out" if rest else ""
    if damaged:
        problem = f"{damaged} damaged lines of {path} are left out; {_keep(path, data)}"
    return MetricsTable(columns, intact, problem)


def _row(line: str, count: int) -> list[str] | None:
    """The cells of a line; None unless it has `count` cells, numbers or empty, the first a whole number."""
    cells = _cells(line)
    if cells is None or len(cells) != count or not cells[0].isdecimal():
        return None
    try:
        [float(cell) for cell in cells if cell]
    except ValueError:
        return None
    return cells


def _cells(line: str) -> list[str] | None:
    """The cells of a line; None if it holds characters that no table has."""
    if not line.isprintable() or "\ufffd" in line:
        return None
    try:
        return next(csv.reader([line], strict=True), None)
    except csv.Error:
        return None


def _keep(path: Path, data: bytes) -> str:
    """Keep the damaged file under another name. Returns where it is."""
    copies = (path.with_suffix(f".damaged{number}{path.suffix}") for number in range(1, 1000))
    copy = next(copy for copy in copies if not copy.exists())
    with write_atomic(copy) as file:
        file.write(data)
    return f"{copy} holds all of it"
