"""Read the rows of a csv or jsonl clip list, and parse numbers in them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from iclora_train.config import ConfigError, require


def read_rows(path: Path) -> list[dict[str, str]]:
    """The non-empty columns of each row as stripped text. The items of a JSON list are joined by spaces.

    ConfigError names the row that cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_csv_rows(path, file) if path.suffix == ".csv" else _jsonl_rows(path, file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"data.clips={path} cannot be read as text: {error}") from error
    return [{column: text for column, value in row.items() if (text := _text(value))} for row in rows]


def _csv_rows(path: Path, file: IO[str]) -> Iterator[dict[str, Any]]:
    for row in csv.DictReader(file, strict=True):
        require(
            None not in row, f"data.clips={path}: a row has more cells than the header; put texts with commas in quotes"
        )
        yield row


def _jsonl_rows(path: Path, file: IO[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"data.clips={path}, line {number} is not JSON ({error.msg})") from error
        require(isinstance(row, dict), f"data.clips={path}, line {number} is not a JSON object")
        yield row


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value).strip()


def parse_number(row: Mapping[str, str], column: str, where: str) -> float | None:
    """The number above 0 in a column, or None if it is empty. ConfigError starts with `where`."""
    if column not in row:
        return None
    message = f"{where}: {column}={row[column]!r} is not a number above 0"
    try:
        number = float(row[column])
    except ValueError as error:
        raise ConfigError(message) from error
    require(number > 0, message)
    return number


def parse_frame_numbers(row: Mapping[str, str], column: str, where: str) -> tuple[int, ...] | None:
    """The whole numbers above 0 in a column, ascending, separated by spaces, commas or semicolons. None if empty."""
    if column not in row:
        return None
    parts = re.split(r"[\s,;]+", row[column])
    valid = all(part.isdecimal() and int(part) > 0 for part in parts)
    require(valid, f"{where}: {column}={row[column]!r} must be frame numbers above 0, e.g. 29 75 136")
    return tuple(sorted(map(int, parts)))
