"""Select the held-out windows to evaluate: evenly over recordings, none from a recording that was trained on.

Several clips may be cut from one recording (one shot in two crops, for example). `source` here means the recording.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from iclora_train.config import Config, require
from iclora_train.core.fingerprint import digest
from iclora_train.core.types import LatentPair, Pair
from iclora_train.data.shards import ShardSample, ShardSet
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
    """The windows of the evaluation. Pixels and latents are read from the shards on demand."""

    def __init__(
        self, pairs: ShardSet, latents: ShardSet, samples: Sequence[ShardSample], sources: Sequence[str]
    ) -> None:
        self.windows = tuple(
            Window(i, sample.key, source, sample.bucket, partner)
            for i, (sample, source, partner) in enumerate(zip(samples, sources, partners(sources), strict=True))
        )
        self._pairs, self._latents = pairs, latents
        self._pair_row = {sample.key: i for i, sample in enumerate(pairs.samples)}
        self._latent_row = {sample.key: i for i, sample in enumerate(latents.samples)}

    @classmethod
    def open(cls, config: Config, base: BaseModel) -> HeldOut:
        """Open the shards under data.root.

        Raises ConfigError for shards of other settings or another base, too few windows, or train/test leakage.
        """
        root, split = Path(config.data.root), config.eval.split
        pairs, latents = ShardSet.open(root / "pairs"), ShardSet.open(root / "latents")
        latents.require_base(base.name, base.latent_fingerprints)
        for shards in (pairs, latents):
            shards.require_settings(config)
        require(
            latents.fingerprint["pairs"] == pairs.sha256,
            f"{latents.folder} was not made from {pairs.folder}: delete both and run data_prep again",
        )
        recording = recording_of_clips(pairs)
        samples = select_windows([latents.samples[i] for i in latents.indices(split)], recording, config.eval.windows)
        require(
            len(samples) == config.eval.windows,
            f"eval.windows={config.eval.windows}, but {root} holds {len(samples)} windows of split {split}: lower it, "
            "or prepare more with data.heldout_windows",
        )
        videos = {clip: source["video"] for clip, source in pairs.fingerprint["sources"].items()}
        identities = {clip: frozenset((clip, recording[clip], videos[clip])) for clip in recording}
        trained = {latents.samples[i].source for i in latents.indices("train")}
        check_leakage({sample.source for sample in samples}, trained, identities, split)
        sizes = {sample.bucket for sample in samples}
        require(len(sizes) == 1, f"{root}: held-out windows differ in size ({', '.join(sorted(sizes))})")
        held_out = cls(pairs, latents, samples, [recording[sample.source] for sample in samples])
        count = len(held_out.pair(held_out.windows[0]).references)
        require(count > 0, f"{pairs.folder}: its pairs have no reference, which eval needs: run data_prep again")
        return held_out

    def pair(self, window: Window) -> Pair:
        """The pair of a window, in pixels."""
        return self._pairs.read_pair(self._pair_row[window.key])

    def latents(self, window: Window) -> LatentPair:
        """The pair of a window as latents, with its text features."""
        return self._latents.read_latents(self._latent_row[window.key])

    def empty_text(self) -> Tensor:
        """Text features (T,D) of the empty caption."""
        return self._latents.empty_text()

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Latent size (f, h, w) of every target."""
        _, f, h, w = self.latents(self.windows[0]).target.shape
        return f, h, w

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Digests of the pair and latent shards, for the cache and for scores.json."""
        return {"pairs": digest(self._pairs.shards), "latents": digest(self._latents.shards)}


def recording_of_clips(pairs: ShardSet) -> dict[str, str]:
    """Clip -> the recording that it was cut from: `source` in the record of its first window, by default the clip."""
    first: dict[str, int] = {}
    for i, sample in enumerate(pairs.samples):
        first.setdefault(sample.source, i)
    return {clip: str(pairs.read_pair(i).record.get("source") or clip) for clip, i in first.items()}


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


def partners(sources: Sequence[str]) -> list[int]:
    """For every window, the number of a window of another recording, used by the swapped condition and the floor.

    Windows are sorted by recording. The k-th window of a recording gets the k-th window after that recording,
    cyclically. If all recordings have the same number of windows, the result is a permutation. Raises ConfigError for a
    single recording.
    """
    require(
        len(set(sources)) > 1,
        "data.clips: all held-out windows come from one recording; swapping references needs at least two",
    )
    order = sorted(range(len(sources)), key=lambda i: (sources[i], i))
    result = [0] * len(sources)
    for i in order:
        same_source = [j for j in order if sources[j] == sources[i]]
        after = order.index(same_source[-1]) + 1
        candidates = [j for j in order[after:] + order[:after] if sources[j] != sources[i]]
        result[i] = candidates[same_source.index(i) % len(candidates)]
    return result
