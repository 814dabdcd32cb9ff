"""Encode pairs and write latent shards, beside the process that makes the pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event, Semaphore
from typing import Protocol

from data_prep.encode_latents import ClipPair
from data_prep.engines.base import CALLS_PER_ENCODER
from data_prep.shard_thread import POLL_SECONDS, ShardThread
from iclora_train.core.types import VideoShape
from iclora_train.data.shard_sample import Members
from iclora_train.data.shards import ShardWriter

WAITING = 1  # batches per encoder that are complete and wait for a thread
SAMPLES_AHEAD = 8  # batches whose latents wait until they are written


class Encoder(Protocol):
    """A LatentEncoder in this process, or the proxy of one in another process."""

    def batch_pixels(self) -> int:
        """See LatentEncoder.pixels."""
        ...

    def encode_batch(self, batch: list[ClipPair]) -> list[Members]:
        """See LatentEncoder.encode_batch. Called from CALLS_PER_ENCODER threads at the same time."""
        ...


class LatentStage:
    """Takes the pairs of one shard after another, and writes its latents.

    A batch holds consecutive pairs of one bucket and one shard. It depends on nothing else, so that neither the speed
    nor the number of workers and encoders changes a latent. Batches are encoded by any idle encoder and written in
    order. At most CALLS_PER_ENCODER + WAITING batches per encoder are in memory; `add` waits for the rest.

    asynchronous: false if every batch is encoded before `add` or `end` returns.
    """

    def __init__(self, encoders: Sequence[Encoder], writer: ShardWriter, stop: Event, asynchronous: bool) -> None:
        self._pixels = min(encoder.batch_pixels() for encoder in encoders)
        self._idle = SimpleQueue[Encoder]()
        for encoder in [*encoders] * CALLS_PER_ENCODER:
            self._idle.put(encoder)
        self._threads = ThreadPoolExecutor(CALLS_PER_ENCODER * len(encoders))
        self._room = Semaphore((CALLS_PER_ENCODER + WAITING) * len(encoders))
        self._asynchronous, self._batch, self._bucket = asynchronous, list[ClipPair](), ""
        self._writer = ShardThread(writer, SAMPLES_AHEAD, stop)

    def begin(self, shard: str, advance: Callable[[int], None], finish: Callable[[int], None]) -> None:
        """Begin a shard; see ShardThread.begin."""
        self._writer.begin(shard, advance, finish)

    def add(self, item: ClipPair) -> None:
        """The next pair of the shard. Raises the error of a batch that failed."""
        frames, height, width = item.pair.target.shape[:3]
        bucket = VideoShape(frames, height, width, item.pair.fps).bucket
        if self._batch and bucket != self._bucket:
            self._flush()
        self._batch.append(item)
        self._bucket = bucket
        if (len(self._batch) + 1) * frames * height * width > self._pixels:
            self._flush()

    def end(self) -> None:
        """The shard is complete."""
        if self._batch:
            self._flush()
        self._writer.end()

    def join(self) -> None:
        """Wait until all shards are written."""
        self._writer.join()

    def close(self) -> None:
        """End the threads; set `stop` before, unless all shards are complete."""
        self._threads.shutdown(cancel_futures=True)
        self._writer.close()

    def _flush(self) -> None:
        """Hand the batch over to the encoders."""
        while not self._room.acquire(timeout=POLL_SECONDS):
            self._writer.raise_error()
        batch, self._batch = self._batch, []
        future = self._threads.submit(self._encode, batch)
        future.add_done_callback(self._encoded)
        self._writer.add(future)
        if not self._asynchronous:
            future.result()

    def _encode(self, batch: list[ClipPair]) -> list[Members]:
        encoder = self._idle.get()
        try:
            return encoder.encode_batch(batch)
        finally:
            self._idle.put(encoder)

    def _encoded(self, _: Future[list[Members]]) -> None:
        self._room.release()
