"""Who does the work of data_prep: this process, processes beside it (`engine=local`), or Ray (`engine=ray`).

Whoever does it, results come in the order of the items and are the same bit for bit. What goes between our own
processes is pickled by multiprocessing or Ray; files never are.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

import cv2

from data_prep.engines.base import MAX_ATTEMPTS, E, Engine, Failure, R, T, call, unwrap
from iclora_train.config import one_of

ENGINES = ("local", "ray")

_CONTEXT = multiprocessing.get_context("forkserver")  # a new worker starts in milliseconds, without threads or CUDA


def create_engine(name: str, workers: int) -> Engine:
    """The engine of that name; `local` with 0 workers is this process."""
    one_of("engine", name, ENGINES)
    if name == "ray":
        from data_prep.engines.ray import RayEngine  # noqa: PLC0415 (an optional extra)

        return RayEngine(workers)
    return WorkerEngine(workers) if workers else InProcessEngine()


class InProcessEngine:
    """This process does everything, one item after the other."""

    asynchronous = False

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | Failure]:
        """As Engine.map; an item that kills its process kills this one."""
        return map(function, items)

    def encoders(self, make: Callable[[], E]) -> list[E]:
        """One."""
        return [make()]

    def close(self) -> None:
        """There is nothing to stop."""


@dataclass
class _Task:
    """An item under its number, and how often somebody died of it."""

    number: int
    item: Any
    deaths: int = 0


class _Worker:
    """A process that answers one item after the other; it is started when it is given one."""

    def __init__(self) -> None:
        self._process: ForkServerProcess | None = None
        self.connection: Connection[Any, Any]

    def submit(self, function: Callable[[Any], Any], item: object) -> None:
        if self._process is None:
            self.connection, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._process = process  # not before: Ctrl-C may come while it starts
        try:
            self.connection.send((function, item))
        except BrokenPipeError:
            return  # it died before: reading from it will tell

    def stop(self) -> str:
        """End the process, if it has not ended by itself; how it ended."""
        assert self._process is not None
        self._process.terminate()
        self._process.join(5)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code, self._process = self._process.exitcode, None
        self.connection.close()
        assert code is not None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    @property
    def started(self) -> bool:
        return self._process is not None


class WorkerEngine:
    """Processes of this machine. One that dies is replaced, and only what it was working on is lost."""

    asynchronous = True

    def __init__(self, workers: int) -> None:
        _CONTEXT.set_forkserver_preload(["data_prep.write_shards"])
        self._workers = [_Worker() for _ in range(workers)]

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | Failure]:
        """As Engine.map, twice as many items ahead as there are workers."""
        fresh = (_Task(number, item) for number, item in enumerate(items))
        again: deque[_Task] = deque()
        busy: dict[_Worker, _Task] = {}
        results: dict[int, R | Failure] = {}
        taken = 0
        try:
            for wanted in count():
                while wanted not in results:
                    for worker in [worker for worker in self._workers if worker not in busy]:
                        room = wanted + 2 * len(self._workers) - taken
                        task = again.popleft() if again else next(islice(fresh, max(min(room, 1), 0)), None)
                        if task is None:
                            break
                        taken = max(taken, task.number + 1)
                        busy[worker] = task
                        worker.submit(function, task.item)
                    if not busy:
                        return
                    self._collect(busy, again, results)
                yield results.pop(wanted)
        finally:
            for worker in busy:
                if worker.started:
                    worker.stop()

    @staticmethod
    def _collect(busy: dict[_Worker, _Task], again: deque[_Task], results: dict[int, Any]) -> None:
        """Wait for an answer or a death: a result, or another try."""
        ready = wait([worker.connection for worker in busy])
        for worker in [worker for worker in busy if worker.connection in ready]:
            task = busy[worker]
            try:
                results[task.number] = unwrap(worker.connection.recv())
            except (EOFError, OSError):
                task.deaths += 1
                end = worker.stop()
                if task.deaths < MAX_ATTEMPTS:
                    again.append(task)
                else:
                    results[task.number] = Failure(f"the process that worked on it {end}, {MAX_ATTEMPTS} times")
            del busy[worker]

    def encoders(self, make: Callable[[], E]) -> list[E]:
        """One, in this process: the GPU works while the others decode and draw."""
        return [make()]

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            if worker.started:
                worker.stop()


def _serve(connection: Connection[Any, Any]) -> None:
    """Answer what comes until the other end is gone. Ctrl-C is for the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves no temporary files
    cv2.setNumThreads(1)  # there are as many workers as the user wants busy cores
    while True:
        try:
            connection.send(call(*connection.recv()))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
