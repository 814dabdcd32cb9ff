"""Durations as text: `30m` in a setting, `2.5 hours` in a message. No torch import."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from iclora_train.config.errors import require

UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(key: str, text: str) -> float:
    """Seconds of a duration such as `90s`, `30m`, `2h` or `1.5h`. ConfigError, with `key`, for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    require(seconds > 0, f"{key}={text} is not a duration above 0: write e.g. 90s, 30m or 2h")
    return seconds


def duration_text(seconds: float) -> str:
    """`45 s`, `12 min` or `2.5 hours`, whichever suits the size."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} hours"


def end_text(seconds: float, now: datetime | None = None) -> str:
    """The local time `seconds` from now: `14:05`, or with its weekday `Wed 07:40` if it is not today."""
    now = now or datetime.now()
    end = now + timedelta(seconds=seconds)
    return end.strftime("%H:%M" if end.date() == now.date() else "%a %H:%M")
