"""Encode pair shards to latent shards, so that the VAE runs once and not in every training step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iclora_train.config import ConfigError, Model
from iclora_train.core.device import default_device
from iclora_train.core.types import LatentPair, Pair, VideoShape
from iclora_train.data.shard_sample import Members, pack_latents
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.ltx2.text_features import TextFeatures
from iclora_train.media.pixels import from_uint8

CPU_BATCH_PIXELS = 2**22  # approximate frames x height x width of a batch on a CPU; small clips share a batch
READER_THREADS = 4  # threads that decode the next batch while one is encoded (decoders release the GIL)


class LatentEncoder:
    """The VAE of the base model, on the GPU if there is one, with the cached text features.

    pixels: approximate frames x height x width of targets per batch. It is halved when a GPU runs out of memory.
    """

    def __init__(self, base: BaseModel, texts: TextFeatures) -> None:
        self.device = default_device()
        self.vae, self.texts = base.vae().to(self.device), texts
        self.pixels = CPU_BATCH_PIXELS if self.device.type == "cpu" else self.vae.max_pixels

    @classmethod
    def open(cls, model: Model, root: Path) -> LatentEncoder:
        """Open the base model and the text features in data.root, also in a process on another machine."""
        base = open_base(model)
        return cls(base, TextFeatures(root, base))

    def encode(self, pairs: list[Pair]) -> list[LatentPair]:
        """Encode pairs of one size. ConfigError if a single pair does not fit into GPU memory."""
        try:
            return self._encode(pairs)
        except torch.OutOfMemoryError as error:
            frames, height, width = pairs[0].target.shape[:3]
            if len(pairs) == 1:
                raise ConfigError(
                    f"the GPU has no memory to encode one clip of {width}x{height}x{frames}: stop other programs, "
                    "or lower data.frames, data.height, data.width"
                ) from error
        torch.cuda.empty_cache()  # after `except`: inside it, the traceback would still hold the tensors of the batch
        half = len(pairs) // 2
        self.pixels = half * frames * height * width
        return self.encode(pairs[:half]) + self.encode(pairs[half:])

    @torch.inference_mode()
    def _encode(self, pairs: list[Pair]) -> list[LatentPair]:
        targets = self._latents([pair.target for pair in pairs])
        columns = zip(*(pair.references for pair in pairs), strict=True)
        references = [self._latents(list(column)) for column in columns]
        return [
            LatentPair(
                pair.key, latent, tuple(reference_latents), self.texts.read(pair.caption), pair.fps, pair.caption
            )
            for pair, latent, *reference_latents in zip(pairs, targets, *references, strict=True)
        ]

    def _latents(self, clips: list[np.ndarray]) -> Tensor:
        """uint8 clips (F,H,W,3) -> latents (B,C,f,h,w)."""
        video = torch.from_numpy(np.stack(clips))  # (B,F,H,W,3)
        if self.device.type == "cuda":
            video = video.pin_memory().to(self.device, non_blocking=True)
        return self.vae.encode(from_uint8(video))

    def encode_shard(self, pairs: ShardSet, shard: str) -> Iterator[Members]:
        """Latent samples of one pair shard, in order. The next batch is read while one is encoded."""
        with ThreadPoolExecutor(READER_THREADS) as readers:
            ahead: deque[tuple[list[int], list[Future[Pair]]]] = deque()
            for batch in self._batches(pairs, shard):
                ahead.append((batch, [readers.submit(pairs.read_pair, i) for i in batch]))
                if len(ahead) > 1:
                    yield from self._members(pairs, *ahead.popleft())
            for batch, reading in ahead:
                yield from self._members(pairs, batch, reading)

    def _batches(self, pairs: ShardSet, shard: str) -> Iterator[list[int]]:
        """Indices of consecutive samples of one bucket, with up to about `pixels` of target per batch."""
        batch: list[int] = []
        for i, sample in enumerate(pairs.samples):
            if sample.shard != shard:
                continue
            pixels = int(np.prod([int(length) for length in sample.bucket.split("x")]))
            full = (len(batch) + 1) * pixels > self.pixels
            if batch and (full or pairs.samples[batch[0]].bucket != sample.bucket):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _members(self, pairs: ShardSet, batch: list[int], reading: list[Future[Pair]]) -> Iterator[Members]:
        decoded = [future.result() for future in reading]
        for i, pair, latent in zip(batch, decoded, self.encode(decoded), strict=True):
            frames, height, width = pair.target.shape[:3]
            shape = VideoShape(frames, height, width, pair.fps)
            yield pack_latents(latent, shape, pairs.samples[i].source, pair.record)
