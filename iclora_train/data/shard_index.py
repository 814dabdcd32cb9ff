"""The JSON files of a shard set: index.json, read by type and compared with itself, and fingerprint.json."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iclora_train.config import ConfigError
from iclora_train.core.atomic_files import write_json
from iclora_train.core.fingerprint import differences, digest, plain
from iclora_train.core.records import (
    Bucket,
    Count,
    DamagedFileError,
    FileName,
    PositiveCount,
    Sha256,
    Text,
    as_type,
    read_json,
)

FORMAT = 2
SHARED_FORMAT = 3  # as 2, with streams that several samples share; version 0.1 reads only 2
FINGERPRINT_FILE = "fingerprint.json"
KINDS = ("pairs", "latents")
REMEDY = "delete it and run data_prep again (complete shards are kept)"


class ShardError(ConfigError):
    """A shard set is damaged, unfinished, or was made with another base or other settings. Names file and remedy."""


@dataclass(frozen=True)
class ShardSample:
    """Location of a clip: `size` bytes at `offset` of the tar `shard`, with a checksum.

    `source` is the video that the clip was cut from. Samples of one `bucket` (width x height x frames) can share a
    batch.
    """

    key: Text
    split: Text
    shard: FileName
    offset: Count
    size: PositiveCount
    crc32: Count
    bucket: Bucket
    source: Text


@dataclass(frozen=True)
class ShardEntry:
    """What the index says about a tar: its samples, bytes and checksum."""

    count: Count
    bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class BaseParts:
    """The entry `base` of a fingerprint: a digest of each part of the base that made the latents."""

    parts: dict[Text, Text] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The entry of a clip in a fingerprint, as far as it is read: the digest of its video."""

    video: Text = ""


@dataclass(frozen=True)
class ChangedSplits:
    """The entry `splits` of a fingerprint, as far as it is read: recordings in train and in heldout on purpose."""

    shared: list[Text] = field(default_factory=list)


@dataclass(frozen=True)
class MadeFrom:
    """The entries of a fingerprint that are read: settings, base, digest of the pairs, sources, splits."""

    settings: dict[str, Any] = field(default_factory=dict)
    base: BaseParts = field(default_factory=BaseParts)
    pairs: Text = ""
    sources: dict[Text, Source] = field(default_factory=dict)
    splits: ChangedSplits = field(default_factory=ChangedSplits)


@dataclass(frozen=True)
class Fingerprint:
    """A fingerprint with its digest."""

    of: dict[str, Any]
    sha256: Sha256


@dataclass(frozen=True)
class ShardIndex:
    """The content of index.json. `sha256` is the digest of the other entries; indexes of version 0.1 have none."""

    format: Count
    kind: Text
    splits: dict[Text, Count]
    buckets: dict[Text, Count]
    shards: dict[FileName, ShardEntry]
    fingerprint: Fingerprint
    samples: list[ShardSample]
    sha256: Text | None = None


def index_digest(index: dict[str, Any]) -> str:
    """Digest of an index without its entry `sha256`."""
    return digest({name: value for name, value in index.items() if name != "sha256"})


def read_index(folder: Path) -> ShardIndex:
    """Read the index of a shard set. ShardError when it is missing, damaged or of another format."""
    path = folder / "index.json"
    if not path.exists():
        raise ShardError(f"{folder} holds no finished shard set (no index.json): run data_prep")
    raw = read_json(path, dict[str, Any], REMEDY, ShardError)
    if raw.get("format", FORMAT) not in (FORMAT, SHARED_FORMAT):
        version = str(raw["format"])[:20]
        known = f"{FORMAT} or {SHARED_FORMAT}"
        raise ShardError(f"{path} has format {version}, not {known}: delete {folder} and run data_prep again")
    try:
        index = as_type(raw, ShardIndex)
        as_type(index.fingerprint.of, MadeFrom)
    except ValueError as error:
        raise ShardError(f"{path} is damaged ({error}): {REMEDY}") from error
    problem = _contradiction(index)
    if problem is None and index.sha256 not in (None, index_digest(raw)):
        problem = "is damaged (its checksum is wrong)"
    if problem:
        raise ShardError(f"{path} {problem}: {REMEDY}")
    return index


def _contradiction(index: ShardIndex) -> str | None:
    """Where the index disagrees with itself."""
    if index.kind not in KINDS:
        return f"is damaged (kind {index.kind[:20]!r} is not one of {', '.join(KINDS)})"
    for sample in index.samples:
        entry = index.shards.get(sample.shard)
        if entry is None or sample.offset + sample.size > entry.bytes or sample.split != split_of(sample.shard):
            return f"is damaged (sample {sample.key[:60]!r} does not lie in its shard)"
    counts = [Counter(getattr(s, name) for s in index.samples) for name in ("split", "bucket", "shard")]
    if [index.splits, index.buckets] != counts[:2]:
        return "counts other samples than it lists"
    if any(entry.count != counts[2][name] for name, entry in index.shards.items()):
        return "lists other samples than its shards have"
    if digest(index.fingerprint.of) != index.fingerprint.sha256:
        return "is damaged (its fingerprint has another checksum)"
    return None


def is_written(root: Path, shard: str) -> bool:
    """Whether both the pairs and the latents of a shard are written below data.root."""
    return all((root / kind / shard).exists() for kind in KINDS)


def split_of(shard: str) -> str:
    """The split of a shard, from its name `<split>-<number>.tar`."""
    return shard.rsplit("-", 1)[0]


def begun_with(folder: Path) -> dict[str, Any] | None:
    """The fingerprint with which a shard set was begun; None if there is none. DamagedFileError if it is damaged.

    A fingerprint.json that is damaged or missing is replaced by the copy in index.json.
    """
    path, index = folder / FINGERPRINT_FILE, folder / "index.json"
    try:
        if path.exists():
            return read_json(path, dict[str, Any], f"delete {folder} and run data_prep again")
    except DamagedFileError:
        if not index.exists():
            raise
    if not index.exists():
        return None
    begun = read_index(folder).fingerprint.of
    write_json(path, begun)
    return begun


def require_fingerprint(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """ShardError if `folder` was begun with another fingerprint. Returns whether it was begun with this one."""
    try:
        begun = begun_with(folder)
    except DamagedFileError as error:
        raise ShardError(str(error)) from error
    if begun is not None:
        require_equal(folder, begun, plain(fingerprint))
    elif tar := next(folder.glob("*.tar"), None):
        if (folder / FINGERPRINT_FILE).exists():  # by a process that has begun the set meanwhile
            return require_fingerprint(folder, fingerprint)
        raise ShardError(
            f"{tar} has no {FINGERPRINT_FILE} with the settings that made it: delete {folder} and run data_prep again"
        )
    return begun is not None


def require_equal(folder: Path, old: object, new: object) -> None:
    """ShardError unless the fingerprints are equal; names the first three differences."""
    changed = differences(old, new)
    if changed:
        first = "; ".join(changed[:3])
        raise ShardError(f"{folder} holds shards of other settings ({first}): delete it or set another data.root")
