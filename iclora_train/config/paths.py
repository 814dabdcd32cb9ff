"""`~` at the start of a path is the home folder, on the command line and in settings files."""

from __future__ import annotations

import os
from pathlib import Path

from iclora_train.config.errors import require


def expand_home(path: str) -> str:
    """The path with `~` or `~user` expanded. ConfigError if that folder is unknown."""
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    known = expanded != path or path.partition("/")[0] != "~"
    require(known, f"{path}: the home folder is unknown. Set the variable HOME, or write the path without ~")
    return expanded


def user_path(path: str) -> Path:
    """`expand_home` as a Path, e.g. for a parser of arguments."""
    return Path(expand_home(path))
