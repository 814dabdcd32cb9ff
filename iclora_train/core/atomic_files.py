"""Write files that are complete or absent (shards, indexes, checkpoints), and lock a folder for one process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from iclora_train.config import ConfigError


class DiskFullError(ConfigError):
    """The disk is full. The message names the folder and the remedy."""


@contextlib.contextmanager
def write_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that appears as `path` only when it is completely on disk; until then its name is `path`.tmp.

    DiskFullError when the disk, a quota or a file size limit is exhausted. The temporary file is always removed.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with reraise_disk_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def reraise_disk_full(path: Path) -> Iterator[None]:
    """Raise DiskFullError instead of the OSError of a full disk while `path` is written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFullError(
            f"{path} could not be written: {error.strerror}. Make room in {path.parent}, or choose another folder, "
            "and run the same command again: complete files are kept"
        ) from error


@contextlib.contextmanager
def exclusive(folder: Path, remedy: str) -> Iterator[None]:
    """Be the only process on this machine that writes to `folder`. ConfigError with `remedy` if another one does.

    The lock is a flock on `folder`/.lock. The system releases it however the process ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{folder} is being written by another process: wait until it ends, or {remedy}"
            raise ConfigError(message) from error
        yield


def _sync_folder(folder: Path) -> None:
    """Write the renames in `folder` to disk, so that they survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
