"""Several finished shard sets as one: `data.sources`.

The windows of all sources have one numbering, so batches, validation and evaluation read a mixture as they read a
single set. Keys and clip ids begin with the name of the source. `batch_sampler` draws by the shares of the sources.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclora_train.config import Config, ConfigError, require
from iclora_train.config.no_reference import NO_REFERENCE
from iclora_train.config.sources import DataSource
from iclora_train.core.fingerprint import content_settings, digest
from iclora_train.core.groups import connected
from iclora_train.core.types import LatentPair, Pair
from iclora_train.data.recordings import declared_recordings
from iclora_train.data.shard_index import FORMAT, Fingerprint, ShardEntry, ShardIndex, ShardSample, read_index
from iclora_train.data.shard_sample import ClipRecord
from iclora_train.data.shards import EMPTY_TEXT_FILE, ShardSet

# entries of `task` that all sources of an adapter share: positions and times of reference tokens depend on them
SHARED_KEYS = ("reference_downscale", "reference_temporal_scale", "reference_frames", "reference_frame")
_MAX_NAMED = 3  # recordings that a note names


@dataclass(frozen=True)
class Part:
    """One source of a mixture: its settings, its shards, the folder that holds them, and the digest of each video."""

    source: DataSource
    root: Path
    shards: ShardSet
    videos: Mapping[str, str]

    def id(self, name: str) -> str:
        """The key of a sample, or the id of a clip, in the mixture. A source's name has no `-`."""
        return f"{self.source.label}-{name}"


