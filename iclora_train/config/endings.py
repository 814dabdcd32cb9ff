"""How a command ends: one line and an exit code, whatever stopped it.

    a wrong setting or file (ConfigError)              error: ...                              2
    no permission, full disk, too many open files ...  error: ... with the setting to change   2
    Ctrl-C (SIGINT)                                    interrupted: ...                        130
    SIGTERM, SIGHUP, SIGUSR1, SIGUSR2                  terminated: ...                         143, 129, 138, 140
    the reader of the output has ended (`| head`)      no line                                 141

All commands run inside `one_line_ending`. While it trains, `iclora_train` ends at a step boundary instead
(`training.preemption`). No torch import.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import getpass
import io
import locale
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from iclora_train.config.errors import ConfigError

Remedies = dict[str, str]  # folder -> what to set, e.g. {"runs": "runs_dir=<folder>"}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class TerminatedError(KeyboardInterrupt):
    """One of SIGNALS. All code that ends cleanly at Ctrl-C ends in the same way at these signals."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StoppedError(TerminatedError):
    """Training has ended at a step boundary because of a signal, on all ranks together.

    line: for the screen, instead of that of `one_line_ending`; None on all ranks but the first.
    """

    def __init__(self, number: int, line: str | None) -> None:
        super().__init__(number)
        self.line = line


@contextlib.contextmanager
def one_line_ending(resume: str, remedies: Callable[[], Remedies] = dict) -> Iterator[None]:
    """Run a command: errors and signals end it with one line on stderr and an exit code (see the module).

    resume: the end of the line after a signal, e.g. `the same command continues from the last checkpoint`. remedies:
    the settings that choose folders, asked when a file cannot be written.
    """
    _prepare_process()
    with _signals_raise():
        try:
            yield
        except ConfigError as error:
            _end(f"error: {error}", 2)
        except BrokenPipeError:
            _end(None, 128 + signal.SIGPIPE)
        except OSError as error:
            _end(f"error: {explain_os_error(error, remedies())}", 2)
        except StoppedError as stop:
            _ignore_signals()
            _end(stop.line, stop.exit_code)
        except KeyboardInterrupt as interrupt:
            _die_at_next_ctrl_c()
            terminated = isinstance(interrupt, TerminatedError)
            code = interrupt.exit_code if isinstance(interrupt, TerminatedError) else 128 + signal.SIGINT
            _end(f"{'terminated' if terminated else 'interrupted'}: {resume}", code)


@contextlib.contextmanager
def exit_at_signal(line: str | None) -> Iterator[None]:
    """Inside the `with`, a signal ends the process at once, with the line and the exit code of `one_line_ending`.

    For work that must not be left by an exception, and leaves nothing to clean up: an import (torch imports NumPy and
    drops a KeyboardInterrupt, after which NumPy is half imported), or a wait in C++, where no handler of Python runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in (signal.SIGINT, *SIGNALS) if callable(signal.getsignal(number))]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # `set_wakeup_fd` requires it

    def end() -> None:
        while number := os.read(reading, 1)[0]:  # 0: the `with` has ended
            if number in numbers:
                if line is not None:
                    word = "interrupted" if number == signal.SIGINT else "terminated"
                    print(f"{word}: {line}", file=sys.stderr, flush=True)
                os._exit(128 + number)

    thread = threading.Thread(target=end, name="exit_at_signal", daemon=True)
    thread.start()
    former_fd = signal.set_wakeup_fd(writing)  # the thread gets the number of each signal that has a handler
    former = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former_fd)
        os.write(writing, b"\0")
        thread.join()
        os.close(reading)
        os.close(writing)


def explain_os_error(error: OSError, remedies: Remedies) -> str:
    """The error in one line: the file, what the system says, and what to set."""
    reason = error.strerror or str(error)
    path = error.filename2 or error.filename
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{reason}: raise the limit with `ulimit -n 4096`, or set data.workers=0"
    if not isinstance(path, str | bytes | os.PathLike):
        return f"{reason}: make room" if error.errno in FULL else reason
    name = os.fsdecode(path)
    remedy = _remedy(Path(name), remedies)
    if error.errno in FULL:
        return f"{name}: {reason}. Make room, or set {remedy or 'another folder'}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and remedy:
        return f"{name}: {reason}. Set {remedy}, where you can write"
    return f"{name}: {reason}"


def _remedy(path: Path, remedies: Remedies) -> str | None:
    """What to set so that a file lies elsewhere. The setting of the innermost folder counts."""
    folders = {**{"/dev/shm": "data.workers=0"}, **remedies}
    home = os.path.expanduser("~")
    if home != "~":
        folders.setdefault(home, "HOME=<folder>")
    with contextlib.suppress(OSError):  # no temporary folder can be written
        folders.setdefault(tempfile.gettempdir(), "TMPDIR=<folder>")
    target = Path(os.path.abspath(path))
    holders = [folder for folder in folders if target.is_relative_to(os.path.abspath(os.path.expanduser(folder)))]
    return folders[max(holders, key=lambda folder: len(os.path.abspath(folder)))] if holders else None


def _prepare_process() -> None:
    """What a terminal, a container or an odd locale may lack: files are read as UTF-8, every character can be printed,
    and the user has a name (PyTorch's compiler and W&B ask for one)."""
    if not sys.flags.utf8_mode and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container that runs as a number without an entry in /etc/passwd
        os.environ["USER"] = f"uid{os.getuid()}"


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Inside the `with`, the first of SIGNALS raises TerminatedError, unless it is ignored (`nohup`) or handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _raise_terminated)
    try:
        yield
    finally:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    _ignore_signals()
    raise TerminatedError(number)


def _ignore_signals() -> None:
    """Ignore further signals until the process has ended: schedulers and launchers repeat them, and srun sends SIGTERM
    to the other tasks when the first one has ended. They must change neither the ending nor the exit code."""
    for number in SIGNALS:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)


def _die_at_next_ctrl_c() -> None:
    """A second Ctrl-C ends the process at once, whatever it is waiting for."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(line: str | None, code: int) -> NoReturn:
    """Print the line and exit. A stdout that nobody reads is replaced, so that Python's exit does not fail on it."""
    try:
        if line is not None:
            print(line, file=sys.stderr)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(code) from None
