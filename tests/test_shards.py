"""Shards: exact round trips, reproducible bytes, and errors for damage, other bases and full disks."""

import errno
import json
import os
import resource
import tarfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
import webdataset

from iclora_train.config import Config, Data
from iclora_train.core.atomic_files import DiskFullError
from iclora_train.core.types import LatentPair, Pair, VideoShape
from iclora_train.data.shard_index import ShardError
from iclora_train.data.shard_sample import pack_latents, pack_pair
from iclora_train.data.shards import ShardSet, ShardWriter
from tests.clips import moving

SHAPE = VideoShape(5, 32, 32, 25.0)
FINGERPRINT = {"base": {"parts": {"vae": "aaaa"}}, "settings": {}}


def latent(i: int, reference: int = 2) -> LatentPair:
    """A small latent pair, different for every i."""
    generator = torch.Generator().manual_seed(i)
    tensors = [torch.randn(4, 2, n, n, generator=generator).half().float() for n in (4, reference)]
    text = torch.randn(3, 6, generator=generator).half().float()
    return LatentPair(f"clip{i:03d}", tensors[0], (tensors[1],), text, 25.0, f"caption {i}")


def write_latents(folder: Path, counts: dict[str, list[int]], shape: VideoShape = SHAPE) -> ShardWriter:
    """Write a latent set with shards of these sizes for each split. Returns the writer."""
    writer, names, i = ShardWriter(folder, "latents", FINGERPRINT), [], 0
    for split, sizes in counts.items():
        for number, size in enumerate(sizes):
            names.append(f"{split}-{number:06d}.tar")
            pairs = [latent(i + k) for k in range(size)]
            if not writer.has(names[-1]):
                writer.write(names[-1], (pack_latents(p, shape, source=p.key[:6], record={}) for p in pairs))
            i += size
    writer.finish(names)
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pairs_round_trip_bit_by_bit(tmp_path):
    clips = [moving(5, 32, 32, seed) for seed in range(3)]
    pair = Pair("a-0", clips[0], (clips[1], clips[2][:, ::2, ::2]), "a café", 29.97, {"maker": "x", "seed": [1, 2]})
    writer = ShardWriter(tmp_path, "pairs", FINGERPRINT)
    writer.write("train-000000.tar", [pack_pair(pair, "a")])
    writer.finish(["train-000000.tar"])
    loaded = ShardSet.open(tmp_path).read_pair(0)
    assert (loaded.key, loaded.caption, loaded.fps, loaded.record) == (pair.key, pair.caption, pair.fps, pair.record)
    assert (loaded.target == pair.target).all()
    assert [(a == b).all() for a, b in zip(loaded.references, pair.references, strict=True)] == [True, True]


def test_latents_round_trip_and_the_index_locates_them(tmp_path):
    write_latents(tmp_path, {"train": [3, 2], "val": [1]})
    shards = ShardSet.open(tmp_path)
    shards.verify()
    assert len(shards) == 6
    assert shards.indices("val") == [5]
    assert shards.splits == {"train": 5, "val": 1}
    assert shards.buckets == {"32x32x5": 6}
    for i in (4, 0, 5):
        loaded, original = shards.read_latents(i), latent(i)
        assert (loaded.key, loaded.caption, loaded.fps) == (original.key, original.caption, original.fps)
        assert loaded.target.dtype == torch.float32
        assert loaded.target.equal(original.target)
        assert loaded.text.equal(original.text)
        assert loaded.references[0].equal(original.references[0])
        stored = shards.read_latents(i, torch.float16)  # the stored dtype, without rounding
        assert stored.target.dtype == torch.float16
        assert stored.target.float().equal(original.target)


def test_an_unknown_stream_in_a_sample_is_ignored(tmp_path):
    pair = latent(0)
    members = pack_latents(pair, SHAPE, "a", {})
    streams = safetensors.torch.load(members["latents.safetensors"])
    audio = torch.zeros(2, 3, dtype=torch.float16)
    members["latents.safetensors"] = safetensors.torch.save({**streams, "audio": audio})
    writer = ShardWriter(tmp_path, "latents", FINGERPRINT)
    writer.write("train-000000.tar", [members])
    writer.finish(["train-000000.tar"])
    loaded = ShardSet.open(tmp_path).read_latents(0)
    assert len(loaded.references) == 1
    assert loaded.references[0].equal(pair.references[0])
    assert loaded.text.equal(pair.text)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves a file open
