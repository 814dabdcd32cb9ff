"""Which held-out windows are judged: evenly over recordings, never of one that was trained on.

Clips may be cuts of one recording (one shot in two croppings, say). What counts as a source here is the recording.
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
    """One held-out window: its place among those judged, the recording it is from, the place of its partner."""

    number: int
    key: str
    source: str
    bucket: str
    partner: int

    @property
    def mask_left(self) -> bool:
        """Which half the half-frame mask keeps: left for even windows, right for odd ones."""
        return self.number % 2 == 0


class HeldOut:
    """The windows that are judged, with their pixels and latents read from the shards when they are asked for."""

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
        """From the shards under data.root. ConfigError: other settings or base, too few windows, leakage."""
        root, split = Path(config.data.root), config.eval.split
        pairs, latents = ShardSet.open(root / "pairs"), ShardSet.open(root / "latents")
        latents.require_base(base.name, base.latent_fingerprints)
        for shards in (pairs, latents):
            shards.require_settings(config)
        require(
            latents.fingerprint["pairs"] == pairs.sha256,
            f"{latents.folder} was not made from {pairs.folder}: delete both and run data_prep again",
        )
        recording = recordings(pairs)
        samples = select_windows([latents.samples[i] for i in latents.indices(split)], recording, config.eval.windows)
        require(
            len(samples) == config.eval.windows,
            f"eval.windows={config.eval.windows}, but {root} holds {len(samples)} windows of split {split}: lower it, "
            "or prepare more with data.heldout_windows",
        )
        videos = {clip: facts["video"] for clip, facts in pairs.fingerprint["sources"].items()}
        known = {clip: frozenset((clip, recording[clip], videos[clip])) for clip in recording}
        trained = {latents.samples[i].source for i in latents.indices("train")}
        check_leakage({sample.source for sample in samples}, trained, known, split)
        sizes = {sample.bucket for sample in samples}
        require(len(sizes) == 1, f"{root}: held-out windows differ in size ({', '.join(sorted(sizes))})")
        held = cls(pairs, latents, samples, [recording[sample.source] for sample in samples])
        given = len(held.pair(held.windows[0]).references)
        require(given > 0, f"{pairs.folder}: its pairs have no reference, and judging needs one: run data_prep again")
        return held

    def pair(self, window: Window) -> Pair:
        """The window in pixels."""
        return self._pairs.read_pair(self._pair_row[window.key])

    def latents(self, window: Window) -> LatentPair:
        """The window in latents, with its text."""
        return self._latents.read_latents(self._latent_row[window.key])

    def empty_text(self) -> Tensor:
        """Features (T,D) of the empty caption."""
        return self._latents.empty_text()

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """(f, h, w) of every target."""
        _, f, h, w = self.latents(self.windows[0]).target.shape
        return f, h, w

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identity of the latents' bytes, for the cache and scores.json."""
        return {"pairs": digest(self._pairs.shards), "latents": digest(self._latents.shards)}


def recordings(pairs: ShardSet) -> dict[str, str]:
    """Clip -> the recording it was cut from, as its first window's record tells; without one it stands for itself."""
    first: dict[str, int] = {}
    for i, sample in enumerate(pairs.samples):
        first.setdefault(sample.source, i)
    return {clip: str(pairs.read_pair(i).record.get("source") or clip) for clip, i in first.items()}


def select_windows(samples: Sequence[ShardSample], recording: Mapping[str, str], count: int) -> list[ShardSample]:
    """`count` samples, or all there are, as many from every recording as can be, ordered by recording.

    Within a recording they are taken evenly from its windows in the order they were cut.
    """
    cut_from: dict[str, list[ShardSample]] = defaultdict(list)
    for sample in samples:
        cut_from[recording[sample.source]].append(sample)
    turns = chain.from_iterable(zip_longest(*(cut_from[name] for name in sorted(cut_from))))
    share = Counter(recording[sample.source] for sample in islice((s for s in turns if s is not None), count))
    return [
        cut_from[name][(2 * j + 1) * len(cut_from[name]) // (2 * share[name])]
        for name in sorted(cut_from)
        for j in range(share[name])
    ]


def check_leakage(judged: Set[str], trained: Set[str], known: Mapping[str, frozenset[str]], split: str) -> None:
    """ConfigError when a clip that is judged was also trained on: itself, a copy of its file, or its recording.

    known: clip -> all that identifies it (its name, its recording, the sha256 of its file).
    """
    seen = frozenset().union(*(known[clip] for clip in trained))
    leaked = sorted(clip for clip in judged if known[clip] & seen)
    require(
        not leaked,
        f"leakage: {', '.join(leaked[:3])} of split {split} ({len(leaked)} clips in all), or their recordings, are "
        "also in split train; figures on them would prove nothing. Give each recording one split in data.clips and run "
        "data_prep again",
    )


def partners(sources: Sequence[str]) -> list[int]:
    """For every window one of another recording: what swapped and shuffled mean. A fixed choice, no draw.

    The k-th window of a source gets the k-th of the windows that follow that source, in a circle; with sources of
    equal counts that is a permutation. ConfigError when there is only one recording.
    """
    require(len(set(sources)) > 1, "data.clips: held-out windows come from one recording; swapping needs at least two")
    order = sorted(range(len(sources)), key=lambda i: (sources[i], i))
    result = [0] * len(sources)
    for i in order:
        own = [j for j in order if sources[j] == sources[i]]
        after = order.index(own[-1]) + 1
        others = [j for j in order[after:] + order[:after] if sources[j] != sources[i]]
        result[i] = others[own.index(i) % len(others)]
    return result
