"""Ends all ranks of a run when one of them fails, with the message of that rank.

A rank that fails does not reach the next collective operation, where the others wait for it: for ever, or until NCCL's
timeout. So every rank has a thread that looks every second into the key-value store of torch.distributed:

    failure   the first rank that failed: its line for the screen, and the exit code
    signal    a signal that a rank has received and passes on (scheduler and user may send it to one rank only)
    alive/N   counted up by rank N; a rank whose count stands still was killed, or hangs with Python's lock held

Rank 0 prints the line. Every rank ends with the exit code of the failed one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch.distributed as dist

from iclora_train.config import ConfigError
from iclora_train.config.endings import TerminatedError, explain_os_error
from iclora_train.core.ranks import Placement

POLL = 1.0  # seconds between two looks into the store
SILENCE = 50  # looks into the store, one a second, after which a rank that does not count up is taken for dead
PRECEDENCE = 2.0  # seconds that a rank waits for the report of one whose message says more
PATIENCE = 15.0  # seconds that a failed rank waits until the others have noticed
# Errors of collective operations. The rank that has them usually did not cause them: another rank has ended.
LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL error", "Broken pipe", "Socket Timeout")


@dataclass(frozen=True)
class Failure:
    """How a rank ended: its number, host, one line for the screen, and the exit code."""

    rank: int
    host: str
    line: str
    code: int

    def __str__(self) -> str:
        return f"error: rank {self.rank} on {self.host}: {self.line}"


class RankMonitor:
    """The monitor of one rank. Created after the process group, whose store it uses over a connection of its own."""

    def __init__(self, place: Placement, recorded_signal: Callable[[], int | None]) -> None:
        self.place, self.recorded_signal = place, recorded_signal
        address = place.main_address, place.main_port
        store = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=30))  # type: ignore[attr-defined]
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives a restart of the ranks
        self.store = dist.PrefixStore(f"iclora_train/{attempt}", store)  # type: ignore[attr-defined]
        self.finished = threading.Event()
        self.ending = threading.Lock()  # held by the thread that ends this process
        self.looks = 0  # looks into the store that were answered
        self.counts: dict[int, tuple[int, int]] = {}  # rank -> its last count, and the looks that have seen it since

    def __enter__(self) -> RankMonitor:
        """Watch the ranks inside the `with`. An exception there is reported to the others.

        On rank 0 the exception is raised again; on another rank, whose line rank 0 prints, it becomes SystemExit.
        """
        for work in (self._watch, self._watch_store):
            threading.Thread(target=work, name=f"rank monitor {work.__name__}", daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is not None:
                failure = self._report(error)
                if self.place.rank > 0:
                    raise SystemExit(failure.code) from None
                if is_lost_connection(error):
                    raise ConfigError(failure.line) from error
        finally:
            self.finished.set()

    def _report(self, error: BaseException) -> Failure:
        """Tell the other ranks about the exception, and wait until they know. Returns the first failure of the run."""
        line, code = ending_of(error)
        lost = is_lost_connection(error)
        if code == 1 and self.place.rank > 0 and not lost:
            traceback.print_exception(error)
        if self.place.rank > 0 or lost:
            self._wait_for_failure(PRECEDENCE)
        self.ending.acquire()  # never released: `_end` may have begun to end this process
        failure = Failure(self.place.rank, socket.gethostname(), line, code)
        with suppress(dist.DistError, RuntimeError):  # the store has ended with rank 0
            failure = self._first_failure(failure)
            self._acknowledge()
            self._wait_for_acknowledgements()
        return failure

    def _first_failure(self, failure: Failure) -> Failure:
        """The failure that the store holds; this one, if there is none yet."""
        first = self.store.compare_set("failure", "", json.dumps(asdict(failure)))
        return Failure(**json.loads(first))

    def _wait_for_failure(self, seconds: float) -> None:
        """Wait until another rank reports. Rank 0 and the rank that caused a lost connection come first."""
        deadline = time.monotonic() + seconds
        with suppress(dist.DistError, RuntimeError):
            while time.monotonic() < deadline and not self.store.check(["failure"]):
                time.sleep(0.1)

    def _acknowledge(self) -> None:
        self.store.add("acknowledged", 1)

    def _wait_for_acknowledgements(self) -> None:
        """Wait until all ranks know. Rank 0, whose process often holds the store, ends last."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.store.add("acknowledged", 0) < self.place.world_size:
            time.sleep(0.1)
        if self.place.rank == 0:
            time.sleep(POLL)

    def _watch(self) -> None:
        """Runs in the thread: look into the store until the run ends."""
        passed_on = False
        try:
            while not self.finished.wait(POLL):
                self.store.add(f"alive/{self.place.rank}", 1)
                self._report_silent_ranks()
                if self.store.check(["failure"]):
                    self._end(Failure(**json.loads(self.store.get("failure"))))
                    return
                number = self.recorded_signal()
                if number is not None:
                    self.store.set("signal", str(int(number)))
                    passed_on = True
                elif not passed_on and self.store.check(["signal"]):
                    passed_on = True
                    os.kill(os.getpid(), int(self.store.get("signal")))
                self.looks += 1
        except (dist.DistError, RuntimeError):
            if not self.finished.wait(PATIENCE):  # the store has ended, and with it the process that holds it
                os._exit(1)

    def _watch_store(self) -> None:
        """Runs in a second thread: end this process when the store no longer answers `_watch`, which waits for it.

        The process that holds the store is suspended, or its node is lost without closing its connections.
        """
        looks, waits = -1, 0
        while not self.finished.wait(POLL):
            waits = waits + 1 if self.looks == looks else 0
            looks = self.looks
            if waits > SILENCE:
                address = f"{self.place.main_address}:{self.place.main_port}"
                line = f"rank 0 at {address} has not answered for {SILENCE * POLL:.0f} s: it, or its node, has stopped"
                print(Failure(self.place.rank, socket.gethostname(), line, 1), file=sys.stderr, flush=True)
                os._exit(1)

    def _report_silent_ranks(self) -> None:
        """Rank 0 watches all ranks, the others watch rank 0.

        A rank that has not begun to count is still starting. Looks are counted, not seconds: a job that a scheduler
        suspends does not look.
        """
        others = range(1, self.place.world_size) if self.place.rank == 0 else [0]
        for rank in others:
            count = self.store.add(f"alive/{rank}", 0)
            last, looks = self.counts.get(rank, (0, 0))
            self.counts[rank] = count, looks + 1 if count == last else 0
            if count and self.counts[rank][1] > SILENCE:
                line = f"no sign of life for {SILENCE * POLL:.0f} s: it was killed (out of memory?), or its node failed"
                failure = Failure(rank, "its node", line, 1)
                self._first_failure(failure)

    def _end(self, failure: Failure) -> None:
        """End this process because the run has failed, unless `_report` is ending it."""
        if not self.ending.acquire(blocking=False):
            return
        with suppress(dist.DistError, RuntimeError):
            self._acknowledge()
        if self.place.rank == 0:
            end = "" if not sys.stderr.isatty() else "\x1b[?25h"  # a progress bar hides the cursor
            print(f"{end}{failure}", file=sys.stderr, flush=True)
            with suppress(dist.DistError, RuntimeError):
                self._wait_for_acknowledgements()
        sys.stdout.flush()
        os._exit(failure.code)


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective operation failed because another rank, or the network, has ended."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in LOST)


def ending_of(error: BaseException) -> tuple[str, int]:
    """One line for the screen and the exit code of an exception that ends a command (as in `config.endings`)."""
    if isinstance(error, ConfigError):
        return str(error), 2
    if isinstance(error, OSError) and error.errno is not None:
        return explain_os_error(error, {}), 2
    if isinstance(error, TerminatedError):
        return f"{error}: the same command continues", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: the same command continues", 128 + signal.SIGINT
    if is_lost_connection(error):
        return "another rank was killed (out of memory?), or the network between the ranks failed", 1
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}", 1
