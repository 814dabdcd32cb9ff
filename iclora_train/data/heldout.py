"""Which held-out windows an evaluation measures: evenly over controls and recordings, none that was trained on.

Training asks before step 0, so that an evaluation that is not possible is refused before hours of work.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from iclora_train.config import Config, ConfigError, Task, require
from iclora_train.data.clip_hashes import joined_by_content, known_clips
from iclora_train.data.controls import controls_of
from iclora_train.data.mixture import open_data
from iclora_train.data.recordings import recording_of_clips
from iclora_train.data.shard_index import ShardSample
from iclora_train.data.shards import ShardSet

MAX_NAMED = 3  # recordings that a note names
Group = tuple[str, tuple[str, ...]]  # a recording, and the controls of some of its windows


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
        candidates = [latents.samples[i] for i in latents.indices(split)]
        if not candidates:
            raise TooFewWindowsError(
                f"split {split} of {root} has no windows: prepare more clips, or list some with split {split}"
            )
        declared = recording_of_clips(pairs)
        recording, joined = join_copies(config, pairs, {sample.source for sample in candidates}, declared)
        same_size, notes = choose_size(candidates, recording)
        notes += joined
        controls = Controls(config.task, pairs)
        samples = controls.select(same_size, recording, config.eval.windows)
        if len(samples) < config.eval.windows:
            number = f"eval.windows={config.eval.windows}"
            notes.append(f"{number}, but {root} holds {len(samples)} windows of split {split}: these are evaluated")
        names = [recording[sample.source] for sample in samples]
        donors = choose_donors(samples, latents, recording, notes, controls) if len(set(names)) == 1 else []
        _check_plan_for_leaks(pairs, latents, samples, declared, notes)
        return cls(pairs, latents, samples, names, donors, notes)


def join_copies(
    config: Config, pairs: ShardSet, clips: Set[str], recording: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The recording of each clip, with one name for recordings of `clips` that show the same (`joined_by_content`).

    The notes name the joined ones.
    """
    known = known_clips(Path(config.data.root), pairs, set(clips))
    joined = joined_by_content(known, recording, config.checks.duplicate.most, config.checks.distance)
    names: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        names[joined[clip]].add(recording[clip])
    notes = [
        f"{', '.join(sorted(of)[:MAX_NAMED])}{', ...' * (len(of) > MAX_NAMED)} show the same: they count as one "
        "recording"
        for _, of in sorted(names.items())
        if len(of) > 1
    ]
    return joined, notes


def choose_donors(
    samples: Sequence[ShardSample],
    latents: ShardSet,
    recording: Mapping[str, str],
    notes: list[str],
    controls: Controls,
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
            return controls.select(donors, recording, len(samples))
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


@dataclass(frozen=True)
class Controls:
    """The controls of windows, read from the records of their pairs."""

    task: Task
    pairs: ShardSet

    def select(self, samples: Sequence[ShardSample], recording: Mapping[str, str], count: int) -> list[ShardSample]:
        """`select_windows` by the controls of the samples."""
        return select_windows(samples, recording, count, self._names(samples) if len(samples) > count else None)

    def _names(self, samples: Sequence[ShardSample]) -> dict[str, tuple[str, ...]] | None:
        """By key, the names of the controls of each sample; None unless the task is of family structure."""
        if self.task.family != "structure":
            return None
        keys = {sample.key for sample in samples}
        return {
            sample.key: tuple(control.name for control in controls_of(self.task, self.pairs.record(i).record))
            for i, sample in enumerate(self.pairs.samples)
            if sample.key in keys
        }


def select_windows(
    samples: Sequence[ShardSample],
    recording: Mapping[str, str],
    count: int,
    controls: Mapping[str, tuple[str, ...]] | None = None,
) -> list[ShardSample]:
    """`count` samples (or all, if fewer), spread evenly over the controls, then over the recordings of each control.

    controls: by key, those of each sample; None: one control. The result is ordered by recording. The samples of a
    recording that have the same controls are evenly spaced, in the order in which they were cut.
    """
    groups: dict[Group, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        groups[recording[sample.source], ("",) if controls is None else controls[sample.key]].append(i)
    quota = _quotas({group: len(numbers) for group, numbers in groups.items()}, count)
    chosen = [
        (group[0], numbers[(2 * j + 1) * len(numbers) // (2 * quota[group])])
        for group, numbers in groups.items()
        for j in range(quota[group])
    ]
    return [samples[i] for _, i in sorted(chosen)]


def _quotas(sizes: Mapping[Group, int], count: int) -> Counter[Group]:
    """How many windows each group gives. sizes: how many it has.

    The next window is of the control with the fewest so far, of the recording with the fewest of this control, then of
    the recording with the fewest at all.
    """
    quota: Counter[Group] = Counter()
    of_control: Counter[str] = Counter()
    of_recording: Counter[str] = Counter()
    of_both: Counter[tuple[str, str]] = Counter()
    left = sorted(sizes)
    for _ in range(min(count, sum(sizes.values()))):
        left = [group for group in left if quota[group] < sizes[group]]
        rarest = min((name for _, names in left for name in names), key=lambda name: (of_control[name], name))
        group = min(
            (group for group in left if rarest in group[1]),
            key=lambda group: (of_both[group[0], rarest], of_recording[group[0]], sum(of_control[n] for n in group[1])),
        )
        quota[group] += 1
        of_recording[group[0]] += 1
        of_control.update(group[1])
        of_both.update((group[0], name) for name in group[1])
    return quota


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
