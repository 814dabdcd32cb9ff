"""Signals during training: they are recorded, so that training can end at a step boundary with a checkpoint.

    start_recording()        # from now on a signal is recorded and raises nothing
    recorded_signal()        # the first signal, or None
    unless_stopped(validate) # the result of long work; None, at once, when a signal arrives
    stop_recording()         # signals raise again, as `config.endings` describes; a recorded one does so now
    forget_signal()          # the same after an error, which a recorded signal must not hide

A second Ctrl-C ends the process at once. A scheduler may send another signal twice, so the second one is ignored.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from iclora_train.config.endings import SIGNALS

T = TypeVar("T")
ONE_KEYPRESS = 1.0  # seconds in which one Ctrl-C may arrive several times: from the terminal, srun, a parent process


class _WorkInterrupted(BaseException):
    """Raised by the signal handler to leave the work of `unless_stopped`."""


class _Recorder:
    """The signal handler, and what it has recorded in this process."""

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}  # the handlers before `start`, by signal
        self.number: int | None = None
        self.recorded_at = 0.0
        self.interruptible = False

    def start(self) -> None:
        """Signals that are ignored (`nohup`) stay ignored."""
        self.number = None
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, *SIGNALS):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self.handlers[number] = signal.signal(number, self._record)

    def stop(self) -> None:
        recorded = self.reset()
        if recorded is not None:
            signal.raise_signal(recorded)

    def reset(self) -> int | None:
        """Put the former handlers back and forget the recorded signal, which is returned."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers.clear()
        recorded, self.number = self.number, None
        return recorded

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self.recorded_at = number, time.monotonic()
            if self.interruptible:
                raise _WorkInterrupted
        elif number == self.number == signal.SIGINT and time.monotonic() - self.recorded_at > ONE_KEYPRESS:
            self.reset()
            raise KeyboardInterrupt

    def unless_stopped(self, work: Callable[[], T]) -> T | None:
        try:
            self.interruptible = True
            try:
                return work() if self.number is None else None
            finally:
                self.interruptible = False
        except _WorkInterrupted:  # raised once, at most: the handler raises for the first signal only
            self.interruptible = False
            return None


_recorder = _Recorder()
start_recording, stop_recording, forget_signal = _recorder.start, _recorder.stop, _recorder.reset


def unless_stopped(work: Callable[[], T]) -> T | None:
    """The result of `work`; None if a signal is recorded before its end.

    The work is left wherever it is: state that the process still needs is to be restored outside of it.
    """
    return _recorder.unless_stopped(work)


def recorded_signal() -> int | None:
    """The first signal since `start_recording`. None: there was none, or signals are not recorded."""
    return _recorder.number
