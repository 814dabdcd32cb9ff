"""Write shards in a thread, beside the process that makes their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import Empty, Full, Queue
from threading import Event
from typing import Any

from iclora_train.data.shard_sample import Members
from iclora_train.data.shards import ShardWriter

POLL_SECONDS = 0.2  # between two looks for a failure or a stop, while a queue is full or empty

Samples = Iterable[Members] | Future[list[Members]]


class ShardThread:
    """Writes one shard after another from a queue of at most `ahead` entries.

    The errors of the thread are raised by the next call. After `stop` is set the thread leaves no partial file.
    """

    def __init__(self, writer: ShardWriter, ahead: int, stop: Event) -> None:
        self._writer, self._ahead, self._stop = writer, ahead, stop
        self._thread = ThreadPoolExecutor(1)
        self._shards: list[Future[None]] = []
        self._queue: Queue[Samples | None]

    def begin(self, shard: str, advance: Callable[[int], None], finish: Callable[[int], None]) -> None:
        """Begin a shard. advance: called with a number of samples after they are written. finish: called with the
        number of all samples of the shard before it gets its final name."""
        self._queue = Queue(self._ahead)
        self._shards.append(self._thread.submit(self._write, shard, self._queue, advance, finish))

    def add(self, samples: Samples) -> None:
        """The next samples of the shard. Waits while the queue is full."""
        self._put(samples)

    def end(self) -> None:
        """The shard is complete."""
        self._put(None)

    def join(self) -> None:
        """Wait until all shards are written."""
        for future in self._shards:
            future.result()

    def close(self) -> None:
        """End the thread; set `stop` before, unless all shards are complete."""
        self._thread.shutdown(cancel_futures=True)

    def raise_error(self) -> None:
        """Raise the error of the thread, if it has failed."""
        while self._shards and self._shards[0].done():
            self._shards.pop(0).result()

    def _put(self, item: Samples | None) -> None:
        while True:
            self.raise_error()
            try:
                return self._queue.put(item, timeout=POLL_SECONDS)
            except Full:
                continue

    def _write(
        self,
        shard: str,
        queue: Queue[Samples | None],
        advance: Callable[[int], None],
        finish: Callable[[int], None],
    ) -> None:
        def samples() -> Iterator[Members]:
            count = 0
            while (item := self._get(queue)) is not None:
                group = item.result() if isinstance(item, Future) else item
                for sample in group:
                    yield sample
                    count += 1
                    advance(1)
            finish(count)

        self._writer.write(shard, samples())

    def _get(self, queue: Queue[Any]) -> Samples | None:
        while True:
            if self._stop.is_set():
                raise CancelledError
            try:
                item: Samples | None = queue.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            return item
