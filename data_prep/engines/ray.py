"""The one door to Ray (`pip install 'iclora_train[ray]'`): the work of data_prep on one machine or a cluster.

A cluster is found as Ray finds it (RAY_ADDRESS, or the address that `ray start` left); otherwise one is started here.
Clips and data.root must lie under the same paths on every machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from data_prep.engines.base import MAX_ATTEMPTS, Failure, call, unwrap
from iclora_train.config import ConfigError
from iclora_train.data.shard_sample import Members
from iclora_train.data.shards import ShardSet

try:
    import ray
except ModuleNotFoundError as error:
    raise ConfigError("engine=ray needs Ray: pip install 'ray>=2.50', or take engine=local") from error

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E")


class RayEngine:
    """Tasks of a Ray cluster; twice `workers` of them are under way, or twice as many as the cluster has CPUs (0)."""

    asynchronous = True

    def __init__(self, workers: int) -> None:
        self._own = not ray.is_initialized()
        if self._own:
            ray.init(logging_level="error", log_to_driver=False)
        self._ahead = 2 * (workers or max(int(ray.cluster_resources()["CPU"]), 1))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | Failure]:
        """As Engine.map."""
        task = ray.remote(max_retries=MAX_ATTEMPTS - 1)(call)
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(task.remote(function, item))
            if len(waiting) == self._ahead:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())

    def encoders(self, make: Callable[[], E]) -> list[E]:
        """Actors that hold what `make` gives: one for each GPU of the cluster, or one on a CPU."""
        gpus = int(ray.cluster_resources().get("GPU", 0))
        actor = ray.remote(num_gpus=min(gpus, 1), num_cpus=0)(_Holder)
        remote: list[Any] = [_RemoteEncoder(actor.remote(make)) for _ in range(max(gpus, 1))]
        return remote  # each stands in for an E

    def close(self) -> None:
        """Leave the cluster, which ends our tasks and actors there."""
        if self._own:
            ray.shutdown()


def _result(reference: Any) -> Any:
    """The result of a task; Failed when its process died every time."""
    try:
        return unwrap(ray.get(reference))
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        reason = str(error).splitlines()[0]
        return Failure(f"the Ray process that worked on it died, {MAX_ATTEMPTS} times: {reason}")


class _Holder:
    """The actor: an encoder on a machine that may be another one."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._encoder = make()

    def encode_shard(self, pairs: ShardSet, shard: str) -> Iterator[Members]:
        """As LatentEncoder.encode_shard."""
        yield from self._encoder.encode_shard(pairs, shard)


class _RemoteEncoder:
    """Stands in for the encoder that an actor holds."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def encode_shard(self, pairs: ShardSet, shard: str) -> Iterator[Members]:
        """As LatentEncoder.encode_shard; ConfigError when the actor died."""
        try:
            for reference in self._actor.encode_shard.options(num_returns="streaming").remote(pairs, shard):
                yield ray.get(reference)
        except ray.exceptions.RayActorError as error:
            raise ConfigError(
                f"the Ray actor that encoded {shard} died ({str(error).splitlines()[0]}): run the same command again, "
                "shards that are whole are kept"
            ) from error
