"""Which held-out windows an evaluation measures: evenly over recordings, none from a recording that was trained on.

Training asks before step 0, so that an evaluation that is not possible is refused before hours of work.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

from iclora_train.config import Config, ConfigError, require
from iclora_train.data.mixture import open_data
from iclora_train.data.recordings import recording_of_clips
from iclora_train.data.shard_index import ShardSample
from iclora_train.data.shards import ShardSet


class TooFewWindowsError(ConfigError):
    """The shards have no windows to evaluate, or no window whose reference can stand in for another one."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Shards and windows of an evaluation. recordings: of each window. notes: how it was adapted to the data.

    donors: windows that are not evaluated and only give swapped references, where all evaluated windows are of one
    recording.
    """

    pairs: ShardSet
    latents: ShardSet
    samples: list[ShardSample]
    recordings: list[str]
    donors: list[ShardSample]
    notes: list[str]

    @classmethod
    def of(cls, config: Config, latents: ShardSet | None = None) -> EvaluationPlan:
        """Choose `eval.windows` windows of split `eval.split` (all, if there are fewer), of one size.

        ConfigError for shards of other settings, pairs without a reference, or leakage between the splits.
        TooFewWindowsError as described there.
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
        if not candidates:
            raise TooFewWindowsError(
                f"split {split} of {root} has no windows: prepare more clips, or list some with split {split}"
            )
        same_size, notes = choose_size(candidates, recording)
        samples = select_windows(same_size, recording, config.eval.windows)
        if len(samples) < config.eval.windows:
            number = f"eval.windows={config.eval.windows}"
            notes.append(f"{number}, but {root} holds {len(samples)} windows of split {split}: these are evaluated")
        names = [recording[sample.source] for sample in samples]
        donors = choose_donors(samples, latents, recording, notes) if len(set(names)) == 1 else []
        _check_plan_for_leaks(pairs, latents, samples, recording, notes)
        return cls(pairs, latents, samples, names, donors, notes)


def choose_donors(
    samples: Sequence[ShardSample], latents: ShardSet, recording: Mapping[str, str], notes: list[str]
) -> list[ShardSample]:
    """Windows of other recordings for samples of one recording: of the same size, from another held-out split or else
    from train. Without such windows the samples stand in for one another; a single one needs any window of its size.

    Adds a note. TooFewWindowsError if there is no window of this size.
    """
    bucket, only_recording, split = samples[0].bucket, recording[samples[0].source], samples[0].split
    where = f"all windows of split {split} are of one recording, {only_recording}"
    others = [s for s in latents.samples if s.split != split and s.bucket == bucket]
    for other in ("val", "heldout", "train"):
        if donors := [s for s in others if s.split == other and recording[s.source] != only_recording]:
            notes.append(f"{where}: swapped references are those of split {other}")
            return select_windows(donors, recording, len(samples))
    if len(samples) == 1 and not others:
        raise TooFewWindowsError(
            f"split {split} of {latents.folder.parent} holds one window of {bucket}, and no other split has this size "
            "to swap its reference: prepare more clips of this size"
        )
    notes.append(f"{where}: swapped references are of the same recording, from another time")
    return [] if len(samples) > 1 else select_windows(others, recording, 1)


def _check_plan_for_leaks(
    pairs: ShardSet,
    latents: ShardSet,
    samples: Sequence[ShardSample],
    recording: Mapping[str, str],
    notes: list[str],
) -> None:
    """`check_leakage` of evaluated windows. Recordings that preparation has divided on purpose are named in a note."""
    shared = set(pairs.made_from.splits.shared)
    videos = {clip: source.video for clip, source in pairs.made_from.sources.items()}
    identities = {clip: frozenset((clip, recording[clip], videos.get(clip, clip))) - shared for clip in recording}
    trained = {latents.samples[i].source for i in latents.indices("train")}
    if divided := sorted(shared & {recording[sample.source] for sample in samples}):
        notes.append(
            f"{divided[0]} is also in training, because there is no other recording: the evaluation says little about "
            "other footage"
        )
    check_leakage({sample.source for sample in samples}, trained, identities, samples[0].split)


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
