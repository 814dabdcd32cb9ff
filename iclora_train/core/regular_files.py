"""Open files that a user names. Pipes and devices are refused: they could block for ever or never end."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. OSError if the path leads to anything else; `strerror` says what it is."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # without O_NONBLOCK a pipe waits for a writer
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        raise OSError(errno.EINVAL, f"{_KINDS.get(kind, 'a special file')}, not a file", str(path))
    return open(handle, "rb")


def read_regular(path: Path) -> bytes:
    """The content of a regular file. OSError as in `open_regular`."""
    with open_regular(path) as file:
        return file.read()