class Mixture(ShardSet):
    """The windows of several shard sets of one kind, by sample number.

    parts: the sources, by name. places: (number of the part, sample number in it) of each sample. recordings: of each
    clip; clips of one recording, or with equal files, have one recording, in whichever sources they are. Train windows
    of a recording that is in val or heldout of any source are left out; `notes` says how many. Preparation has divided
    the only recording of a source on purpose (`ChangedSplits.shared`): its windows stay.
    """

    def __init__(self, folder: Path, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.recordings = joined_recordings(self.parts)
        samples = [
            (replace(sample, key=part.id(sample.key), source=part.id(sample.source)), (number, i))
            for number, part in enumerate(self.parts)
            for i, sample in enumerate(part.shards.samples)
        ]
        heldout = {self.recordings[sample.source] for sample, _ in samples if sample.split != "train"}
        divided = [(part.id(name), name) for part in self.parts for name in part.shards.made_from.splits.shared]
        shared = {self.recordings.get(clip, name) for clip, name in divided}
        heldout -= shared
        left_out = [s for s, _ in samples if s.split == "train" and self.recordings[s.source] in heldout]
        keys = {sample.key for sample in left_out}
        kept = [(sample, place) for sample, place in samples if sample.key not in keys]
        self.places = tuple(place for _, place in kept)
        self.notes = _notes(left_out, self.recordings)
        super().__init__(folder, _index(self.parts, [sample for sample, _ in kept], sorted(keys), shared))

    def verify_shard(self, name: str) -> None:
        label, _, shard = name.partition("/")
        next(part for part in self.parts if part.source.label == label).shards.verify_shard(shard)

    def require_base(self, name: str, parts: dict[str, str]) -> None:
        """ShardError, which names the folder, unless this base made the latents of every source."""
        for part in self.parts:
            part.shards.require_base(name, parts)

    def require_settings(self, config: Config) -> None:
        """ConfigError unless every source fits these settings, and the sources fit one another.

        Sources with `clips` were made with exactly these settings; those with `root` may differ in all but SHARED_KEYS.
        """
        expected = content_settings(config)["task"]
        for part in self.parts:
            if part.source.clips is not None:
                part.shards.require_settings(source_config(config, part.source))
                continue
            task = part.shards.made_from.settings.get("task", {})
            for key in SHARED_KEYS:
                require(
                    task.get(key) == expected.get(key),
                    f"data.sources: {part.root} was made with task.{key}={task.get(key)}, and this run has "
                    f"{expected.get(key)}: set task.{key}={task.get(key)}, or prepare it again with this run's value",
                )
            has_masks = "data_mask" in task or "data_mask" not in expected
            require(has_masks, f"data.sources: {part.root} has no masks for task.conditions: prepare it again")
            with_reference = task.get("maker") != NO_REFERENCE
            require(
                with_reference == config.task.has_reference,
                f"data.sources: {part.root} has {'references' if with_reference else 'no reference'}, made with "
                f"task.maker={task.get('maker')}, and this run has task.maker={config.task.maker}: choose sources of "
                "one kind",
            )
        if self.kind == "latents":
            _require_same_shapes(self)

    def record(self, i: int) -> ClipRecord:
        """`<key>.json` of sample i, with its recording in this mixture."""
        number, local = self.places[i]
        record, clip = self.parts[number].shards.record(local), self.samples[i].source
        return replace(record, source=clip, record={**record.record, "source": self.recordings[clip]})

    def empty_text(self, file: str = EMPTY_TEXT_FILE) -> Tensor:
        """Features (T,D) of the empty caption, fp32. All sources have those of one base."""
        return self.parts[0].shards.empty_text(file)

    def read_pair(self, i: int) -> Pair:
        number, local = self.places[i]
        return replace(self.parts[number].shards.read_pair(local), key=self.samples[i].key)

    def read_latents(self, i: int, dtype: torch.dtype = torch.float32) -> LatentPair:
        number, local = self.places[i]
        return replace(self.parts[number].shards.read_latents(local, dtype), key=self.samples[i].key)


def source_config(config: Config, source: DataSource) -> Config:
    """The settings that prepare a source with `clips` alone."""
    assert source.clips is not None
    data = replace(config.data, sources=None, clips=source.clips, references=source.references)
    return replace(config, data=replace(data, root=config.data.root_of(source)))


def open_data(config: Config, kind: str) -> ShardSet:
    """The shard set of a run: `pairs` or `latents` of data.root, or the mixture of data.sources.

    ShardError as in `ShardSet.open`; ConfigError if two sources are one folder.
    """
    data = config.data
    if data.sources is None:
        return ShardSet.open(Path(data.root, kind))
    roots = [Path(root) for root in data.roots()]
    repeated = [path for path, count in Counter(root.resolve() for root in roots).items() if count > 1]
    require(
        not repeated, f"data.sources: two sources are the folder {repeated[:1]}: name it once, with a higher weight"
    )
    parts = [
        Part(source, root, ShardSet.open(root / kind), video_digests(root / "pairs"))
        for source, root in zip(data.sources, roots, strict=True)
    ]
    mixture = Mixture(Path(data.root), parts)
    require(
        mixture.splits.get("train", 0) > 0,
        f"data.sources: no train windows are left ({'; '.join(mixture.notes) or 'the sources have none'})",
    )
    return mixture


def describe(shards: ShardSet) -> list[str]:
    """Lines about the sources of a mixture, and about windows that are left out; none for a single set."""
    if not isinstance(shards, Mixture):
        return []
    counts = Counter(shards.places[i][0] for i in shards.indices("train"))
    names = [
        f"{part.source.label} ({part.source.share}, {counts[number]} windows)"
        for number, part in enumerate(shards.parts)
    ]
    return [f"sources: {', '.join(names)}", *(f"note: {note}" for note in shards.notes)]


def source_metadata(shards: ShardSet) -> dict[str, str]:
    """Entries of an adapter's metadata about the sources of a mixture: their shares, windows and triggers; the
    commonest size of their train windows; their rate, if they have one. None for a single set."""
    if not isinstance(shards, Mixture):
        return {}
    train = shards.indices("train")
    counts = Counter(shards.places[i][0] for i in train)
    texts = []
    rates = set()
    for number, part in enumerate(shards.parts):
        settings = part.shards.made_from.settings
        trigger = settings.get("task", {}).get("trigger")
        rates.add(settings.get("data", {}).get("fps"))
        triggered = f", trigger {trigger}" if trigger else ""
        texts.append(f"{part.source.label} ({part.source.share}, {counts[number]} windows{triggered})")
    rate = rates.pop() if len(rates) == 1 else None
    size = Counter(shards.samples[i].bucket for i in train).most_common(1)[0][0]
    return {"sources": "; ".join(texts), "size": size, "fps": str(rate or "of the clips")}


def video_digests(pairs: Path) -> dict[str, str]:
    """Clip -> sha256 of its file, from the index of the pairs; empty if the pairs were not copied to this machine."""
    if not (pairs / "index.json").exists():
        return {}
    sources: Mapping[str, Mapping[str, Any]] = read_index(pairs).fingerprint.of.get("sources", {})
    return {clip: str(entry.get("video", "")) for clip, entry in sources.items()}


def joined_recordings(parts: Sequence[Part]) -> dict[str, str]:
    """The recording of each clip of all parts, by its id in the mixture.

    Clips with the same `source` in their list, or with equal files, are joined. The name of a joined recording is the
    `source`, or the first of its clips.
    """
    declared: dict[str, str] = {}
    links: list[tuple[str, str]] = []
    for part in parts:
        for clip, recording in declared_recordings(part.shards).items():
            name = part.id(clip)
            declared[name] = recording
            video = part.videos.get(clip, "")
            for kind, value in (("recording", recording), ("video", video)):
                if value and value != "missing":
                    links.append((f"{kind} {value}", name))  # no clip's name: those are <source>-<id>
    return {
        name: min((declared[clip] for clip in clips if declared[clip]), default=clips[0])
        for clips in connected(sorted(declared), links)
        for name in clips
    }


def _notes(left_out: Sequence[ShardSample], recordings: Mapping[str, str]) -> list[str]:
    if not left_out:
        return []
    names = sorted({recordings[sample.source] for sample in left_out})
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    counts = Counter(sample.key.partition("-")[0] for sample in left_out)
    windows = ", ".join(f"{count} of {name}" for name, count in counts.items())
    return [
        f"train windows are left out ({windows}), because their recordings are held out, in the same source or in "
        f"another: {', '.join(names[:_MAX_NAMED])}{more}"
    ]


def _index(
    parts: Sequence[Part], samples: list[ShardSample], left_out: list[str], shared: Collection[str]
) -> ShardIndex:
    """The index of a mixture. Latents that were made from pairs name the digest that the mixture of the pairs has."""
    kinds = {part.shards.kind for part in parts}
    if len(kinds) > 1:
        raise ConfigError(
            f"data.sources: {parts[0].root} and others hold different kinds of shards: prepare them again"
        )
    kind = kinds.pop()
    by_name = {part.source.label: part for part in parts}
    of = {
        "base": asdict(parts[0].shards.made_from.base),
        "pairs": digest({name: part.shards.made_from.pairs for name, part in by_name.items()}),
        "splits": {"shared": sorted(shared)},
        "sources": {part.id(clip): {"video": video} for part in parts for clip, video in part.videos.items()},
    }
    sha256 = digest({name: part.shards.sha256 for name, part in by_name.items()})
    if kind == "latents" and left_out:
        sha256 = digest([sha256, left_out])
    return ShardIndex(
        FORMAT,
        kind,
        splits=dict(Counter(sample.split for sample in samples)),
        buckets=dict(Counter(sample.bucket for sample in samples)),
        shards={
            f"{name}/{shard}": ShardEntry(**entry)
            for name, part in by_name.items()
            for shard, entry in part.shards.shards.items()
        },
        fingerprint=Fingerprint(of, sha256),
        samples=samples,
    )


def _require_same_shapes(mixture: Mixture) -> None:
    """ConfigError if windows of one size differ between sources in the number or sizes of their references."""
    first: dict[str, dict[int, int]] = defaultdict(dict)  # bucket -> number of a part -> its first window
    for i, sample in enumerate(mixture.samples):
        first[sample.bucket].setdefault(mixture.places[i][0], i)
    for bucket, windows in first.items():
        if len(windows) < 2:
            continue
        shapes = {number: _shapes(mixture.read_latents(i, torch.float16)) for number, i in windows.items()}
        (first_part, expected), *others = shapes.items()
        for part, actual in others:
            require(
                actual == expected,
                f"data.sources: windows of {bucket} have references of {_text(expected)} latents in "
                f"{mixture.parts[first_part].root}, and of {_text(actual)} in {mixture.parts[part].root}: batches need "
                "equal references. Prepare one of them again, or with other sizes (data.buckets)",
            )


def _shapes(pair: LatentPair) -> list[tuple[int, ...]]:
    return [tuple(latent.shape[1:]) for latent in pair.references]


def _text(shapes: Iterable[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes) or "no"
