"""The section of a video that a row of a list names, by times or by numbers of frames."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from iclora_train.config import require
from iclora_train.media.section import Section

_TIME = r"(?:(?:\d{1,4}:)?\d{1,4}:)?\d{1,9}(?:[.,]\d{1,9})?"
_PAIR = re.compile(
    rf"[\[(\s]*['\"]?({_TIME})['\"]?\s*(?:,\s+|[\s;-]+|,(?=['\"])|(?<=['\"]),)\s*['\"]?({_TIME})['\"]?[\])\s]*"
)
_FORM = "give seconds or hh:mm:ss, such as 12.5 or 0:01:30.25"


def section_of_row(row: Mapping[str, str], where: str) -> Section | None:
    """The section in `start` and `end`, in `timestamp`, or in `start_frame` and `end_frame`; None: the whole video.

    ConfigError starts with `where`.
    """
    pair = _pair(row, where)
    forms = {
        "start, end": "start" in row or "end" in row,
        "timestamp": pair is not None,
        "start_frame, end_frame": "start_frame" in row or "end_frame" in row,
    }
    named = [name for name, is_given in forms.items() if is_given]
    require(len(named) < 2, f"{where} names its section twice, in {' and in '.join(named)}: keep one")
    if not named:
        return None
    if forms["start_frame, end_frame"]:
        first, last = (_frame(row, column, where) for column in ("start_frame", "end_frame"))
        section = Section(first or Fraction(0), last, in_frames=True)
    else:
        start, end = pair or (_time(row, "start", where), _time(row, "end", where))
        section = Section(start or Fraction(0), end)
    require(
        section.end is None or section.start < section.end, f"{where}: its section, {section}, ends before it starts"
    )
    return section


def reference_section(section: Section | None, row: Mapping[str, str], where: str) -> Section | None:
    """The section of the reference: as long as the video's, from `reference_start` on (default: the same time)."""
    start = _time(row, "reference_start", where)
    if section is None or start is None:
        require(start is None, f"{where}: reference_start goes with `start` and `end`, which it does not name")
        return section
    require(not section.in_frames, f"{where}: reference_start goes with `start` and `end` in seconds, not with frames")
    return Section(start, None if section.end is None else start + section.end - section.start)


def suffix_of(section: Section | None) -> str:
    """The end of the id of a section without one: its start in milliseconds, or an f and its first frame."""
    if section is None:
        return ""
    return f"-f{section.start}" if section.in_frames else f"-{round(section.start * 1000)}"


def parse_time(text: str) -> Fraction | None:
    """Seconds of `12.5`, `1:30` or `0:01:30.250` (a comma as decimal sign too); None if it is not a time."""
    if not re.fullmatch(_TIME, text.strip()):
        return None
    *larger, seconds = text.strip().replace(",", ".").split(":")
    in_range = all(int(value) < 60 for value in larger[1:]) and (not larger or Fraction(seconds) < 60)
    total = Fraction(0)
    for value in (*larger, seconds):
        total = 60 * total + Fraction(value)
    return total if in_range else None


def _time(row: Mapping[str, str], column: str, where: str) -> Fraction | None:
    if column not in row:
        return None
    seconds = parse_time(row[column])
    require(seconds is not None, f"{where}: {column}={row[column]!r} is not a time: {_FORM}")
    return seconds


def _pair(row: Mapping[str, str], where: str) -> tuple[Fraction, Fraction] | None:
    """Start and end in `timestamp`; None for a text that is not a list, such as a date."""
    text = row.get("timestamp", "")
    match = _PAIR.fullmatch(text)
    start, end = (parse_time(match[1]), parse_time(match[2])) if match else (None, None)
    if start is not None and end is not None:
        return start, end
    require(
        not text.startswith("["),
        f"{where}: timestamp={text[:80]!r} is not a start and an end, such as ['0:00:01', '0:00:05.5']; give each "
        "section of a video a row of its own",
    )
    return None


def _frame(row: Mapping[str, str], column: str, where: str) -> Fraction | None:
    if column not in row:
        return None
    text = row[column]
    require(
        re.fullmatch(r"\d{1,9}", text) is not None,
        f"{where}: {column}={text!r} must be the number of a frame, counted from 0",
    )
    return Fraction(text)
