"""What a sequential evaluation did, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def look_line(entry: Mapping[str, Any]) -> str:
    """What the last look has decided. entry: `sequential` of scores.json."""
    look = entry["looks"][-1]
    undecided = f"undecided: {', '.join(look['undecided'])}" if look["undecided"] else "every gate is decided"
    recordings = f"{look['recordings']} of {entry['planned_recordings']} recordings"
    windows = f"{look['windows']} of {entry['planned_windows']} windows"
    return f"look {len(entry['looks'])} of {len(entry['planned_looks'])}, {recordings}, {windows}: {undecided}"


def stopping_line(entry: Mapping[str, Any]) -> str:
    """Where sampling stopped, and what that means for the intervals of the claims."""
    when = "stopped early" if entry["stopped_early"] else "went on to the last look"
    return f"sampling {when} ({look_line(entry)}); intervals and p of the claims hold for all looks together"
