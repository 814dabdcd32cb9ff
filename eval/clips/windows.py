"""The held-out windows of an evaluation, with their pixels and latents.

Several clips may be cut from one recording (one shot in two crops, for example). `source` here means the recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor

from iclora_train.config import Config, Task, require
from iclora_train.core.fingerprint import digest
from iclora_train.core.types import LatentPair, Pair
from iclora_train.data.clip_hashes import KnownClip, known_clips
from iclora_train.data.controls import Control, controls_of, joint_name
from iclora_train.data.heldout import EvaluationPlan
from iclora_train.data.shard_index import ShardSample
from iclora_train.data.shards import EMPTY_AUDIO_TEXT_FILE, ShardSet
from iclora_train.ltx2.base_model import BaseModel


@dataclass(frozen=True)
class Window:
    """One held-out window: its number in the evaluation, its recording, and the number of its partner window."""

    number: int
    key: str
    source: str
    bucket: str
    partner: int

    @property
    def mask_left(self) -> bool:
        """Whether the half-frame mask keeps the left half: true for even window numbers."""
        return self.number % 2 == 0


class HeldOut:
    """The windows of the evaluation. Pixels and latents are read from the shards on demand.

    windows: the evaluated ones. windows_and_donors: also those that only give swapped references, by number. controls:
    by key, the controls that made the references of each of these, in the order of its references.
    """

    def __init__(
        self,
        pairs: ShardSet,
        latents: ShardSet,
        samples: Sequence[ShardSample],
        sources: Sequence[str],
        notes: Sequence[str] = (),
        donors: Sequence[ShardSample] = (),
        task: Task | None = None,
    ) -> None:
        self.notes = tuple(notes)
        count = len(samples)
        self._pairs, self._latents = pairs, latents
        self._pair_row = {sample.key: i for i, sample in enumerate(pairs.samples)}
        self._latent_row = {sample.key: i for i, sample in enumerate(latents.samples)}
        self._rates: dict[str, float] = {}
        every = [*samples, *donors]
        self.controls = {sample.key: () if task is None else self._controls_of(sample, task) for sample in every}
        kinds = [joint_name([control.name for control in self.controls[sample.key]]) for sample in every]
        if donors:
            numbers = [count + n for n in donors_for(kinds[:count], kinds[count:])]
        else:
            recordings = sources if len(set(sources)) > 1 else [sample.key for sample in samples]
            numbers = partners(recordings, kinds)
        self.windows = tuple(
            Window(i, sample.key, source, sample.bucket, partner)
            for i, (sample, source, partner) in enumerate(zip(samples, sources, numbers, strict=True))
        )
        self.windows_and_donors = self.windows + tuple(
            Window(count + i, donor.key, donor.source, donor.bucket, i % count) for i, donor in enumerate(donors)
        )

    @classmethod
    def open(cls, config: Config, base: BaseModel) -> HeldOut:
        """Open the shards under data.root.

        Raises ConfigError for shards of another base, pairs without a reference that the task has, and as
        `EvaluationPlan.of` does.
        """
        plan = EvaluationPlan.of(config)
        plan.latents.require_base(base.name, base.latent_fingerprints)
        held_out = cls(plan.pairs, plan.latents, plan.samples, plan.recordings, plan.notes, plan.donors, config.task)
        count = len(held_out.pair(held_out.windows[0]).references)
        require(
            count > 0 or not config.task.has_reference,
            f"{plan.pairs.folder}: its pairs have no reference, which eval needs: run data_prep again",
        )
        names = config.task.reference_names
        require(
            not config.task.more_references or count == len(names),
            f"{plan.pairs.folder}: its pairs have {count} references, and task.more_references makes it {len(names)} "
            f"({', '.join(names)}): run data_prep again",
        )
        return held_out

    def _controls_of(self, sample: ShardSample, task: Task) -> tuple[Control, ...]:
        return controls_of(task, self._pairs.record(self._pair_row[sample.key]).record)

    def in_random_order(self, seed: int) -> HeldOut:
        """The same windows with their recordings in a random order. The numbers change; the partners stay."""
        recordings = sorted({window.source for window in self.windows})
        Random(seed).shuffle(recordings)
        place = {recording: i for i, recording in enumerate(recordings)}
        ordered = sorted(self.windows, key=lambda window: (place[window.source], window.number))
        order = [*ordered, *self.windows_and_donors[len(self.windows) :]]
        number = {window.number: i for i, window in enumerate(order)}
        shuffled = copy(self)
        shuffled.windows_and_donors = tuple(
            replace(window, number=i, partner=number[window.partner]) for i, window in enumerate(order)
        )
        shuffled.windows = shuffled.windows_and_donors[: len(self.windows)]
        return shuffled

    def first(self, count: int) -> HeldOut:
        """The first windows only. The others still give swapped references."""
        fewer = copy(self)
        fewer.windows = self.windows[:count]
        return fewer

    def pair(self, window: Window) -> Pair:
        """The pair of a window, in pixels."""
        return self._pairs.read_pair(self._pair_row[window.key])

    def latents(self, window: Window) -> LatentPair:
        """The pair of a window as latents, with its text features."""
        return self._latents.read_latents(self._latent_row[window.key])

    def fps(self, window: Window) -> float:
        """Frames per second of a window."""
        if window.key not in self._rates:
            self._rates[window.key] = self._latents.record(self._latent_row[window.key]).fps
        return self._rates[window.key]

    def known_clips(self, root: Path) -> dict[str, KnownClip]:
        """How the clips of the evaluated windows are recognised. root: data.root."""
        clips = {self._pairs.samples[self._pair_row[window.key]].source for window in self.windows}
        return known_clips(root, self._pairs, clips)

    @property
    def divided(self) -> set[str]:
        """Recordings that preparation has put into train and heldout on purpose."""
        return set(self._pairs.made_from.splits.shared)

    def empty_text(self) -> Tensor:
        """Text features (T,D) of the empty caption."""
        return self._latents.empty_text()

    def empty_audio_text(self) -> Tensor:
        """Text features (T,D') of the empty caption of the audio stream. ShardError if the set has no sound."""
        return self._latents.empty_text(EMPTY_AUDIO_TEXT_FILE)

    def captions_without_audio_text(self) -> list[str]:
        """Captions of the windows whose latents have no text features of the audio stream (data.sound).

        They are those of the whole split, because a plan for fewer windows may choose others.
        """
        split = self._latents.samples[self._latent_row[self.windows[0].key]].split
        records = [self._latents.record(i) for i in self._latents.indices(split)]
        return list(dict.fromkeys(record.caption for record in records if "sound" not in record.record))

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Latent size (f, h, w) of every target."""
        _, f, h, w = self.latents(self.windows[0]).target.shape
        return f, h, w

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Digests of the pair and latent shards, for the cache and for scores.json."""
        return {"pairs": digest(self._pairs.shards), "latents": digest(self._latents.shards)}


def partners(sources: Sequence[str], kinds: Sequence[str]) -> list[int]:
    """For every window, the number of a window of another recording, used by the swapped condition and the floor.

    sources: the recording of each window; there are at least two. kinds: its control, which its partner shares if
    another recording has it: a skeleton is swapped for a skeleton. Windows are sorted by recording. The k-th window (of
    a kind) of a recording gets the k-th window (of this kind) after that recording, cyclically. If all recordings have
    the same number of windows of one kind, the result is a permutation.
    """
    order = sorted(range(len(sources)), key=lambda i: (sources[i], i))
    result = [0] * len(sources)
    for i in order:
        same_source = [j for j in order if sources[j] == sources[i]]
        after = order.index(same_source[-1]) + 1
        candidates = [j for j in order[after:] + order[:after] if sources[j] != sources[i]]
        alike = [j for j in candidates if kinds[j] == kinds[i]]
        before = [j for j in same_source if kinds[j] == kinds[i]] if alike else same_source
        chosen = alike or candidates
        result[i] = chosen[before.index(i) % len(chosen)]
    return result


def donors_for(kinds: Sequence[str], donor_kinds: Sequence[str]) -> list[int]:
    """For every window, the number of the donor of its swapped reference, by turns; of its own kind if there is one."""
    result = []
    for i, kind in enumerate(kinds):
        alike = [n for n, other in enumerate(donor_kinds) if other == kind] or list(range(len(donor_kinds)))
        result.append(alike[i % len(alike)])
    return result
