"""The shard format: writer, index and reader (`shard_sample` packs a single clip).

A shard set is a folder of WebDataset tars `<split>-<number>.tar` and an `index.json`. For each clip a tar holds
`<key>.json` and either videos (`<key>.target.mp4`, `<key>.reference0.mp4`: kind "pairs") or `<key>.latents.safetensors`
(kind "latents"). A file under its final name is complete, and the index is written last. Only safetensors, JSON and
video are read; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor

from iclora_train.config import Config
from iclora_train.core.atomic_files import sha256, write_atomic, write_json
from iclora_train.core.fingerprint import content_settings, digest, plain, settings_of_pixels
from iclora_train.core.records import as_type, from_json
from iclora_train.core.types import LatentPair, Pair
from iclora_train.data.shard_index import (
    FINGERPRINT_FILE,
    FORMAT,
    REMEDY,
    SHARED_FORMAT,
    Fingerprint,
    MadeFrom,
    ShardEntry,
    ShardError,
    ShardIndex,
    ShardSample,
    index_digest,
    read_index,
    require_equal,
    require_fingerprint,
)
from iclora_train.data.shard_sample import (
    ClipRecord,
    Members,
    latents_of,
    load_text_features,
    pair_of,
    previews_of,
    save_text_features,
    unpack_members,
)
from iclora_train.data.shard_scan import open_shard, scan_shard
from iclora_train.data.shared_streams import StreamPlace, read_stream, share_streams
from iclora_train.data.tar_members import FilePart, read_members, read_range

EMPTY_AUDIO_TEXT_FILE = "empty-audio.safetensors"  # the same of the audio stream, with data.sound
EMPTY_TEXT_FILE = "empty.safetensors"  # in latent sets: text features of the empty caption, for guidance


class ShardWriter:
    """Write a shard set, or continue an unfinished one. A killed run loses only the shard that it was writing.

    ShardError when the folder has shards with another fingerprint.
    """

    def __init__(self, folder: Path, kind: str, fingerprint: dict[str, Any]) -> None:
        self.folder, self.kind, self.fingerprint = folder, kind, plain(fingerprint)
        self._scanned: dict[str, tuple[ShardEntry, list[tuple[ShardSample, bool]]]] = {}
        self._written: set[str] = set()
        if not require_fingerprint(folder, fingerprint):
            write_json(folder / FINGERPRINT_FILE, self.fingerprint)

    def has(self, shard: str) -> bool:
        """Whether this shard is written. A written shard is complete."""
        return (self.folder / shard).exists()

    def write(self, shard: str, samples: Iterable[Members]) -> None:
        """Write one tar atomically; the same samples give the same bytes. A DiskFullError leaves no file behind."""
        with (
            write_atomic(self.folder / shard) as file,
            webdataset.TarWriter(file, encoder=False, mtime=0, user="", group="") as tar,
        ):
            for sample in share_streams(samples) if self.kind == "latents" else samples:
                tar.write(sample)
        self._written.add(shard)

    def write_empty_text(self, text: Tensor, audio: Tensor | None = None) -> None:
        """Write the text features (T,D) of the empty caption, so that guidance needs no text encoder when sampling.

        audio: (T,D'), those of the audio stream."""
        save_text_features(self.folder / EMPTY_TEXT_FILE, text)
        if audio is not None:
            save_text_features(self.folder / EMPTY_AUDIO_TEXT_FILE, audio)

    def finish(self, shards: list[str]) -> None:
        """Write the index from the contents of the tars.

        ShardError when a tar that an earlier run wrote differs from that run's index.
        """
        before = read_index(self.folder).shards if (self.folder / "index.json").exists() else {}
        index = self._index(shards)
        for shard in (before.keys() & index.shards.keys()) - self._written:
            if before[shard] != index.shards[shard]:
                raise ShardError(f"{self.folder / shard} is damaged: {REMEDY}")
        written = asdict(index)
        write_json(self.folder / "index.json", written | {"sha256": index_digest(written)})

    def unfinished(self, shards: list[str]) -> ShardSet:
        """A set of these written shards, before all shards are written."""
        return ShardSet(self.folder, self._index(shards))

    def _index(self, shards: list[str]) -> ShardIndex:
        for path in (self.folder / shard for shard in shards if shard not in self._scanned):
            scanned = list(scan_shard(path))
            self._scanned[path.name] = ShardEntry(len(scanned), path.stat().st_size, sha256(path)), scanned
        contents = [content for shard in shards for content in self._scanned[shard][1]]
        samples = [sample for sample, _ in contents]
        return ShardIndex(
            SHARED_FORMAT if any(shares for _, shares in contents) else FORMAT,
            self.kind,
            splits=dict(Counter(sample.split for sample in samples)),
            buckets=dict(Counter(sample.bucket for sample in samples)),
            shards={shard: self._scanned[shard][0] for shard in shards},
            fingerprint=Fingerprint(self.fingerprint, digest(self.fingerprint)),
            samples=samples,
        )


def expand_braces(pattern: str) -> list[str]:
    """The names that webdataset reads from a pattern such as `{000..123}.tar` or `{a,b}.tar`."""
    names: list[str] = webdataset.shardlists.expand_urls(pattern)
    return names


class ShardSet:
    """A shard set, read by sample number. Opening checks file sizes only; every read checks the checksum."""

    def __init__(self, folder: Path, index: ShardIndex) -> None:
        self.folder = folder
        self.kind, self.splits, self.buckets = index.kind, index.splits, index.buckets
        self.shards: dict[str, dict[str, Any]] = {name: asdict(entry) for name, entry in index.shards.items()}
        self.fingerprint, self.sha256 = index.fingerprint.of, index.fingerprint.sha256
        self.made_from = as_type(self.fingerprint, MadeFrom)
        self.samples = tuple(index.samples)

    @classmethod
    def open(cls, folder: Path | str) -> ShardSet:
        """Read the index and check the size of every shard. ShardError names the file and the remedy."""
        shards = cls(Path(folder), read_index(Path(folder)))
        for name, entry in shards.shards.items():
            path = shards.folder / name
            with open_shard(path) as file:
                size = file.seek(0, 2)
            if size != entry["bytes"]:
                raise ShardError(f"{path} has {size} bytes instead of {entry['bytes']}: {REMEDY}")
        return shards

    def verify(self) -> None:
        """Read every shard and compare its sha256. ShardError names the first damaged shard."""
        for name in self.shards:
            self.verify_shard(name)

    def verify_shard(self, name: str) -> None:
        """ShardError unless the sha256 of a shard is right."""
        path = self.folder / name
        open_shard(path).close()  # raises if it is not a file
        if sha256(path) != self.shards[name]["sha256"]:
            raise ShardError(f"{path} is damaged: {REMEDY}")

    def __len__(self) -> int:
        return len(self.samples)

    def indices(self, split: str) -> list[int]:
        """Sample numbers of a split, in the order of writing."""
        return [i for i, sample in enumerate(self.samples) if sample.split == split]

    def require_base(self, name: str, parts: dict[str, str]) -> None:
        """ShardError unless the parts of this base made these latents.

        Latents and text features are valid only for the VAE, connectors and text encoder that made them. parts: the
        fingerprint of each of these, by name. A part that the settings do not name is not compared.
        """
        made_by = self.made_from.base.parts
        if not made_by:
            raise ShardError(f"{self.folder} does not say which base made it: delete it and run data_prep again")
        for part in sorted(made_by.keys() & parts.keys()):
            if made_by[part] != parts[part]:
                raise ShardError(
                    f"{self.folder} was made by another base: its {part} ({made_by[part][:12]}) differs from "
                    f"{name}'s ({parts[part][:12]}): delete it and run data_prep again, or set another data.root or "
                    "model.checkpoint"
                )

    def require_settings(self, config: Config) -> None:
        """ShardError unless data_prep would make these shards with the `task` and `data` sections of this config."""
        settings = content_settings(config)
        expected = settings_of_pixels(settings) if self.kind == "pairs" else settings
        require_equal(self.folder, self.made_from.settings, expected)

    def caption(self, i: int) -> str:
        """The caption of sample i. Its videos or latents are not read."""
        return self.record(i).caption

    def record(self, i: int) -> ClipRecord:
        """`<key>.json` of sample i. Its videos or latents are not read."""
        sample = self.samples[i]
        with self._damage(sample), open_shard(self.folder / sample.shard) as file:
            members = read_members(FilePart(file, sample.offset, sample.size), whole=False)
            record = next(member for member in members if member.name == f"{sample.key}.json")
            return from_json(read_range(file, sample.offset + record.data, record.size), ClipRecord)

    def empty_text(self, file: str = EMPTY_TEXT_FILE) -> Tensor:
        """Features (T,D) of the empty caption, fp32; with EMPTY_AUDIO_TEXT_FILE those of the audio stream."""
        path = self.folder / file
        if not path.exists():
            raise ShardError(f"{path} is missing: {REMEDY}")
        try:
            return load_text_features(path)
        except (OSError, ValueError) as error:
            raise ShardError(f"{path} is damaged ({error}): {REMEDY}") from error

    def read_pair(self, i: int) -> Pair:
        """Read sample i of a set of kind "pairs". ShardError when its checksum is wrong, or its pixels are not kept."""
        sample = self.samples[i]
        with self._damage(sample, "pairs"):
            record, members = self._read(i)
            if record.keep:
                raise ShardError(
                    f"{self.folder / sample.shard} was made with data.keep={record.keep}: it has no lossless pixels of "
                    f"{sample.key}. To make them, delete {self.folder} and run data_prep with data.keep=lossless; the "
                    "latents stay"
                )
            return pair_of(sample.key, record, members)

    def read_previews(self, i: int) -> dict[str, np.ndarray]:
        """The previews of sample i of a set of kind "pairs": uint8 RGB (F,h,w,3) by stream, none with keep=none."""
        with self._damage(self.samples[i], "pairs"):
            return previews_of(self._read(i)[1])

    def has_pixels(self) -> bool:
        """Whether the lossless pixels of all pairs are kept."""
        return not any(self.record(i).keep for i in range(len(self)))

    def read_latents(self, i: int, dtype: torch.dtype = torch.float32) -> LatentPair:
        """Read sample i of a set of kind "latents". ShardError when its checksum is wrong."""
        sample = self.samples[i]
        with self._damage(sample, "latents"):
            record, members = self._read(i)
            shared = {name: self._read_shared(sample.shard, place) for name, place in record.shared.items()}
            return latents_of(sample.key, record, members, shared, dtype)

    def _read_shared(self, shard: str, place: StreamPlace) -> Tensor:
        """A stream that a sample of this shard holds for others."""
        holder = self._by_key.get((shard, place.sample))
        if holder is None:
            raise ValueError(f"it shares a stream with {place.sample[:60]!r}, which the shard does not have")
        with open_shard(self.folder / shard) as file:
            return read_stream(file, holder.offset, holder.size, place)

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], ShardSample]:
        """The samples by shard and key."""
        return {(sample.shard, sample.key): sample for sample in self.samples}

    def _read(self, i: int) -> tuple[ClipRecord, dict[str, memoryview]]:
        """The record and the media (by extension) of sample i."""
        sample = self.samples[i]
        with open_shard(self.folder / sample.shard) as file:
            data = read_range(file, sample.offset, sample.size)
        if zlib.crc32(data) != sample.crc32:
            raise ValueError("its checksum is wrong")
        members = unpack_members(memoryview(data), sample.key)
        return from_json(bytes(members.pop("json", b"")), ClipRecord), members

    @contextlib.contextmanager
    def _damage(self, sample: ShardSample, kind: str | None = None) -> Iterator[None]:
        """Raise ShardError for everything that can be wrong with the bytes of a sample, or with the kind of the set."""
        if kind not in (None, self.kind):
            raise ShardError(f"{self.folder} holds {self.kind}, not {kind}: {REMEDY}")
        try:
            yield
        except ShardError:
            raise
        except (ValueError, OSError, StopIteration) as error:
            path = self.folder / sample.shard
            raise ShardError(f"{path} is damaged at sample {sample.key} ({error}): {REMEDY}") from error
