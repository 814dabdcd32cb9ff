"""Replace files that belong together, for example scores.json and report.html."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from iclora_train.core.atomic_files import write_atomic


def write_together(files: Sequence[tuple[Path, bytes]]) -> None:
    """Write files that belong together: never is a new one beside an old one.

    All are complete on disk, under their temporary names, before the old ones are removed and the new ones appear. A
    process that is killed in between leaves the first new ones only. DiskFullError leaves the old ones.
    """
    with ExitStack() as stack:
        for path, data in reversed(files):  # the stack is left in reversed order: the first file appears first
            file = stack.enter_context(write_atomic(path))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        for path, _ in files:
            path.unlink(missing_ok=True)
