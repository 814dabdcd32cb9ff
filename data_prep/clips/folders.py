"""Find the files of a folder or a pattern: links are followed, hidden files are not clips, each file occurs once."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, those behind links to folders last. A folder is entered once, so circles end.

    Hidden files and folders (`.cache/`, `._clip.mp4` of macOS) are left out. A folder that cannot be read is yielded.
    """
    entered: set[str] = set()
    pending = deque([str(folder)])
    unreadable: list[OSError] = []
    while pending:
        for root, folders, names in os.walk(pending.popleft(), onerror=unreadable.append):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if os.path.realpath(root) in entered:
                folders.clear()
                continue
            entered.add(os.path.realpath(root))
            pending.extend(path for name in folders if os.path.islink(path := os.path.join(root, name)))
            yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
    yield from (Path(error.filename) for error in unreadable)


def split_pattern(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder that a pattern starts from, and the parts below it; none if it has no wildcards.

    Brackets in the name of an existing folder are not wildcards.
    """
    parts = pattern.parts
    is_wild = [glob.has_magic(part) and not os.path.isdir(Path(*parts[: i + 1])) for i, part in enumerate(parts)]
    count = is_wild.index(True) if True in is_wild else len(parts)
    return Path(*parts[:count]), parts[count:]


def files_matching(folder: Path, pattern: Sequence[str]) -> list[Path]:
    """The files below a folder that match the parts of a pattern, and folders as in `files_below`.

    `**` is any number of folders.
    """
    if "**" not in pattern:
        names = sorted(glob.glob(os.path.join(glob.escape(str(folder)), *pattern)))
        return [Path(name) for name in names if not os.path.isdir(name)]
    paths = files_below(folder)
    return [path for path in paths if _matches(path.relative_to(folder).parts, pattern) or os.path.isdir(path)]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
