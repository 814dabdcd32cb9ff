"""Pair shards become latent shards: the VAE runs once, not at every step of a training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from data_prep.texts import Texts
from iclora_train.ltx2.base import Base
from iclora_train.members import Members, latent_members
from iclora_train.pair import LatentPair, Pair, VideoShape
from iclora_train.shards import Sample, ShardSet

PIXELS = 2**22  # frames x height x width that the VAE encodes at once, about; small clips share a batch


class Encoder:
    """The base's VAE on the GPU, if there is one, and the text features that were made before."""

    def __init__(self, base: Base, texts: Texts) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vae, self.texts = base.vae().to(self.device), texts

    @torch.inference_mode()
    def encode(self, pairs: list[Pair]) -> list[LatentPair]:
        """Pairs of one size as latent pairs."""
        target = self._latents([pair.target for pair in pairs])
        columns = zip(*(pair.references for pair in pairs), strict=True)
        references = [self._latents(list(column)) for column in columns]
        return [
            LatentPair(pair.key, latent, tuple(others), self.texts.read(pair.caption), pair.fps, pair.caption)
            for pair, latent, *others in zip(pairs, target, *references, strict=True)
        ]

    def _latents(self, clips: list[np.ndarray]) -> Tensor:
        """uint8 clips (F,H,W,3) -> latents (B,C,f,h,w)."""
        video = torch.from_numpy(np.stack(clips)).to(self.device)  # (B,F,H,W,3)
        return self.vae.encode(video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)


def encode_shard(pairs: ShardSet, shard: str, encoder: Encoder) -> Iterator[Members]:
    """The samples of one pair shard as latents, in their order."""
    numbered = ((s, pairs.read_pair(i)) for i, s in enumerate(pairs.samples) if s.shard == shard)
    for batch in _batches(numbered):
        latents = encoder.encode([pair for _, pair in batch])
        for (sample, pair), latent in zip(batch, latents, strict=True):
            frames, height, width = pair.target.shape[:3]
            shape = VideoShape(frames, height, width, pair.fps)
            yield latent_members(latent, shape, sample.source, pair.record)


def _batches(pairs: Iterable[tuple[Sample, Pair]]) -> Iterator[list[tuple[Sample, Pair]]]:
    """Consecutive pairs of one size, up to about PIXELS pixels of target together."""
    batch: list[tuple[Sample, Pair]] = []
    for sample, pair in pairs:
        full = batch and (len(batch) + 1) * pair.target[..., 0].size > PIXELS
        if batch and (full or batch[0][1].target.shape != pair.target.shape):
            yield batch
            batch = []
        batch.append((sample, pair))
    yield batch
