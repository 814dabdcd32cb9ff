"""A stream that samples of a latent shard have in common is stored once; older shards and readers are unaffected."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from data_prep.verify import verify
from iclora_train.core.types import LatentPair, VideoShape
from iclora_train.data.shard_index import ShardError, read_index
from iclora_train.data.shard_sample import pack_latents
from iclora_train.data.shards import ShardSet, ShardWriter
from iclora_train.data.tar_members import FilePart, read_members

SHAPE = VideoShape(9, 256, 256, 25.0)
TARGET, TEXT = (128, 2, 16, 16), (64, 1024)  # 128 kB of fp16 each


def pair(number: int, caption: int, target: int | None = None) -> LatentPair:
    """A latent pair with the text features of `caption`; `target` is the seed of its target, `number` if None."""
    streams = []
    for seed, shape in ((number if target is None else target, TARGET), (100 + number, TARGET), (200 + caption, TEXT)):
        streams.append(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half().float())
    return LatentPair(f"clip-{number:05d}", streams[0], (streams[1],), streams[2], 25.0, f"caption {caption}")


def write(folder: Path, pairs: list[LatentPair], shard: str = "train-000000.tar") -> ShardSet:
    writer = ShardWriter(folder, "latents", {"settings": {}})
    writer.write(shard, (pack_latents(one, SHAPE, "clip", {}) for one in pairs))
    writer.write_empty_text(torch.zeros(2, 3))
    writer.finish([shard])
    return ShardSet.open(folder)


def assert_equal(loaded: LatentPair, original: LatentPair) -> None:
    assert loaded.key == original.key
    assert loaded.target.equal(original.target)
    assert loaded.text.equal(original.text)
    assert [a.equal(b) for a, b in zip(loaded.references, original.references, strict=True)] == [True]


def test_a_caption_of_several_windows_is_stored_once_and_every_window_reads_it(tmp_path: Path) -> None:
    pairs = [pair(number, caption=number // 4) for number in range(8)]
    shards = write(tmp_path, pairs)
    for i in (7, 0, 5, 3):
        assert_equal(shards.read_latents(i), pairs[i])
    stored = 8 * 2 + 2  # targets and references of all, features of two captions
    size = (tmp_path / "train-000000.tar").stat().st_size
    assert stored * 2**17 < size < stored * 2**17 * 1.1


def test_a_target_of_several_windows_and_a_reference_equal_to_its_target_are_stored_once(tmp_path: Path) -> None:
    first, second = pair(0, 0), pair(1, 1, target=0)
    looped = replace(pair(2, 2), references=(pair(2, 2).target,))
    shards = write(tmp_path, [first, second, looped])
    for i, original in enumerate((first, second, looped)):
        assert_equal(shards.read_latents(i), original)
    assert [shards.record(i).shared.keys() for i in range(3)] == [set(), {"target"}, {"target"}]


def test_sets_without_a_common_stream_keep_the_format_of_version_0_1(tmp_path: Path) -> None:
    different = [pair(0, 0), pair(1, 1)]
    write(tmp_path / "plain", different)
    assert read_index(tmp_path / "plain").format == 2
    with (tmp_path / "plain/train-000000.tar").open("rb") as file:
        size = (tmp_path / "plain/train-000000.tar").stat().st_size
        members = {m.name: m for m in read_members(FilePart(file, 0, size), whole=True)}
        member = members["clip-00001.latents.safetensors"]
        file.seek(member.data)
        assert file.read(member.size) == pack_latents(different[1], SHAPE, "clip", {})["latents.safetensors"]
    write(tmp_path / "shared", [pair(0, 0), pair(1, 0)])
    assert read_index(tmp_path / "shared").format == 3  # version 0.1 says: has format 3, not 2


def test_small_streams_are_stored_with_every_sample(tmp_path: Path) -> None:
    pairs = [replace(pair(number, 0), text=torch.ones(3, 6)) for number in range(2)]
    shards = write(tmp_path, pairs)
    assert read_index(tmp_path).format == 2
    assert_equal(shards.read_latents(1), pairs[1])


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, [pair(number, 0) for number in range(3)])
    a, b = ((tmp_path / name / "train-000000.tar").read_bytes() for name in "ab")
    assert a == b


def test_damage_of_a_shared_stream_is_found_by_the_samples_that_read_it(tmp_path: Path) -> None:
    pairs = [pair(0, 0), pair(1, 0)]
    write(tmp_path, pairs)
    path = tmp_path / "train-000000.tar"
    data = bytearray(path.read_bytes())
    values = safetensors.torch.save({"text": pairs[0].text.half()})[-1000:]
    place = data.find(values)
    assert place > 0
    data[place] ^= 255
    path.write_bytes(data)
    shards = ShardSet.open(tmp_path)
    with pytest.raises(ShardError, match=r"damaged at sample clip-00001 \(the checksum of its 'text' is wrong"):
        shards.read_latents(1)
    with pytest.raises(ShardError, match=r"sample clip-00000 \(its checksum is wrong\)"):
        shards.read_latents(0)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({"sample": "nobody", "stream": "text", "crc32": 1}, "shares a stream with 'nobody'"),
        ({"sample": "clip-00000", "stream": "audio", "crc32": 1}, "sample 'clip-00000' has no 'audio'"),
    ],
)
def test_a_reference_to_nothing_is_an_error_that_names_the_sample(tmp_path: Path, place: dict, reason: str) -> None:
    writer = write_with_place(tmp_path, place)
    writer.finish(["train-000000.tar"])
    with pytest.raises(ShardError, match=reason):
        ShardSet.open(tmp_path).read_latents(1)


def test_a_malformed_place_is_an_error_that_names_the_tar(tmp_path: Path) -> None:
    writer = write_with_place(tmp_path, {"sample": "clip-00000", "stream": 3})
    with pytest.raises(ShardError, match=r"train-000000\.tar is damaged"):
        writer.finish(["train-000000.tar"])


def write_with_place(folder: Path, place: dict) -> ShardWriter:
    """Write two samples, of which the second says that its text is at `place`."""
    members = [pack_latents(pair(number, number), SHAPE, "clip", {}) for number in range(2)]
    members[1]["json"] = json.dumps({**json.loads(members[1]["json"]), "shared": {"text": place}}).encode()
    writer = ShardWriter(folder, "latents", {"settings": {}})
    writer.write("train-000000.tar", members)
    return writer


def test_verify_reads_shared_streams(tmp_path: Path) -> None:
    write(tmp_path / "latents", [pair(0, 0), pair(1, 0)])
    problems = [problem for problem in verify(str(tmp_path)) if "no index.json" not in problem]
    assert problems == []