def test_tars_are_webdataset(tmp_path):
    write_latents(tmp_path, {"train": [3]})
    url = str(tmp_path / "train-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [latent(i).key for i in range(3)]
    assert json.loads(samples[1]["json"])["caption"] == "caption 1"
    assert "latents.safetensors" in samples[1]


def test_the_same_input_gives_the_same_bytes_after_a_restart(tmp_path):
    write_latents(tmp_path / "a", {"train": [2, 2], "val": [1]})
    write_latents(tmp_path / "b", {"train": [2, 2], "val": [1]})
    (tmp_path / "b" / "index.json").unlink()
    (tmp_path / "b" / "train-000001.tar").unlink()
    (tmp_path / "b" / "train-000001.tar.tmp").write_bytes(b"half")
    write_latents(tmp_path / "b", {"train": [2, 2], "val": [1]})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o444)}


def test_unfinished_damaged_and_foreign_sets_are_refused(tmp_path):
    with pytest.raises(ShardError, match=r"no index\.json.*run data_prep"):
        ShardSet.open(tmp_path / "nothing")
    write_latents(tmp_path, {"train": [2]})
    with pytest.raises(ShardError, match=r"made by another base: its vae \(aaaa\) differs from other's \(bbbb\)"):
        ShardSet.open(tmp_path).require_base("other", {"vae": "bbbb"})
    ShardSet.open(tmp_path).require_base("tiny", {"text": "cccc", "vae": "aaaa"})
    with pytest.raises(ShardError, match=r"base\.parts\.vae: aaaa -> bbbb.*another data\.root"):
        ShardWriter(tmp_path, "latents", {**FINGERPRINT, "base": {"parts": {"vae": "bbbb"}}})
    (tmp_path / "train-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000000\.tar is missing"):
        ShardSet.open(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 99}')
    with pytest.raises(ShardError, match="format 99, not 2 or 3"):
        ShardSet.open(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ShardError, match=r"index\.json is damaged"):
        ShardSet.open(tmp_path)


def test_shards_of_other_settings_are_refused(tmp_path):
    config = Config(data=Data(root=str(tmp_path)))
    config.task.name, config.task.maker = "a", "degrade.grey"
    writer = ShardWriter(tmp_path, "latents", {"settings": {"data": {"frames": 5}, "task": {}}})
    writer.finish([])
    with pytest.raises(ShardError, match=r"data\.frames: 5 -> 9"):
        ShardSet.open(tmp_path).require_settings(config)


def test_damage_is_detected_by_size_by_sample_and_by_verify(tmp_path):
    write_latents(tmp_path, {"train": [2]})
    path = tmp_path / "train-000000.tar"
    shards, intact = ShardSet.open(tmp_path), path.read_bytes()
    flipped = bytearray(intact)
    flipped[shards.samples[1].offset + 2000] ^= 1
    path.write_bytes(flipped)
    shards = ShardSet.open(tmp_path)
    shards.read_latents(0)
    with pytest.raises(
        ShardError, match=r"000000\.tar is damaged at sample clip001 \(its checksum is wrong\): delete it"
    ):
        shards.read_latents(1)
    with pytest.raises(ShardError, match=r"train-000000\.tar is damaged: delete it"):
        shards.verify()
    with pytest.raises(ShardError, match="is damaged"):  # a restart does not accept the damage
        ShardWriter(tmp_path, "latents", FINGERPRINT).finish(["train-000000.tar"])
    path.write_bytes(intact[:-512])
    with pytest.raises(ShardError, match=r"bytes instead of \d+: delete it"):
        ShardSet.open(tmp_path)
    path.write_bytes(b"x" * len(intact))
    (tmp_path / "index.json").unlink()
    with pytest.raises(ShardError, match=r"train-000000\.tar is damaged"):
        ShardWriter(tmp_path, "latents", FINGERPRINT).finish(["train-000000.tar"])


def test_values_beyond_fp16_are_refused():
    pair = latent(0)
    pair.text[0, 0] = 70000
    with pytest.raises(ValueError, match="clip000: text holds values that do not fit fp16"):
        pack_latents(pair, SHAPE, "a", {})


def test_a_full_disk_leaves_no_partial_file(tmp_path):
    big = [{"__key__": "a", "json": b"{}", "bin": bytes(200_000)}]
    writer = ShardWriter(tmp_path, "latents", FINGERPRINT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DiskFullError, match=rf"train-000000\.tar.*Make room in {tmp_path}.*same command again"):
            writer.write("train-000000.tar", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(contents(tmp_path)) == {"fingerprint.json"}
    writer.write("train-000000.tar", big)
    assert writer.has("train-000000.tar")


def test_a_full_disk_while_flushing_leaves_no_partial_file(tmp_path, monkeypatch):
    write_latents(tmp_path / "a", {"train": [2]})
    writer = ShardWriter(tmp_path / "b", "latents", FINGERPRINT)

    def no_space(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DiskFullError, match="No space left on device"):
        writer.write("train-000000.tar", [])
    with pytest.raises(DiskFullError, match=r"index\.json"):
        writer.finish([])
    assert set(contents(tmp_path / "b")) == {"fingerprint.json"}
