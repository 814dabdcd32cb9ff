"""The Ray engine (`pip install 'iclora_train[ray]'`), on one machine or a cluster; the only file that imports Ray.

Ray finds a cluster by RAY_ADDRESS or the address that `ray start` wrote; otherwise it starts one on this machine.
Clips and data.root must have the same paths on every machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_prep.engines.base import MAX_ATTEMPTS, E, Failure, R, T, call, unwrap
from iclora_train.config import ConfigError
from iclora_train.data.shard_sample import Members
from iclora_train.data.shards import ShardSet

try:
    import ray
except ModuleNotFoundError as error:
    raise ConfigError("engine=ray needs Ray: pip install 'ray>=2.50', or set engine=local") from error


class RayEngine:
    """Tasks on a Ray cluster: 2 x `workers` of them run or wait at a time; with 0 workers, 2 x the number of CPUs."""

    asynchronous = True

    def __init__(self, workers: int) -> None:
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            ray.init(logging_level="error", log_to_driver=False)
        self._ahead = 2 * (workers or max(int(ray.cluster_resources()["CPU"]), 1))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | Failure]:
        """See Engine.map."""
        task = ray.remote(max_retries=MAX_ATTEMPTS - 1)(call)
        pending: deque[Any] = deque()
        for item in items:
            pending.append(task.remote(function, item))
            if len(pending) == self._ahead:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())

    def encoders(self, make: Callable[[], E]) -> list[E]:
        """Actors that hold the result of `make`: one for each GPU of the cluster, or one on a CPU."""
        gpus = int(ray.cluster_resources().get("GPU", 0))
        actor = ray.remote(num_gpus=min(gpus, 1), num_cpus=0)(_EncoderActor)
        remote: list[Any] = [_RemoteEncoder(actor.remote(make)) for _ in range(max(gpus, 1))]
        return remote  # each has the interface of E

    def close(self) -> None:
        """Disconnect from the cluster, which ends our tasks and actors."""
        if self._started_ray:
            ray.shutdown()


def _result(reference: Any) -> Any:
    """The result of a task, or a Failure if its process died on every attempt."""
    try:
        return unwrap(ray.get(reference))
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        reason = str(error).splitlines()[0]
        return Failure(f"the Ray process that worked on it died, {MAX_ATTEMPTS} times: {reason}")


class _EncoderActor:
    """An encoder in an actor, possibly on another machine."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._encoder = make()

    def encode_shard(self, pairs: ShardSet, shard: str) -> Iterator[Members]:
        """See LatentEncoder.encode_shard."""
        yield from self._encoder.encode_shard(pairs, shard)


class _RemoteEncoder:
    """Local proxy of the encoder in an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def encode_shard(self, pairs: ShardSet, shard: str) -> Iterator[Members]:
        """See LatentEncoder.encode_shard. ConfigError if the actor died."""
        try:
            for reference in self._actor.encode_shard.options(num_returns="streaming").remote(pairs, shard):
                yield ray.get(reference)
        except ray.exceptions.RayActorError as error:
            raise ConfigError(
                f"the Ray actor that encoded {shard} died ({str(error).splitlines()[0]}): run the same command again, "
                "finished shards are kept"
            ) from error
