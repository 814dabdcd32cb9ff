"""The shard format: writer, index and reader (`shard_sample` packs a single clip).

A shard set is a folder of WebDataset tars `<split>-<number>.tar` and an `index.json`. For each clip a tar holds
`<key>.json` and either videos (`<key>.target.mp4`, `<key>.reference0.mp4`: kind "pairs") or `<key>.latents.safetensors`
(kind "latents"). A file under its final name is complete, and the index is written last. Only safetensors, JSON and
video are read; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import webdataset
from torch import Tensor

from iclora_train.config import Config, ConfigError
from iclora_train.core.atomic_files import sha256, write_atomic
from iclora_train.core.fingerprint import content_settings, differences, digest, plain
from iclora_train.core.types import LatentPair, Pair
from iclora_train.data.shard_sample import (
    Members,
    load_fp16,
    load_text_features,
    reference_names,
    save_text_features,
    unpack_members,
)
from iclora_train.media.shard_clip import decode_clip

FORMAT = 2
EMPTY_TEXT_FILE = "empty.safetensors"  # in latent sets: text features of the empty caption, for guidance
FINGERPRINT_FILE = "fingerprint.json"
REMEDY = "delete it and run data_prep again (complete shards are kept)"


class ShardError(ConfigError):
    """A shard set is damaged, unfinished, or was made with another base or other settings. Names file and remedy."""


@dataclass(frozen=True)
class ShardSample:
    """Location of a clip: `size` bytes at `offset` of the tar `shard`, with a checksum.

    `source` is the video that the clip was cut from. Samples of one `bucket` (width x height x frames) can share a
    batch.
    """

    key: str
    split: str
    shard: str
    offset: int
    size: int
    crc32: int
    bucket: str
    source: str


class ShardWriter:
    """Write a shard set, or continue an unfinished one. A killed run loses only the shard that it was writing.

    ShardError when the folder has shards with another fingerprint.
    """

    def __init__(self, folder: Path, kind: str, fingerprint: dict[str, Any]) -> None:
        self.folder, self.kind, self.fingerprint = folder, kind, plain(fingerprint)
        self._scanned: dict[str, tuple[dict[str, Any], list[ShardSample]]] = {}  # shard -> index entry, samples
        if not require_fingerprint(folder, fingerprint):
            _write_json(folder / FINGERPRINT_FILE, self.fingerprint)

    def has(self, shard: str) -> bool:
        """Whether this shard is written. A written shard is complete."""
        return (self.folder / shard).exists()

    def write(self, shard: str, samples: Iterable[Members]) -> None:
        """Write one tar atomically; the same samples give the same bytes. A DiskFullError leaves no file behind."""
        with (
            write_atomic(self.folder / shard) as file,
            webdataset.TarWriter(file, encoder=False, mtime=0, user="", group="") as tar,
        ):
            for sample in samples:
                tar.write(sample)

    def write_empty_text(self, text: Tensor) -> None:
        """Write the text features (T,D) of the empty caption, so that guidance needs no text encoder when sampling."""
        save_text_features(self.folder / EMPTY_TEXT_FILE, text)

    def finish(self, shards: list[str]) -> None:
        """Write the index from the contents of the tars. ShardError when a tar differs from an earlier index."""
        before = _read_index(self.folder)["shards"] if (self.folder / "index.json").exists() else {}
        index = self._index(shards)
        for shard in before.keys() & index["shards"].keys():
            if before[shard] != index["shards"][shard]:
                raise ShardError(f"{self.folder / shard} is damaged: {REMEDY}")
        _write_json(self.folder / "index.json", index)

    def unfinished(self, shards: list[str]) -> ShardSet:
        """A set of these written shards, before all shards are written."""
        return ShardSet(self.folder, self._index(shards))

    def _index(self, shards: list[str]) -> dict[str, Any]:
        for path in (self.folder / shard for shard in shards if shard not in self._scanned):
            contents = list(_scan(path))
            entry = {"count": len(contents), "bytes": path.stat().st_size, "sha256": sha256(path)}
            self._scanned[path.name] = entry, contents
        samples = [sample for shard in shards for sample in self._scanned[shard][1]]
        return {
            "format": FORMAT,
            "kind": self.kind,
            "splits": Counter(sample.split for sample in samples),
            "buckets": Counter(sample.bucket for sample in samples),
            "shards": {shard: self._scanned[shard][0] for shard in shards},
            "fingerprint": {"of": self.fingerprint, "sha256": digest(self.fingerprint)},
            "samples": [asdict(sample) for sample in samples],
        }


def require_fingerprint(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """ShardError if `folder` was begun with another fingerprint. Returns whether it was begun with this one."""
    path = folder / FINGERPRINT_FILE
    if path.exists():
        _require_equal(folder, json.loads(path.read_text()), plain(fingerprint))
    return path.exists()


def _require_equal(folder: Path, old: object, new: object) -> None:
    """ShardError unless the fingerprints are equal; names the first three differences."""
    changed = differences(old, new)
    if changed:
        first = "; ".join(changed[:3])
        raise ShardError(f"{folder} holds shards of other settings ({first}): delete it or set another data.root")


def _write_json(path: Path, value: object) -> None:
    with write_atomic(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def _scan(path: Path) -> Iterator[ShardSample]:
    """The samples of a tar in order: runs of members with the same key. ShardError when the tar cannot be read."""
    runs: dict[str, tuple[int, int, dict[str, Any]]] = {}  # key -> offset, end, metadata
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                start, _, metadata = runs.get(key, (member.offset, 0, {}))
                file = tar.extractfile(member)
                assert file is not None
                runs[key] = start, tar.offset, json.load(file) if extension == "json" else metadata
        for key, (start, end, metadata) in runs.items():
            crc = zlib.crc32(_read_range(path, start, end - start))
            split = path.name.rsplit("-", 1)[0]
            yield ShardSample(key, split, path.name, start, end - start, crc, metadata["bucket"], metadata["source"])
    except (tarfile.TarError, ValueError, KeyError) as error:
        raise ShardError(f"{path} is damaged ({error}): {REMEDY}") from error


def _read_range(path: Path, offset: int, size: int) -> bytearray:
    data = bytearray(size)
    with path.open("rb") as file:
        file.seek(offset)
        return data if file.readinto(data) == size else bytearray()


def _read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a shard set. ShardError when it is missing, damaged or of another format."""
    path = folder / "index.json"
    if not path.exists():
        raise ShardError(f"{folder} holds no finished shard set (no index.json): run data_prep")
    try:
        index = json.loads(path.read_text())
        version = index["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is damaged: {REMEDY}") from error
    if version != FORMAT:
        raise ShardError(f"{path} has format {version}, not {FORMAT}: delete {folder} and run data_prep again")
    return index


