"""`data_prep verify` reports each problem in one line, and nothing for intact shards."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from data_prep import pipeline
from data_prep.verify import verify
from iclora_train.data.shard_index import index_digest
from iclora_train.data.shards import EMPTY_TEXT_FILE, ShardSet, ShardWriter
from tests.command import run
from tests.prep import config_of, write_clips
from tests.tiny import write_tiny_base


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), ("train", "val", "heldout"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, clips, base) -> Path:
    return pipeline.prepare(config_of(tmp_path_factory.mktemp("shards"), clips, base))


@pytest.fixture
def root(tmp_path, prepared) -> Path:
    """A copy of the shards for a test to damage."""
    return Path(shutil.copytree(prepared, tmp_path / "root"))


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_index(path: Path, change: Callable[[dict], None]) -> None:
    """Change the index and its checksum, so that only the checks of its content can find the change."""
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index | {"sha256": index_digest(index)}))


def rewrite(folder: Path, name: str, tensor: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Write intact latent shards with another tensor `name` in the first train sample."""
    shards = ShardSet.open(folder)
    writer = ShardWriter(folder, "latents", shards.fingerprint)
    samples = []
    for i in shards.indices("train"):
        record, members = shards._read(i)
        tensors = safetensors.torch.load(bytes(members["latents.safetensors"]))
        if i == 0:
            tensors[name] = tensor(tensors[name]).contiguous()
        data = safetensors.torch.save(tensors)
        about = json.dumps(asdict(record)).encode()
        samples.append({"__key__": shards.samples[i].key, "json": about, "latents.safetensors": data})
    (folder / "index.json").unlink()
    writer.write("train-000000.tar", samples)
    writer.finish(list(shards.shards))


def test_intact_shards_have_no_problems_with_and_without_workers_and_settings(prepared, clips, base):
    assert verify(str(prepared)) == []
    assert verify(str(prepared), 2, config_of(prepared, clips, base)) == []


VAL = "val-000000.tar"
DAMAGE = {
    "a flipped bit": (
        lambda root: flip(root / "pairs" / "train-000000.tar"),
        r"pairs/train-000000.tar is damaged: delete it",
    ),
    "no latents": (
        lambda root: shutil.rmtree(root / "latents"),
        "latents holds no finished shard set (no index.json): run",
    ),
    "a missing shard": (
        lambda root: (root / "latents" / "val-000000.tar").unlink(),
        "val-000000.tar is missing: run data_prep",
    ),
    "a short shard": (lambda root: (root / "pairs" / "val-000000.tar").write_bytes(b"x"), "has 1 bytes instead of"),
    "a shard outside the index": (
        lambda root: (root / "pairs" / "train-000009.tar").write_bytes(b""),
        "train-000009.tar is not in the index: delete it",
    ),
    "counts": (
        lambda root: change_index(root / "pairs" / "index.json", lambda index: index["buckets"].update({"32x32x5": 3})),
        "index.json counts other samples than it lists: delete it",
    ),
    "a sample left out": (
        lambda root: change_index(root / "pairs" / "index.json", lambda index: index["samples"].pop()),
        "index.json counts other samples than it lists: delete it",
    ),
    "a shard's count": (
        lambda root: change_index(
            root / "pairs" / "index.json", lambda i: i["shards"]["val-000000.tar"].update(count=9)
        ),
        "index.json lists other samples than its shards have: delete it",
    ),
    "one letter of the index": (
        lambda root: (root / "pairs" / "index.json").write_text(
            (root / "pairs" / "index.json").read_text().replace('"source": "clip0"', '"source": "clip1"', 1)
        ),
        "index.json is damaged (its checksum is wrong): delete it",
    ),
    "a bit of the empty caption": (
        lambda root: flip(root / "latents" / EMPTY_TEXT_FILE),
        f"{EMPTY_TEXT_FILE} is damaged (its checksum is wrong): delete it",
    ),
    "half of the empty caption": (
        lambda root: halve(root / "latents" / EMPTY_TEXT_FILE),
        f"{EMPTY_TEXT_FILE} is damaged (Error while deserializing: incomplete metadata",
    ),
    "a bit of a cached caption": (
        lambda root: flip(next(root.glob("texts-*/*.safetensors"))),
        "is damaged (its checksum is wrong): delete it and run data_prep again, which encodes its caption again",
    ),
    "latents in the place of pairs": (
        lambda root: shutil.copytree(root / "latents", root / "pairs", dirs_exist_ok=True),
        "pairs holds latents, not pairs: delete it",
    ),
    "a fingerprint": (
        lambda root: (root / "latents" / "fingerprint.json").write_text("{"),
        "latents/fingerprint.json is damaged (Expecting property name",
    ),
    "another fingerprint": (
        lambda root: (root / "latents" / "fingerprint.json").write_text("{}"),
        "fingerprint.json and the index.json next to it differ: delete",
    ),
    "other pairs": (
        lambda root: change_index(root / "latents" / "index.json", lambda index: index["samples"].reverse()),
        "latents was not made from",
    ),
    "NaN": (
        lambda root: rewrite(root / "latents", "target", lambda t: t * torch.nan),
        "its target holds NaN or infinite",
    ),
    "a shape": (lambda root: rewrite(root / "latents", "reference0", lambda t: t[..., :2]), "of its bucket: delete it"),
    "no empty caption": (
        lambda root: (root / "latents" / EMPTY_TEXT_FILE).unlink(),
        f"{EMPTY_TEXT_FILE} is missing: delete it",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_reported_with_the_remedy(name, root):
    damage, message = DAMAGE[name]
    damage(root)
    problems = verify(str(root))
    assert any(message in problem for problem in problems), problems
    assert not any("\n" in problem for problem in problems)


def test_other_settings_and_another_base_are_reported(root, clips, base, tmp_path):
    other = write_tiny_base(tmp_path / "other", seed=1)
    assert [
        "pairs holds shards of other settings (data.frames: 5 -> 9)" in p
        for p in verify(str(root), 0, config_of(root, clips, base, "data.frames=9"))
    ] == [True, False]
    (problem,) = verify(str(root), 0, config_of(root, clips, other))
    assert "latents was made by another base" in problem


def test_the_command_prints_one_line_per_problem_and_fails(root, tmp_path):
    intact = run(tmp_path, "data_prep", "verify", f"data.root={root}")
    assert (intact.code, intact.out) == (0, f"verified: {root}\n")
    flip(root / "pairs" / "train-000000.tar")
    flip(root / "latents" / "val-000000.tar")
    damaged = run(tmp_path, "data_prep", "verify", f"data.root={root}", "data.workers=2")
    assert damaged.code == 1
    lines = [line for line in damaged.err.splitlines() if line.startswith("problem: ")]
    assert [Path(line.split()[1]).relative_to(root).as_posix() for line in lines] == [
        "pairs/train-000000.tar",
        "latents/val-000000.tar",
    ]
    assert "Traceback" not in damaged.err
    no_task = run(tmp_path, "data_prep", "verify")
    assert no_task.code == 2
    assert no_task.err.startswith("error: no task: choose one with conf=<task>")
