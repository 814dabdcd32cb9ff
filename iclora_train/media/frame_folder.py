"""A folder with one picture per frame."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path


def frame_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The pictures in a folder, frame by frame: in the order of their names, numbers by value (`f_9.png`, `f_10.png`).

    Hidden files are left out, such as the `._f_9.png` that macOS writes beside `f_9.png`. suffixes: in lower case.
    """
    files = [file for file in folder.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith(".")]
    return sorted(files, key=lambda file: [int(part) if part.isdecimal() else part for part in _parts(file.name)])


def _parts(name: str) -> list[str]:
    """The name cut into texts and numbers, in turns."""
    return re.split(r"([0-9]+)", name)
