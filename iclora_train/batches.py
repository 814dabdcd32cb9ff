"""Which clips a batch holds, as a pure function of a few numbers, so that resuming needs only the number of the batch.

No Lightning here: the workers of a DataLoader import this module, and should start quickly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from iclora_train.config import require
from iclora_train.pair import LatentPair
from iclora_train.shards import ShardSet

Batch = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchPlan:
    """Batch n of a rank, without end: each epoch is a seeded permutation, cut into batches of one bucket each.

    buckets: sample numbers by bucket. All ranks together consume `batch_size * world_size` clips a step and never share
    one within an epoch; what does not fill such a step is left out of that epoch (of the next, others are).
    """

    buckets: tuple[tuple[int, ...], ...]
    seed: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches of this rank in one epoch."""
        return sum(len(bucket) // (self.batch_size * self.world_size) for bucket in self.buckets)

    def batch(self, n: int) -> list[int]:
        """Sample numbers of batch n."""
        epoch, step = divmod(n, self.steps_per_epoch)
        group = _epoch(self.buckets, self.seed, self.batch_size * self.world_size, epoch)[step]
        return list(group[self.rank :: self.world_size])

    def since(self, n: int) -> BatchesSince:
        """Batches n, n + 1, ... for a DataLoader."""
        return BatchesSince(self, n)


@dataclass(frozen=True)
class BatchesSince:
    """A batch sampler that starts at batch n and never ends."""

    plan: BatchPlan
    n: int

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.plan.batch, count(self.n))


@lru_cache(maxsize=2)
def _epoch(buckets: tuple[tuple[int, ...], ...], seed: int, size: int, epoch: int) -> list[tuple[int, ...]]:
    """Groups of `size` sample numbers of one bucket, in the order of this epoch; the same on every rank."""
    rng = np.random.default_rng((seed, epoch))
    groups = []
    for bucket in buckets:
        mixed = rng.permutation(bucket).tolist()
        groups += [tuple(mixed[i : i + size]) for i in range(0, len(mixed) - size + 1, size)]
    return [groups[i] for i in rng.permutation(len(groups))]


def plan_batches(shards: ShardSet, split: str, seed: int, batch_size: int, rank: int, world_size: int) -> BatchPlan:
    """The plan over one split. ConfigError when no bucket holds enough clips for a single batch."""
    buckets: dict[str, list[int]] = {}
    for i in shards.indices(split):
        buckets.setdefault(shards.samples[i].bucket, []).append(i)
    plan = BatchPlan(tuple(tuple(buckets[b]) for b in sorted(buckets)), seed, batch_size, rank, world_size)
    unused = [name for name in sorted(buckets) if len(buckets[name]) < batch_size * world_size]
    held = ", ".join(f"{name} has {len(buckets[name])}" for name in sorted(buckets)) or f"there are no {split} clips"
    require(
        plan.steps_per_epoch > 0,
        f"data.batch_size={batch_size} on {world_size} rank(s) needs {batch_size * world_size} clips of one size and "
        f"rate, but in {shards.folder} {held}: lower data.batch_size or prepare more windows",
    )
    if unused:
        log.warning("%s: too few clips for a batch, never trained on: %s", shards.folder, ", ".join(unused))
    return plan


def collate(pairs: list[LatentPair]) -> Batch:
    """Latent pairs of one bucket as a batch: target (B,C,f,h,w), references a list of (B,C,f',h',w'), text (B,T,D),
    fps (B,), keys and captions lists of B.
    """
    return {
        "target": torch.stack([pair.target for pair in pairs]),
        "references": [torch.stack(clips) for clips in zip(*(pair.references for pair in pairs), strict=True)],
        "text": torch.stack([pair.text for pair in pairs]),
        "fps": torch.tensor([pair.fps for pair in pairs]),
        "keys": [pair.key for pair in pairs],
        "captions": [pair.caption for pair in pairs],
    }


class LatentSamples(Dataset[LatentPair]):
    """The latent pairs of a shard set by number, for DataLoader."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __getitem__(self, i: int) -> LatentPair:
        return self.shards.read_latents(i)