class ShardSet:
    """A shard set, read by sample number. Opening checks file sizes only; every read checks the checksum."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self.kind: str = index["kind"]
        self.splits: dict[str, int] = index["splits"]
        self.buckets: dict[str, int] = index["buckets"]
        self.shards: dict[str, dict[str, Any]] = index["shards"]
        self.fingerprint: dict[str, Any] = index["fingerprint"]["of"]
        self.sha256: str = index["fingerprint"]["sha256"]
        self.samples = tuple(ShardSample(**sample) for sample in index["samples"])

    @classmethod
    def open(cls, folder: Path | str) -> ShardSet:
        """Read the index and check the size of every shard. ShardError names the file and the remedy."""
        shards = cls(Path(folder), _read_index(Path(folder)))
        for name, entry in shards.shards.items():
            path = shards.folder / name
            if not path.exists():
                raise ShardError(f"{path} is missing: run data_prep again")
            if path.stat().st_size != entry["bytes"]:
                raise ShardError(f"{path} has {path.stat().st_size} bytes instead of {entry['bytes']}: {REMEDY}")
        return shards

    def verify(self) -> None:
        """Read every shard and compare its sha256. ShardError names the first damaged shard."""
        for name, entry in self.shards.items():
            if sha256(self.folder / name) != entry["sha256"]:
                raise ShardError(f"{self.folder / name} is damaged: {REMEDY}")

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
        made_by = self.fingerprint["base"]["parts"]
        for part in sorted(made_by.keys() & parts.keys()):
            if made_by[part] != parts[part]:
                raise ShardError(
                    f"{self.folder} was made by another base: its {part} ({made_by[part][:12]}) differs from "
                    f"{name}'s ({parts[part][:12]}): delete it and run data_prep again, or set another data.root or "
                    "model.checkpoint"
                )

    def require_settings(self, config: Config) -> None:
        """ShardError unless data_prep would make these shards with the `task` and `data` sections of this config."""
        _require_equal(self.folder, self.fingerprint["settings"], content_settings(config))

    def caption(self, i: int) -> str:
        """The caption of sample i. Only its JSON is read, not its videos or latents."""
        sample = self.samples[i]
        path = self.folder / sample.shard
        try:
            with path.open("rb") as stream:
                stream.seek(sample.offset)
                with tarfile.open(fileobj=stream, mode="r:") as tar:
                    file = tar.extractfile(next(member for member in tar if member.name == f"{sample.key}.json"))
                    assert file is not None
                    return str(json.load(file)["caption"])
        except (tarfile.TarError, StopIteration, ValueError, KeyError) as error:
            raise ShardError(f"{path} is damaged at sample {sample.key}: {REMEDY}") from error

    def empty_text(self) -> Tensor:
        """Features (T,D) of the empty caption, fp32."""
        path = self.folder / EMPTY_TEXT_FILE
        if not path.exists():
            raise ShardError(f"{path} is missing: {REMEDY}")
        return load_text_features(path)

    def read_pair(self, i: int) -> Pair:
        """Read sample i of a set of kind "pairs". ShardError when its checksum is wrong."""
        assert self.kind == "pairs"
        key, metadata, members = self._read(i)
        videos = {name.removesuffix(".mp4"): data for name, data in members.items()}
        target, *references = (decode_clip(bytes(videos[name])) for name in ("target", *reference_names(videos)))
        return Pair(key, target, tuple(references), metadata["caption"], metadata["fps"], metadata["record"])

    def read_latents(self, i: int, dtype: torch.dtype = torch.float32) -> LatentPair:
        """Read sample i of a set of kind "latents". ShardError when its checksum is wrong."""
        assert self.kind == "latents"
        key, metadata, members = self._read(i)
        latents = load_fp16(members["latents.safetensors"])
        target, text, *references = (latents[name].to(dtype) for name in ("target", "text", *reference_names(latents)))
        return LatentPair(key, target, tuple(references), text, metadata["fps"], metadata["caption"])

    def _read(self, i: int) -> tuple[str, dict[str, Any], dict[str, memoryview]]:
        """Key, metadata and media (by extension) of sample i."""
        sample = self.samples[i]
        path = self.folder / sample.shard
        data = _read_range(path, sample.offset, sample.size)
        if zlib.crc32(data) != sample.crc32:
            raise ShardError(f"{path} is damaged at sample {sample.key}: {REMEDY}")
        members = unpack_members(memoryview(data), sample.key)
        return sample.key, json.loads(bytes(members.pop("json"))), members
