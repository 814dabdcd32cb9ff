"""Batch sampler: the clips of batch n of a rank.

They are a pure function of the seed, n and the rank, so that resuming needs only the number of the next batch. The
module does not import Lightning, because DataLoader workers import it and should start quickly.
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
    """An endless sequence of batches for one rank: each epoch is a seeded permutation, cut into batches of one bucket.

    buckets: sample numbers of each bucket. sizes: clips per batch and rank, for each bucket. In a step all ranks have
    batches of the same bucket, `size * world_size` clips together. No clip occurs twice in an epoch. Clips that do not
    fill a last step are left out of that epoch; the next epoch leaves out different clips.
    """

    buckets: tuple[tuple[int, ...], ...]
    seed: int
    sizes: tuple[int, ...]
    rank: int = 0
    world_size: int = 1

    @property
    def clips_per_step(self) -> tuple[int, ...]:
        """Clips per step of all ranks together, for each bucket."""
        return tuple(size * self.world_size for size in self.sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of this rank in one epoch."""
        return sum(len(bucket) // size for bucket, size in zip(self.buckets, self.clips_per_step, strict=True))

    def batch(self, n: int) -> list[int]:
        """Sample numbers of batch n."""
        epoch, step = divmod(n, self.steps_per_epoch)
        clips = _epoch_steps(self.buckets, self.seed, self.clips_per_step, epoch)[step]
        return list(clips[self.rank :: self.world_size])

    def batches_from(self, n: int) -> BatchSampler:
        """Batches n, n + 1, ... for a DataLoader."""
        return BatchSampler(self, n)


@dataclass(frozen=True)
class BatchSampler:
    """A batch sampler for a DataLoader: starts at batch `start` of a plan and never ends."""

    plan: BatchPlan
    start: int

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.plan.batch, count(self.start))


@lru_cache(maxsize=2)
def _epoch_steps(
    buckets: tuple[tuple[int, ...], ...], seed: int, sizes: tuple[int, ...], epoch: int
) -> list[tuple[int, ...]]:
    """Sample numbers of each step of an epoch, in order; the same on every rank.

    sizes: clips of a step of each bucket.
    """
    rng = np.random.default_rng((seed, epoch))
    steps = []
    for bucket, size in zip(buckets, sizes, strict=True):
        shuffled = rng.permutation(bucket).tolist()
        steps += [tuple(shuffled[i : i + size]) for i in range(0, len(shuffled) - size + 1, size)]
    return [steps[i] for i in rng.permutation(len(steps))]


def plan_batches(
    shards: ShardSet, split: str, seed: int, batch_size: int, tokens_per_batch: int | None, rank: int, world_size: int
) -> BatchPlan:
    """The batch plan of a split. ConfigError when no bucket has enough clips for a single step."""
    buckets: dict[str, list[int]] = {}
    for i in shards.indices(split):
        buckets.setdefault(shards.samples[i].bucket, []).append(i)
    sizes = clips_per_batch(shards, split, batch_size, tokens_per_batch)
    plan = BatchPlan(tuple(tuple(buckets[name]) for name in sizes), seed, tuple(sizes.values()), rank, world_size)
    too_small = [
        f"{needed} clips of {name}, which has {len(buckets[name])}"
        for name, needed in zip(sizes, plan.clips_per_step, strict=True)
        if len(buckets[name]) < needed
    ]
    key = "data.batch_size" if tokens_per_batch is None else "data.tokens_per_batch"
    setting = f"{key}={tokens_per_batch or batch_size} on {world_size} rank(s) needs"
    require(bool(buckets), f"{setting} clips, and {shards.folder} has no {split} clips: prepare more windows")
    problem = f"{setting} {', '.join(too_small)} in {shards.folder}"
    require(plan.steps_per_epoch > 0, f"{problem}: lower {key} or prepare more windows")
    if too_small and rank == 0:
        log.warning("%s: these clips are never trained on", problem)
    if tokens_per_batch is not None and rank == 0:
        _warn_large_clips(bucket_tokens(shards, split), tokens_per_batch)
    return plan


def _warn_large_clips(tokens: dict[str, int], budget: int) -> None:
    large = [f"{name} ({count:,} tokens)" for name, count in tokens.items() if count > budget]
    if large:
        log.warning("data.tokens_per_batch=%d is less than one clip of %s: 1 clip per batch", budget, ", ".join(large))


def bucket_tokens(shards: ShardSet, split: str) -> dict[str, int]:
    """Tokens of a clip (target and references) of each bucket of a split, by bucket name.

    One clip of each bucket is read, because all clips of a bucket have the same sizes.
    """
    first: dict[str, int] = {}
    for i in shards.indices(split):
        first.setdefault(shards.samples[i].bucket, i)
    pairs = {name: shards.read_latents(first[name], torch.float16) for name in sorted(first)}
    return {name: sum(x[0].numel() for x in (pair.target, *pair.references)) for name, pair in pairs.items()}


def clips_per_batch(shards: ShardSet, split: str, batch_size: int, tokens_per_batch: int | None) -> dict[str, int]:
    """Clips per batch for each bucket of a split: batch_size, or as many as fit tokens_per_batch, at least one."""
    if tokens_per_batch is not None:
        return {name: max(1, tokens_per_batch // count) for name, count in bucket_tokens(shards, split).items()}
    return dict.fromkeys(sorted({shards.samples[i].bucket for i in shards.indices(split)}), batch_size)


class LatentDataset(Dataset[LatentPair]):
    """The latent pairs of a shard set by number, for a DataLoader, in fp16 as stored (fewer bytes to copy)."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __getitem__(self, i: int) -> LatentPair:
        return self.shards.read_latents(i, torch.float16)
