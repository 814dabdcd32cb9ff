"""Batch sampler: the clips of optimizer step n, and the share of them that a rank trains on.

They are a pure function of the seed and n, so that resuming needs only the number of the step, and the same clips are
trained on however many ranks share a step. The module does not import Lightning, because DataLoader workers import it
and should start quickly.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count

import numpy as np
import torch
from torch.utils.data import Dataset

from iclora_train.config import require
from iclora_train.config.sources import apportion, windows_per_epoch
from iclora_train.core.types import LatentPair
from iclora_train.data.mixture import Mixture
from iclora_train.data.shards import ShardSet

log = logging.getLogger(__name__)

BATCHES_PER_STEP = "trainer.devices x trainer.num_nodes x trainer.accumulate_grad_batches"
Step = tuple[tuple[int, ...], ...]  # sample numbers of each batch


@dataclass(frozen=True)
class Draw:
    """`count` of the `clips` of a source in a bucket take part in an epoch.

    Epochs continue an endless sequence in which every clip occurs once per pass, in an order drawn for each pass. So
    after any number of epochs no clip of the source has taken part more than once more than another.
    """

    source: int
    clips: tuple[int, ...]
    count: int

    def clips_of(self, epoch: int, seed: int, bucket: int) -> list[int]:
        """The clips of an epoch, a function of (seed, epoch, bucket, source)."""
        first, size = epoch * self.count, len(self.clips)
        passes = range(first // size, (first + self.count - 1) // size + 1)
        in_order = [clip for number in passes for clip in self._shuffled((seed, number, bucket, self.source + 1))]
        begin = first - passes.start * size
        return in_order[begin : begin + self.count]

    def _shuffled(self, seed: tuple[int, ...]) -> list[int]:
        shuffled: list[int] = np.random.default_rng(seed).permutation(self.clips).tolist()
        return shuffled


@dataclass(frozen=True)
class BatchPlan:
    """An endless sequence of optimizer steps of `batches_per_step` batches, each batch with clips of one bucket.

    buckets: sample numbers of each bucket. sizes: clips per batch, for each bucket. In each epoch the clips of a bucket
    are shuffled and cut into batches; no clip occurs twice. The batches of a step are of one bucket as far as possible;
    what is left at the end of the buckets is combined into steps of several buckets. Clips that do not fill a last
    batch of their bucket, and random batches that are too many for the last step, are left out of that epoch.

    draws: with `data.sources`, the clips of each bucket by source, and how many of them an epoch has; otherwise empty.
    """

    buckets: tuple[tuple[int, ...], ...]
    seed: int
    sizes: tuple[int, ...]
    batches_per_step: int = 1
    draws: tuple[tuple[Draw, ...], ...] = ()

    @property
    def clips_per_epoch(self) -> list[int]:
        """Clips of each bucket in an epoch, before some are left out."""
        return [sum(draw.count for draw in draws) for draws in self.draws] or [len(bucket) for bucket in self.buckets]

    @property
    def batches_per_epoch(self) -> int:
        """Batches that the clips of all buckets fill."""
        return sum(count // size for count, size in zip(self.clips_per_epoch, self.sizes, strict=True))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return self.batches_per_epoch // self.batches_per_step

    def step(self, n: int) -> Step:
        """The batches of step n (from 0)."""
        epoch, step = divmod(n, self.steps_per_epoch)
        return _epoch_steps(self, epoch)[step]

    def epoch_clips(self, epoch: int) -> Sequence[Sequence[int]]:
        """The clips of each bucket that take part in an epoch; with `draws`, a clip may occur several times."""
        if not self.draws:
            return self.buckets
        return [
            list(chain.from_iterable(draw.clips_of(epoch, self.seed, number) for draw in draws))
            for number, draws in enumerate(self.draws)
        ]


@dataclass(frozen=True)
class BatchSampler:
    """A batch sampler for a DataLoader: the batches of one rank from step `start` of a plan on, without end.

    Rank r of w ranks trains on batches r, r + w, r + 2 w, ... of each step.
    """

    plan: BatchPlan
    start: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        steps = map(self.plan.step, count(self.start))
        return map(list, chain.from_iterable(step[self.rank :: self.world_size] for step in steps))


@lru_cache(maxsize=2)
def _epoch_steps(plan: BatchPlan, epoch: int) -> list[Step]:
    """The steps of an epoch, in order."""
    rng = np.random.default_rng((plan.seed, epoch))
    buckets, batches_per_step = plan.epoch_clips(epoch), plan.batches_per_step
    batches = []  # (bucket, clips)
    for number, (bucket, size) in enumerate(zip(buckets, plan.sizes, strict=True)):
        shuffled = rng.permutation(bucket).tolist()
        cuts = range(0, len(shuffled) - size + 1, size)
        batches += [(number, tuple(shuffled[i : i + size])) for i in cuts]
    surplus = len(batches) % batches_per_step
    if surplus:  # never with one batch per step, whose order must stay what it has been since version 0.1
        batches = [batches[i] for i in sorted(rng.permutation(len(batches))[surplus:])]
    by_bucket: list[list[tuple[int, ...]]] = [[] for _ in buckets]
    for number, clips in batches:
        by_bucket[number].append(clips)
    steps = _group(by_bucket, batches_per_step)
    return [steps[i] for i in rng.permutation(len(steps))]


def _group(by_bucket: list[list[tuple[int, ...]]], size: int) -> list[Step]:
    """Steps of `size` batches: as many as possible of one bucket, then steps of what is left, in order of bucket."""
    ends = [len(batches) // size * size for batches in by_bucket]
    whole = [batches[:end] for batches, end in zip(by_bucket, ends, strict=True)]
    rest = [batches[end:] for batches, end in zip(by_bucket, ends, strict=True)]
    ordered = list(chain.from_iterable(whole + rest))
    return [tuple(ordered[i : i + size]) for i in range(0, len(ordered), size)]


def plan_batches(
    shards: ShardSet,
    split: str,
    seed: int,
    batch_size: int,
    tokens_per_batch: int | None,
    batches_per_step: int = 1,
    quiet: bool = False,
) -> BatchPlan:
    """The batch plan of a split. ConfigError when its clips are not enough for a single step. quiet: no warnings."""
    buckets: dict[str, list[int]] = {}
    for i in shards.indices(split):
        buckets.setdefault(shards.samples[i].bucket, []).append(i)
    sizes = clips_per_batch(shards, split, batch_size, tokens_per_batch)
    clips = tuple(tuple(buckets[name]) for name in sizes)
    draws = draws_of(shards, clips) if isinstance(shards, Mixture) else ()
    plan = BatchPlan(clips, seed, tuple(sizes.values()), batches_per_step, draws)
    too_small = [
        f"{size} clips of {name}, which has {count}"
        for (name, size), count in zip(sizes.items(), plan.clips_per_epoch, strict=True)
        if count < size
    ]
    key = "data.batch_size" if tokens_per_batch is None else "data.tokens_per_batch"
    setting = f"{key}={tokens_per_batch or batch_size}"
    require(bool(buckets), f"{setting} needs clips, and {shards.folder} has no {split} clips: prepare more windows")
    problem = f"{setting} needs {', '.join(too_small)} in {shards.folder}"
    require(plan.batches_per_epoch > 0, f"{problem}: lower {key} or prepare more windows")
    require(
        plan.steps_per_epoch > 0,
        f"a step has {batches_per_step} batches ({BATCHES_PER_STEP}), and with {setting} the clips in {shards.folder} "
        f"fill {plan.batches_per_epoch}: lower {key} or trainer.accumulate_grad_batches, use fewer GPUs, or prepare "
        "more windows",
    )
    if too_small and not quiet:
        log.warning("%s: these clips are never trained on", problem)
    if tokens_per_batch is not None and not quiet:
        _warn_large_clips(bucket_tokens(shards, split), tokens_per_batch)
    return plan


def draws_of(mixture: Mixture, buckets: Sequence[Sequence[int]]) -> tuple[tuple[Draw, ...], ...]:
    """For each bucket the draws of the sources. The windows of a source in an epoch are divided among its buckets in
    proportion to its windows there, at least one each, so that every epoch has the same number of batches."""
    by_bucket = [defaultdict[int, list[int]](list) for _ in buckets]  # source -> clips
    for clips, of_source in zip(buckets, by_bucket, strict=True):
        for clip in clips:
            of_source[mixture.places[clip][0]].append(clip)
    used = sorted(set().union(*by_bucket))  # a source may have held-out clips only
    available = [[len(of_source[source]) for of_source in by_bucket if source in of_source] for source in used]
    in_epoch = windows_per_epoch([sum(counts) for counts in available], [mixture.parts[i].source for i in used])
    counts = {
        source: iter(apportion(total, in_buckets))
        for source, total, in_buckets in zip(used, in_epoch, available, strict=True)
    }
    return tuple(
        tuple(Draw(source, tuple(of_source[source]), next(counts[source])) for source in sorted(of_source))
        for of_source in by_bucket
    )


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
