"""The Ray engine (`pip install 'iclora_train[ray]'`), on one machine or a cluster; the only file that imports Ray.

Ray finds a cluster by RAY_ADDRESS or the address that `ray start` wrote; otherwise it starts one on this machine.
Clips and data.root must have the same paths on every machine. A node that is lost costs the work that it had not
delivered: it is done again on another node. Ray's own retries are off, because they count the loss of a node like the
death of a process, which may be the fault of the item.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any

from data_prep.engines.base import CALLS_PER_ENCODER, MAX_ATTEMPTS, E, Failure, R, T, Task, call, unwrap
from data_prep.engines.one_core import use_one_core
from iclora_train.config import ConfigError, first_line

if TYPE_CHECKING:  # processes that only run tasks start without torch
    from iclora_train.data.shard_sample import Members

try:
    import ray
except ModuleNotFoundError as error:
    raise ConfigError("engine=ray needs Ray: pip install 'ray>=2.50', or set engine=local") from error

MAX_LOSSES = 8  # nodes that may be lost with an item, or with an encoder of a batch, before it counts as failed
NODE_LOST = (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)
PROCESS_DIED = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)


@dataclass
class _Task(Task):
    """losses: the number of nodes that were lost with the item."""

    losses: int = 0


class RayEngine:
    """Tasks on a Ray cluster: 2 x `workers` of them run or wait at a time; with 0 workers, 2 x the number of CPUs."""

    asynchronous = True

    def __init__(self, workers: int) -> None:
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray reports its use to its makers
            ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
        self._ahead = 2 * (workers or max(int(ray.cluster_resources()["CPU"]), 1))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | Failure]:
        """See Engine.map. Results are fetched when they are ready, so that a node lost later does not cost them."""
        remote = ray.remote(max_retries=0)(_call_on_one_core)
        new_tasks = (_Task(number, item) for number, item in enumerate(items))
        running: dict[Any, _Task] = {}
        results: dict[int, Any] = {}
        for number in count():
            while number not in results:
                for task in islice(new_tasks, self._ahead - len(running) - len(results)):
                    running[remote.remote(function, task.item)] = task
                if not running:
                    return
                ready, _ = ray.wait(list(running))
                for reference in ready:
                    task = running.pop(reference)
                    result = _result(reference, task)
                    if result is None:
                        running[remote.remote(function, task.item)] = task
                    else:
                        results[task.number] = result.value
            yield unwrap(results.pop(number))

    def encoders(self, make: Callable[[], E]) -> list[E]:
        """Encoders in actors that hold the result of `make`: one for each GPU of the cluster, or one on a CPU."""
        actors = _Actors(make)
        remote: list[Any] = [_RemoteEncoder(actors) for _ in range(actors.alive)]
        return remote  # each has the interface of E

    def close(self) -> None:
        """Disconnect from the cluster, which ends our tasks and actors."""
        if self._started_ray:
            ray.shutdown()


def _call_on_one_core(function: Callable[[Any], Any], item: object) -> object:
    """`call` in a worker of Ray, which gives a task one core."""
    use_one_core()
    return call(function, item)


@dataclass(frozen=True)
class _Result:
    value: Any


def _result(reference: Any, task: _Task) -> _Result | None:
    """The reply of a task that has ended, or a Failure if its process died on every attempt. None: do it again."""
    try:
        return _Result(ray.get(reference))
    except PROCESS_DIED as error:
        task.deaths += 1
        times, failed, reason = MAX_ATTEMPTS, task.deaths >= MAX_ATTEMPTS, first_line(error)
    except NODE_LOST as error:
        task.losses += 1
        times, failed, reason = MAX_LOSSES, task.losses >= MAX_LOSSES, first_line(error)
    return _Result(Failure(f"the Ray process that worked on it died, {times} times: {reason}")) if failed else None


class _EncoderActor:
    """An encoder in an actor, possibly on another machine."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._encoder = make()

    def batch_pixels(self) -> int:
        """See LatentEncoder.batch_pixels."""
        return int(self._encoder.batch_pixels())

    def encode_batch(self, batch: list[Any]) -> list[Members]:
        """See LatentEncoder.encode_batch."""
        members: list[Members] = self._encoder.encode_batch(batch)
        return members


class _Actors:
    """The encoder actors: one for each GPU of the cluster, or one on a CPU. CALLS_PER_ENCODER threads use each."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._lock = make, Lock()
        self._idle, self._dead = SimpleQueue[Any](), list[Any]()
        self.alive = max(self._gpus(), 1)
        for _ in range(self.alive):
            self._start()

    def take(self) -> Any:
        """An idle actor. Waits for one."""
        while (actor := self._idle.get()) in self._dead:
            pass
        return actor

    def put(self, actor: Any) -> None:
        """Give an actor back."""
        self._idle.put(actor)

    def replace(self, actor: Any) -> None:
        """Start an actor for one that died. If its GPU was lost with its node, the rest of the actors do its work."""
        with self._lock:
            if actor in self._dead:
                return
            self._dead.append(actor)
            if self.alive <= max(self._gpus(), 1):
                self._start()
            else:
                self.alive -= 1

    @staticmethod
    def _gpus() -> int:
        """GPUs of the nodes that are alive."""
        return int(ray.cluster_resources().get("GPU", 0))

    def _start(self) -> None:
        options: dict[str, Any] = {
            "num_gpus": min(self._gpus(), 1),
            "num_cpus": 0,
            "max_concurrency": CALLS_PER_ENCODER,
        }
        actor = ray.remote(**options)(_EncoderActor).remote(self._make)
        for _ in range(CALLS_PER_ENCODER):
            self.put(actor)


class _RemoteEncoder:
    """Local proxy of an encoder: it uses whichever actor is idle."""

    def __init__(self, actors: _Actors) -> None:
        self._actors = actors

    def batch_pixels(self) -> int:
        """See LatentEncoder.batch_pixels."""
        return int(self._call("batch_pixels"))

    def encode_batch(self, batch: list[Any]) -> list[Members]:
        """See LatentEncoder.encode_batch."""
        members: list[Members] = self._call("encode_batch", batch)
        return members

    def _call(self, method: str, *args: object) -> Any:
        """Call a method of an idle actor; if it dies, of another one. ConfigError if MAX_LOSSES actors died."""
        for losses in count(1):
            actor: Any = self._actors.take()
            try:
                return ray.get(getattr(actor, method).remote(*args))
            except (ray.exceptions.RayActorError, *NODE_LOST) as error:
                self._actors.replace(actor)
                actor = None
                if losses >= MAX_LOSSES:
                    reason = first_line(error)
                    raise ConfigError(
                        f"the Ray actors that encode died, {MAX_LOSSES} times ({reason}): run the same command again, "
                        "finished shards are kept"
                    ) from error
            finally:
                if actor is not None:
                    self._actors.put(actor)
