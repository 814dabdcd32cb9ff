"""Which held-out windows an evaluation measures: evenly over recordings, none from a recording that was trained on.

Training asks before step 0, so that an evaluation that is not possible is refused before hours of work.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

from iclora_train.config import Config, require
from iclora_train.data.mixture import open_data
from iclora_train.data.recordings import recording_of_clips
from iclora_train.data.shard_index import ShardSample
from iclora_train.data.shards import ShardSet


@dataclass(frozen=True)
class EvaluationPlan:
    """Shards and windows of an evaluation. recordings: of each window. notes: how it was adapted to the data."""

    pairs: ShardSet
    latents: ShardSet
    samples: list[ShardSample]
    recordings: list[str]
    notes: list[str]

    @classmethod
    def of(cls, config: Config, latents: ShardSet | None = None) -> EvaluationPlan:
        """Choose `eval.windows` windows of split `eval.split` (all, if there are fewer), of one size.

        ConfigError for shards of other settings, fewer than two windows, windows of a single recording (swapping
        references needs another one), pairs without a reference, or leakage between the splits.
        """
        root, split = Path(config.data.root), config.eval.split
        pairs = open_data(config, "pairs")
        latents = latents or open_data(config, "latents")
        for shards in (pairs, latents):
            shards.require_settings(config)
        require(
            latents.made_from.pairs == pairs.sha256,
            f"{latents.folder} was not made from {pairs.folder}: delete both and run data_prep again",
        )
        recording = recording_of_clips(pairs)
        candidates = [latents.samples[i] for i in latents.indices(split)]
        same_size, notes = choose_size(candidates, recording)
        samples = select_windows(same_size, recording, config.eval.windows)
        names = [recording[sample.source] for sample in samples]
        require(
            len(set(names)) > 1,
            f"an evaluation needs windows of two recordings, and split {split} of {root} holds {len(samples)} windows "
            f"of {len(set(names))}: prepare more clips, or give two of them the split {split} in data.clips",
        )
        if len(samples) < config.eval.windows:
            number = f"eval.windows={config.eval.windows}"
            notes.append(f"{number}, but {root} holds {len(samples)} windows of split {split}: these are evaluated")
        videos = {clip: source.video for clip, source in pairs.made_from.sources.items()}
        identities = {clip: frozenset((clip, recording[clip], videos.get(clip, clip))) for clip in recording}
        trained = {latents.samples[i].source for i in latents.indices("train")}
        check_leakage({sample.source for sample in samples}, trained, identities, split)
        return cls(pairs, latents, samples, names, notes)


def choose_size(samples: Sequence[ShardSample], recording: Mapping[str, str]) -> tuple[list[ShardSample], list[str]]:
    """The samples of one bucket, and a note if there are others: the bucket with two recordings and most windows."""
    by_bucket: dict[str, list[ShardSample]] = defaultdict(list)
    for sample in samples:
        by_bucket[sample.bucket].append(sample)
    if len(by_bucket) < 2:
        return list(samples), []
    bucket, chosen = max(
        by_bucket.items(), key=lambda item: (len({recording[s.source] for s in item[1]}) > 1, len(item[1]))
    )
    others = ", ".join(name for name in by_bucket if name != bucket)
    return chosen, [f"held-out windows differ in size: those of {bucket} are evaluated, those of {others} are not"]


def select_windows(samples: Sequence[ShardSample], recording: Mapping[str, str], count: int) -> list[ShardSample]:
    """`count` samples (or all, if fewer), spread evenly over the recordings, ordered by recording.

    Within a recording the samples are evenly spaced over its windows, in the order in which they were cut.
    """
    samples_of: dict[str, list[ShardSample]] = defaultdict(list)
    for sample in samples:
        samples_of[recording[sample.source]].append(sample)
    round_robin = chain.from_iterable(zip_longest(*(samples_of[name] for name in sorted(samples_of))))
    quota = Counter(recording[sample.source] for sample in islice((s for s in round_robin if s is not None), count))
    return [
        samples_of[name][(2 * j + 1) * len(samples_of[name]) // (2 * quota[name])]
        for name in sorted(samples_of)
        for j in range(quota[name])
    ]


def check_leakage(evaluated: Set[str], trained: Set[str], identities: Mapping[str, frozenset[str]], split: str) -> None:
    """Raise ConfigError if an evaluated clip, a copy of its file, or its recording is in the training split.

    identities: clip -> all identities of the clip (its name, its recording, the sha256 of its file).
    """
    trained_identities = frozenset().union(*(identities[clip] for clip in trained))
    leaked = sorted(clip for clip in evaluated if identities[clip] & trained_identities)
    require(
        not leaked,
        f"leakage: {', '.join(leaked[:3])} of split {split} ({len(leaked)} clips in all), or their recordings, are "
        "also in split train, so metrics on them would prove nothing. Give each recording one split in data.clips and "
        "run data_prep again",
    )
