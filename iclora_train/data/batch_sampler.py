"""Which clips a batch holds, as a pure function of a few numbers, so that resuming needs only the number of the batch.

No Lightning here: the workers of a DataLoader import this module, and should start quickly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from torch.utils.data import Dataset

from iclora_train.config import require
from iclora_train.core.types import LatentPair
from iclora_train.data.shards import ShardSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchPlan:
    """Batch n of a rank, without end: each epoch is a seeded permutation, cut into batches of one bucket each.

    buckets: sample numbers by bucket; sizes: clips of a batch of each. In a step all ranks have batches of one bucket,
    `size * world_size` clips together, and never share one within an epoch; what does not fill such a step is left
    out of that epoch (of the next, others are).
    """

    buckets: tuple[tuple[int, ...], ...]
    seed: int
    sizes: tuple[int, ...]
    rank: int = 0
    world_size: int = 1

    @property
    def groups(self) -> tuple[int, ...]:
        """Clips that all ranks together consume in a step, by bucket."""
        return tuple(size * self.world_size for size in self.sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of this rank in one epoch."""
        return sum(len(bucket) // size for bucket, size in zip(self.buckets, self.groups, strict=True))

    def batch(self, n: int) -> list[int]:
        """Sample numbers of batch n."""
        epoch, step = divmod(n, self.steps_per_epoch)
        group = _epoch(self.buckets, self.seed, self.groups, epoch)[step]
        return list(group[self.rank :: self.world_size])

    def batches_from(self, n: int) -> BatchSampler:
        """Batches n, n + 1, ... for a DataLoader."""
        return BatchSampler(self, n)


@dataclass(frozen=True)
class BatchSampler:
    """A batch sampler that starts at batch n and never ends."""

    plan: BatchPlan
    n: int

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.plan.batch, count(self.n))


@lru_cache(maxsize=2)
def _epoch(
    buckets: tuple[tuple[int, ...], ...], seed: int, sizes: tuple[int, ...], epoch: int
) -> list[tuple[int, ...]]:
    """Groups of sample numbers of one bucket (of its size), in the order of this epoch; the same on every rank."""
    rng = np.random.default_rng((seed, epoch))
    groups = []
    for bucket, size in zip(buckets, sizes, strict=True):
        mixed = rng.permutation(bucket).tolist()
        groups += [tuple(mixed[i : i + size]) for i in range(0, len(mixed) - size + 1, size)]
    return [groups[i] for i in rng.permutation(len(groups))]


def plan_batches(
    shards: ShardSet, split: str, seed: int, batch_size: int, tokens_per_batch: int | None, rank: int, world_size: int
) -> BatchPlan:
    """The plan over one split. ConfigError when no bucket holds enough clips for a single batch."""
    held: dict[str, list[int]] = {}
    for i in shards.indices(split):
        held.setdefault(shards.samples[i].bucket, []).append(i)
    sizes = clips_per_batch(shards, split, batch_size, tokens_per_batch)
    plan = BatchPlan(tuple(tuple(held[name]) for name in sizes), seed, tuple(sizes.values()), rank, world_size)
    lacking = [
        f"{needed} clips of {name}, which has {len(held[name])}"
        for name, needed in zip(sizes, plan.groups, strict=True)
        if len(held[name]) < needed
    ]
    key = "data.batch_size" if tokens_per_batch is None else "data.tokens_per_batch"
    setting = f"{key}={tokens_per_batch or batch_size} on {world_size} rank(s) needs"
    require(bool(held), f"{setting} clips, and {shards.folder} has no {split} clips: prepare more windows")
    short = f"{setting} {', '.join(lacking)} in {shards.folder}"
    require(plan.steps_per_epoch > 0, f"{short}: lower {key} or prepare more windows")
    if lacking and rank == 0:
        log.warning("%s: these are never trained on", short)
    if tokens_per_batch is not None and rank == 0:
        _warn_of_large(bucket_tokens(shards, split), tokens_per_batch)
    return plan


def _warn_of_large(tokens: dict[str, int], budget: int) -> None:
    large = [f"{name} ({count:,} tokens)" for name, count in tokens.items() if count > budget]
    if large:
        log.warning("data.tokens_per_batch=%d is less than one clip of %s: a batch of one", budget, ", ".join(large))


def bucket_tokens(shards: ShardSet, split: str) -> dict[str, int]:
    """Tokens of a clip (target and references) of each bucket of a split, by name. One clip of each is read, since
    those of a bucket are alike: they can be stacked."""
    first: dict[str, int] = {}
    for i in shards.indices(split):
        first.setdefault(shards.samples[i].bucket, i)
    pairs = {name: shards.read_latents(first[name], torch.float16) for name in sorted(first)}
    return {name: sum(x[0].numel() for x in (pair.target, *pair.references)) for name, pair in pairs.items()}


def clips_per_batch(shards: ShardSet, split: str, batch_size: int, tokens_per_batch: int | None) -> dict[str, int]:
    """Clips of a batch of each bucket of a split: batch_size, or as many as tokens_per_batch holds, at least one."""
    if tokens_per_batch is not None:
        return {name: max(1, tokens_per_batch // count) for name, count in bucket_tokens(shards, split).items()}
    return dict.fromkeys(sorted({shards.samples[i].bucket for i in shards.indices(split)}), batch_size)


class LatentDataset(Dataset[LatentPair]):
    """The latent pairs of a shard set by number, for DataLoader; in fp16, as they are stored: fewer bytes to move."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __getitem__(self, i: int) -> LatentPair:
        return self.shards.read_latents(i, torch.float16)
