"""Read the rows of a clip list (csv, tsv, jsonl, json), and parse numbers in them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from data_prep.clips.columns import check_header, has_video, rename_columns
from data_prep.clips.text_files import read_text
from iclora_train.config import ConfigError, require

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
_DELIMITERS = (",", ";", "\t", "|")
_MAX_DIGITS = 9  # of a frame number

Row = dict[str, str]  # the cells of a row as text, by column
_Line = tuple[str, dict[str, Any]]  # the place of a row, for messages, and its values by column


def read_rows(path: Path, used: Collection[str] = ()) -> list[Row]:
    """The non-empty columns of each row as stripped text, under their own names and ours (`columns.NAMES`).

    The items of a JSON list are joined by spaces. used: the columns that data.prompt names. ConfigError names the list,
    the line and the remedy.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(f"data.clips={path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"data.clips={error}") from error
    where, suffix = f"data.clips={path}", path.suffix.lower()
    rows = _csv_rows(where, text, used) if suffix in (".csv", ".tsv") else _json_rows(where, text, suffix)
    header = list(dict.fromkeys(name for _, row in rows for name in row))
    if rows:
        check_header(where, header, used)
    return [
        rename_columns({name: cell for name, value in row.items() if (cell := _text(value, line, name))}, header)
        for line, row in rows
    ]


def _csv_rows(where: str, text: str, used: Collection[str]) -> list[_Line]:
    """The rows of a csv. The delimiter is the one that separates the header's columns."""
    first, _, rest = text.partition("\n")
    if mark := re.fullmatch(r"sep=([,;\t|])", first.strip(" \r\n"), re.IGNORECASE):  # Excel writes it before the header
        delimiter, text = mark[1], rest
    else:
        headers = {d: next(csv.reader([first], delimiter=d), []) for d in _DELIMITERS}
        delimiter = next((d for d, header in headers.items() if has_video(header)), _DELIMITERS[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(f"{where}, line {reader.line_num}", cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise ConfigError(f"{where}, line {reader.line_num} is not csv: {error}") from error
    header = lines[0][1] if lines else []
    check_header(where, [name for name in header if name.strip()], used)
    for line, cells in lines[1:]:
        extra = any(map(str.strip, cells[len(header) :]))
        require(not extra, f"{line} has more cells than the header; put texts with commas in quotes")
    return [
        (line, {name: cell for name, cell in zip(header, cells, strict=False) if name.strip()})
        for line, cells in lines[1:]
    ]


def _json_rows(where: str, text: str, suffix: str) -> list[_Line]:
    """The objects in the lines of a .jsonl, or in the list of a .json."""
    if suffix == ".json":
        values = _parse_json(where, text)
        require(isinstance(values, list), f"{where} is not a JSON list of objects; one object per line is a .jsonl")
        numbered = [(f"{where}, object {number}", value) for number, value in enumerate(values, start=1)]
    else:
        lines = [(f"{where}, line {n}", line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
        numbered = [(line, _parse_json(line, content)) for line, content in lines]
    for line, value in numbered:
        require(isinstance(value, dict), f"{line} is not a JSON object")
    return numbered


def _parse_json(where: str, text: str) -> Any:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        require(len(names) == len(set(names)), f"{where}: a key occurs twice in {', '.join(names)}")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except ConfigError:
        raise
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise ConfigError(f"{where} cannot be read as JSON ({error})") from error


def _text(value: Any, where: str, name: str) -> str:
    """A cell as text. ConfigError for a JSON object, and for a JSON string with NUL or half of a surrogate pair."""
    require(not isinstance(value, dict), f"{where}: `{name}` is a JSON object, not a text")
    text = " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    require("\0" not in text, f"{where}: `{name}` holds a NUL character")
    require(
        not any("\ud800" <= character <= "\udfff" for character in text),
        f"{where}: `{name}` holds half of a surrogate pair, such as one \\u escape of the two of an emoji",
    )
    return text.replace("\ufeff", "").strip()


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
    valid = all(part.isdecimal() and len(part) <= _MAX_DIGITS and int(part) > 0 for part in parts)
    require(valid, f"{where}: {column}={row[column]!r} must be frame numbers above 0, e.g. 29 75 136")
    return tuple(sorted(map(int, parts)))
