"""Write files that are complete or absent (shards, indexes, checkpoints), and lock a folder for one process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from iclora_train.config import ConfigError
from iclora_train.core.regular_files import open_regular

NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # errors of file systems without flock


class LockedFolderError(ConfigError):
    """Another process writes to the folder."""


class DiskFullError(ConfigError):
    """The disk is full. The message names the folder and the remedy."""


@contextlib.contextmanager
def write_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that appears as `path` only when it is completely on disk; until then its name is `path`.tmp.

    Of several writers at the same time each writes a file of its own, and the last one to finish gives `path`.
    DiskFullError when the disk, a quota or a file size limit is exhausted. The temporary file is always removed.
    """
    with reraise_disk_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as on_failure:
            temporary, file = _open_temporary(path, on_failure)
            with file:  # its lock is held until the file has its final name
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
                on_failure.pop_all()
        _sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    with write_atomic(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def _open_temporary(path: Path, on_failure: contextlib.ExitStack) -> tuple[Path, IO[bytes]]:
    """`path`.tmp, empty and locked. A file with another name if another writer has locked it.

    `on_failure` removes it; this is arranged before it is opened, because a signal may end the process at any time.
    """
    temporary = path.with_name(path.name + ".tmp")
    on_failure.callback(temporary.unlink, missing_ok=True)
    while True:
        file = os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another writer, or a file system without locks
            on_failure.pop_all()
            file.close()
            temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
            on_failure.callback(temporary.unlink, missing_ok=True)
            return temporary, temporary.open("xb")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), temporary.stat()):
                file.truncate(0)  # what a killed process left
                return temporary, file
        file.close()  # its writer has finished since it was opened


@contextlib.contextmanager
def reraise_disk_full(path: Path) -> Iterator[None]:
    """Raise DiskFullError instead of the OSError of a full disk while `path` is written.

    The disk of a temporary file that is written meanwhile may be the full one; then the message names TMPDIR.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        full = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        temporary = Path(tempfile.gettempdir())
        elsewhere = temporary in full.parents and path.parent not in full.parents
        other = "set TMPDIR=<folder>" if elsewhere or full.parent == temporary else "choose another folder"
        raise DiskFullError(
            f"{full} could not be written: {error.strerror}. Make room in {full.parent}, or {other}, "
            "and run the same command again: complete files are kept"
        ) from error


@contextlib.contextmanager
def exclusive(folder: Path, remedy: str) -> Iterator[None]:
    """Be the only process that writes to `folder`. LockedFolderError with `remedy` if another one does.

    The lock is a flock on `folder`/.lock. The system releases it however the process ends. A file system without flock
    (Lustre mounted without `flock`, some FUSE and NFS mounts) is used without a lock, with a warning.
    """
    with _lock_file(folder) as file:
        try:
            _flock_or_warn(folder, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{folder} is being written by another process: wait until it ends, or {remedy}"
            raise LockedFolderError(message) from error
        yield


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Be one of several processes that write different files to `folder`, while none has it by `exclusive`.

    Waits for such a process, with a line on stdout.
    """
    with _lock_file(folder) as file:
        try:
            _flock_or_warn(folder, file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that writes {folder}", flush=True)
            _flock_or_warn(folder, file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Yields whether this process has the lock on `path`, a file of its own. It is removed at the end.

    The system releases the lock however the process ends. On a file system without flock every process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def seen_alive(path: Path) -> Iterator[None]:
    """Let other processes see by `is_alive` that this one is in the block. The system ends that with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _flock(file, fcntl.LOCK_EX)  # waits at most while another process looks
        yield


def is_alive(path: Path) -> bool:
    """Whether a process is in `seen_alive` with this path. Never on a file system without flock."""
    if not path.exists():
        return False
    with path.open("a+") as file:
        try:
            _flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock_file(folder: Path) -> IO[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / ".lock").open("a+")  # NFS locks need a file that is open for reading and writing


def _flock(file: IO[str], operation: int) -> str | None:
    """flock; on a file system without it, nothing, and the reason. BlockingIOError if another process has the lock."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return error.strerror
    return None


def _flock_or_warn(folder: Path, file: IO[str], operation: int) -> None:
    """`_flock`, with a warning if the file system of `folder` has none."""
    reason = _flock(file, operation)
    if reason is not None:
        print(
            f"warning: the file system of {folder} has no locks ({reason}): start only one command there",
            file=sys.stderr,
        )


def _sync_folder(folder: Path) -> None:
    """Write the renames in `folder` to disk, so that they survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file. OSError if it is not a regular file (`open_regular`)."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
