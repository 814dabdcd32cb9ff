"""The shard format, written and read in one file (`members` says how a clip lies in it).

A shard set is a folder of WebDataset tars `<split>-<number>.tar` and an `index.json`. Of each clip a tar holds
`<key>.json` and either media (`<key>.target.mp4`, `<key>.reference0.mp4`: kind "pairs") or `<key>.latents.safetensors`
(kind "latents"). A file under its final name is whole, and the index is written last. Only safetensors, JSON and
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
from iclora_train.data.shard_sample import Members, load_fp16, load_text_features, save_text_features, unpack_members
from iclora_train.data.video import decode_clip

FORMAT = 2
EMPTY_TEXT_FILE = "empty.safetensors"  # beside latents: the features of the empty caption, for guidance
FINGERPRINT_FILE = "fingerprint.json"
REMEDY = "delete it and run data_prep again (shards that are whole are kept)"


class ShardError(ConfigError):
    """A shard set is damaged, unfinished, or of another base or other settings; names the file and the remedy."""


@dataclass(frozen=True)
class ShardSample:
    """Where a clip lies: `size` bytes at `offset` of tar `shard`, with their checksum. `source` is the clip it was cut
    from. Samples of one `bucket` (width x height x frames) can share a batch.
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
    """Writes a shard set, or goes on with an unfinished one: a killed run loses only the shard it was writing.

    ShardError when the folder holds shards of another fingerprint.
    """

    def __init__(self, folder: Path, kind: str, fingerprint: dict[str, Any]) -> None:
        self.folder, self.kind, self.fingerprint = folder, kind, plain(fingerprint)
        self._found: dict[str, tuple[dict[str, Any], list[ShardSample]]] = {}  # shard -> its facts and samples
        if not require_fingerprint(folder, fingerprint):
            _write_json(folder / FINGERPRINT_FILE, self.fingerprint)

    def has(self, shard: str) -> bool:
        """Whether this shard is written, and therefore whole."""
        return (self.folder / shard).exists()

    def write(self, shard: str, samples: Iterable[Members]) -> None:
        """Write one tar; the same samples give the same bytes. DiskFullError leaves nothing behind."""
        with (
            write_atomic(self.folder / shard) as file,
            webdataset.TarWriter(file, encoder=False, mtime=0, user="", group="") as tar,
        ):
            for sample in samples:
                tar.write(sample)

    def write_empty_text(self, text: Tensor) -> None:
        """Keep the features (T,D) of the empty caption: sampling with guidance needs them, and no text encoder then."""
        save_text_features(self.folder / EMPTY_TEXT_FILE, text)

    def finish(self, shards: list[str]) -> None:
        """Write the index, from what the tars hold. ShardError for a tar that differs from an earlier index."""
        before = _read_index(self.folder)["shards"] if (self.folder / "index.json").exists() else {}
        index = self._index(shards)
        for shard in before.keys() & index["shards"].keys():
            if before[shard] != index["shards"][shard]:
                raise ShardError(f"{self.folder / shard} is damaged: {REMEDY}")
        _write_json(self.folder / "index.json", index)

    def unfinished(self, shards: list[str]) -> ShardSet:
        """These shards, which are written, before the set is finished."""
        return ShardSet(self.folder, self._index(shards))

    def _index(self, shards: list[str]) -> dict[str, Any]:
        for path in (self.folder / shard for shard in shards if shard not in self._found):
            found = list(_scan(path))
            self._found[path.name] = {"count": len(found), "bytes": path.stat().st_size, "sha256": sha256(path)}, found
        samples = [sample for shard in shards for sample in self._found[shard][1]]
        return {
            "format": FORMAT,
            "kind": self.kind,
            "splits": Counter(sample.split for sample in samples),
            "buckets": Counter(sample.bucket for sample in samples),
            "shards": {shard: self._found[shard][0] for shard in shards},
            "fingerprint": {"of": self.fingerprint, "sha256": digest(self.fingerprint)},
            "samples": [asdict(sample) for sample in samples],
        }


