"""Files that are either whole or absent: shards, indexes and checkpoints are written through here."""

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
    """There is no room to write; the message names the folder and the remedy."""


@contextlib.contextmanager
def write_atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` only when all of it is on the disk; until then it is `path`.tmp.

    DiskFullError when the disk, a quota or a file size limit is exhausted; then nothing is left behind.
    """
    part = path.with_name(path.name + ".tmp")
    try:
        with reraise_disk_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def reraise_disk_full(path: Path) -> Iterator[None]:
    """DiskFullError in place of the OSError, when there is no room left to write `path` in."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFullError(
            f"{path} could not be written: {error.strerror}. Make room in {path.parent}, or choose another folder, "
            "and run the same command again: files that are whole are kept"
        ) from error


@contextlib.contextmanager
def exclusive(folder: Path, remedy: str) -> Iterator[None]:
    """Be the only process of this machine that writes into `folder`. ConfigError with `remedy` if another one does.

    The lock (`folder`/.lock) is the system's own: however a process ends, it is free again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            why = f"{folder} is being written by another process: wait until it ends, or {remedy}"
            raise ConfigError(why) from error
        yield


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
