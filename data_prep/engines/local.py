"""Engines of data_prep on this machine: the process itself, or worker processes; `create_engine` also selects Ray.

With every engine, results come in the order of the items and are identical bit for bit. Messages between our own
processes are pickled by multiprocessing or Ray; files never are.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch

from data_prep.engines import big_messages
from data_prep.engines.base import MAX_ATTEMPTS, E, Engine, Failure, R, T, Task, call, unwrap
from data_prep.engines.one_core import use_one_core
from iclora_train.config import one_of
from iclora_train.config.cpus import available_cpus
from iclora_train.config.endings import SIGNALS

ENGINES = ("local", "ray")
ENDINGS = (signal.SIGINT, *SIGNALS)  # they may reach all processes of a terminal or a job
MOST_BYTES = 4 * 2**30  # of results that wait; then workers get no new items. A pair of 960x544x89 has 280 MB

_CONTEXT = multiprocessing.get_context("forkserver")  # new workers start in milliseconds, without threads or CUDA


def create_engine(name: str, workers: int | None) -> Engine:
    """The engine with that name. `local` with 0 workers is this process. None: as many workers as there are CPUs."""
    one_of("engine", name, ENGINES)
    if name == "ray":
        handler = signal.getsignal(signal.SIGTERM)
        from data_prep.engines.ray import RayEngine  # noqa: PLC0415 (an optional extra)

        engine = RayEngine(workers or 0)
        signal.signal(signal.SIGTERM, handler)  # importing Ray sets one that ends with exit code 15 and no line
        return engine
    workers = available_cpus() if workers is None else workers
    return WorkerEngine(workers) if workers else InProcessEngine()


class InProcessEngine:
    """Runs everything in this process, one item after another."""

    asynchronous = False

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | Failure]:
        """See Engine.map. An item that kills its process kills this one."""
        return map(function, items)

    def encoders(self, make: Callable[[], E]) -> list[E]:
        """See Engine.encoders: one encoder, in this process."""
        return [make()]

    def close(self) -> None:
        """Nothing to stop."""


class _Worker:
    """A process that handles one item after another. It starts with its first item."""

    def __init__(self) -> None:
        self._process: ForkServerProcess | None = None
        self.connection: Connection[Any, Any]

    def submit(self, function: Callable[[Any], Any], item: object) -> None:
        if self._process is None:
            self.connection, worker_end = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_serve, args=(worker_end,), daemon=True)
            earlier = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)  # for the start of Python in the fork server
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
            worker_end.close()
            self._process = process  # only now: Ctrl-C may arrive during the start
        try:
            self.connection.send((function, item))
        except BrokenPipeError:
            return  # the process died earlier; the next read reports it

    def stop(self) -> str:
        """End the process if it is still running. Returns how it ended."""
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


@dataclass
class _Work:
    """The state of one `map`: what the workers do, and the results that the caller has not taken yet."""

    function: Callable[[Any], Any]
    items: Iterator[tuple[int, Any]]
    workers: list[_Worker]
    started: int = 0  # items read so far
    retries: deque[Task] = field(default_factory=deque)
    busy: dict[_Worker, Task] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)  # bytes of the results

    def hand_out(self, number: int) -> None:
        """Give every idle worker an item. number: of the result that the caller needs next."""
        for worker in [worker for worker in self.workers if worker not in self.busy]:
            may_start = self.started < number + 2 * len(self.workers) and sum(self.sizes.values()) < MOST_BYTES
            new = (Task(i, item) for i, item in islice(self.items, int(may_start)))
            task = self.retries.popleft() if self.retries else next(new, None)
            if task is None:
                break
            self.started = max(self.started, task.number + 1)
            self.busy[worker] = task
            worker.submit(self.function, task.item)

    def take(self, number: int) -> Any:
        """A result, which is no longer kept. Raises it if it is a ConfigError, when its turn has come."""
        self.sizes.pop(number, None)
        return unwrap(self.results.pop(number))

    def collect(self, timeout: float | None = None) -> None:
        """Wait until a worker replies (a result) or dies (a retry, or a Failure); at most `timeout` seconds."""
        ready = wait([worker.connection for worker in self.busy], timeout)
        for worker in [worker for worker in self.busy if worker.connection in ready]:
            task = self.busy[worker]
            try:
                self.results[task.number], self.sizes[task.number] = big_messages.receive(worker.connection)
            except (EOFError, OSError):
                task.deaths += 1
                ending = worker.stop()
                if task.deaths < MAX_ATTEMPTS:
                    self.retries.append(task)
                else:
                    reason = f"the process that worked on it {ending}, {MAX_ATTEMPTS} times"
                    self.results[task.number] = Failure(reason)
            del self.busy[worker]


class WorkerEngine:
    """Worker processes on this machine. A worker that dies is replaced; only its current item is lost."""

    asynchronous = True

    def __init__(self, workers: int) -> None:
        _CONTEXT.set_forkserver_preload(["data_prep.write_shards"])
        self._workers = [_Worker() for _ in range(workers)]

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | Failure]:
        """See Engine.map. The workers begin at once.

        Up to two items per worker are read ahead, until results of MOST_BYTES wait.
        """
        work = _Work(function, enumerate(items), self._workers)
        results = self._results(work)
        next(results)
        return results

    @staticmethod
    def _results(work: _Work) -> Iterator[Any]:
        """None once the workers have begun, then the results in order. Ends busy workers when the caller stops."""
        try:
            work.hand_out(0)
            yield None
            for number in count():
                work.hand_out(number)
                while number not in work.results:
                    if not work.busy:
                        return
                    work.collect()
                    work.hand_out(number)
                if work.busy:
                    work.collect(timeout=0)
                    work.hand_out(number)  # the workers go on while the caller uses the result
                yield work.take(number)
        finally:
            for worker in work.busy:
                if worker.started:
                    worker.stop()

    def encoders(self, make: Callable[[], E]) -> list[E]:
        """One encoder for each GPU, in this process: they encode while the workers decode and make references."""
        encoders = []
        for gpu in range(torch.cuda.device_count()):
            with torch.cuda.device(gpu):
                encoders.append(make())
        return encoders or [make()]

    def close(self) -> None:
        """Stop all workers."""
        for worker in self._workers:
            if worker.started:
                worker.stop()


def _serve(connection: Connection[Any, Any]) -> None:
    """Main loop of a worker: handle items until the pipe closes.

    ENDINGS are left to the parent, which ends its workers by SIGTERM.
    """
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removes temporary files
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)  # the worker was started with them blocked
    use_one_core()
    while True:
        try:
            big_messages.send(connection, call(*connection.recv()))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