def require_fingerprint(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """ShardError if `folder` holds, or was begun for, shards of another fingerprint; whether it holds of this one."""
    mark = folder / FINGERPRINT_FILE
    if mark.exists():
        _require_equal(folder, json.loads(mark.read_text()), plain(fingerprint))
    return mark.exists()


def _require_equal(folder: Path, old: object, new: object) -> None:
    """ShardError that names the first differences between what made the shards in `folder` and what is wanted."""
    changed = differences(old, new)
    if changed:
        what = "; ".join(changed[:3])
        raise ShardError(f"{folder} holds shards of other settings ({what}): delete it or set another data.root")


def _write_json(path: Path, value: object) -> None:
    with write_atomic(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def _scan(path: Path) -> Iterator[ShardSample]:
    """The samples of a tar in their order: runs of members with one key. ShardError when the tar cannot be read."""
    runs: dict[str, tuple[int, int, dict[str, Any]]] = {}  # key -> offset, end, json
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                start, _, about = runs.get(key, (member.offset, 0, {}))
                file = tar.extractfile(member)
                assert file is not None
                runs[key] = start, tar.offset, json.load(file) if extension == "json" else about
        for key, (start, end, about) in runs.items():
            crc = zlib.crc32(_read_range(path, start, end - start))
            split = path.name.rsplit("-", 1)[0]
            yield ShardSample(key, split, path.name, start, end - start, crc, about["bucket"], about["source"])
    except (tarfile.TarError, ValueError, KeyError) as error:
        raise ShardError(f"{path} is damaged ({error}): {REMEDY}") from error


def _read_range(path: Path, offset: int, size: int) -> bytearray:
    data = bytearray(size)
    with path.open("rb") as file:
        file.seek(offset)
        return data if file.readinto(data) == size else bytearray()


def _read_index(folder: Path) -> dict[str, Any]:
    """The index of a shard set. ShardError when it is absent or not of this format."""
    path = folder / "index.json"
    if not path.exists():
        raise ShardError(f"{folder} holds no finished shard set (no index.json): run data_prep")
    try:
        index = json.loads(path.read_text())
        found = index["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is damaged: {REMEDY}") from error
    if found != FORMAT:
        raise ShardError(f"{path} has format {found}, not {FORMAT}: delete {folder} and run data_prep again")
    return index


class ShardSet:
    """A finished shard set, read by number of the sample. Opening checks sizes only; every read checks its bytes."""

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
        """Read the index and check that every shard has its size. ShardError names the file and the remedy."""
        shards = cls(Path(folder), _read_index(Path(folder)))
        for name, facts in shards.shards.items():
            path = shards.folder / name
            if not path.exists():
                raise ShardError(f"{path} is missing: run data_prep again")
            if path.stat().st_size != facts["bytes"]:
                raise ShardError(f"{path} has {path.stat().st_size} bytes instead of {facts['bytes']}: {REMEDY}")
        return shards

    def verify(self) -> None:
        """Read everything and compare sha256. ShardError for the first shard that is damaged."""
        for name, facts in self.shards.items():
            if sha256(self.folder / name) != facts["sha256"]:
                raise ShardError(f"{self.folder / name} is damaged: {REMEDY}")

    def __len__(self) -> int:
        return len(self.samples)

    def indices(self, split: str) -> list[int]:
        """Numbers of the samples of a split, in the order they were written."""
        return [i for i, sample in enumerate(self.samples) if sample.split == split]

    def require_base(self, name: str, parts: dict[str, str]) -> None:
        """ShardError unless these latents were made by the parts of this base: a latent means nothing to another VAE,
        connector or text encoder. `parts` are their identities; one that the settings do not name is not compared."""
        made = self.fingerprint["base"]
        for part in sorted(made["parts"].keys() & parts.keys()):
            if made["parts"][part] != parts[part]:
                raise ShardError(
                    f"{self.folder} was made by another base: its {part} ({made['parts'][part][:12]}) is not that of "
                    f"{name} ({parts[part][:12]}): delete it and run data_prep again, or set another data.root or "
                    "model.checkpoint"
                )

    def require_settings(self, config: Config) -> None:
        """ShardError unless these shards are what data_prep would make with this config's `task` and `data`."""
        _require_equal(self.folder, self.fingerprint["settings"], content_settings(config))

    def caption(self, i: int) -> str:
        """The caption of sample i, from its JSON alone: the media beside it are not read."""
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
        """Sample i of a set of kind "pairs". ShardError when its bytes are not what was written."""
        assert self.kind == "pairs"
        key, about, members = self._read(i)
        clips = {name.removesuffix(".mp4"): decode_clip(bytes(data)) for name, data in members.items()}
        references = tuple(clips[f"reference{n}"] for n in range(len(clips) - 1))
        return Pair(key, clips["target"], references, about["caption"], about["fps"], about["record"])

    def read_latents(self, i: int, dtype: torch.dtype = torch.float32) -> LatentPair:
        """Sample i of a set of kind "latents". ShardError when its bytes are not what was written."""
        assert self.kind == "latents"
        key, about, members = self._read(i)
        tensors = {n: t.to(dtype) for n, t in load_fp16(members["latents.safetensors"]).items()}
        references = tuple(tensors[f"reference{n}"] for n in range(len(tensors) - 2))
        return LatentPair(key, tensors["target"], references, tensors["text"], about["fps"], about["caption"])

    def _read(self, i: int) -> tuple[str, dict[str, Any], dict[str, memoryview]]:
        """Key, JSON and other members (by extension) of sample i."""
        sample = self.samples[i]
        path = self.folder / sample.shard
        data = _read_range(path, sample.offset, sample.size)
        if zlib.crc32(data) != sample.crc32:
            raise ShardError(f"{path} is damaged at sample {sample.key}: {REMEDY}")
        members = unpack_members(memoryview(data), sample.key)
        return sample.key, json.loads(bytes(members.pop("json"))), members
