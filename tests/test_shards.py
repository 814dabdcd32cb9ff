"""Shards give back what was put in, the same bytes every time; damage, other bases and full disks are told by name."""

import errno
import json
import os
import resource
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
import webdataset
from lightning import LightningModule, Trainer

from iclora_train.batches import BatchPlan
from iclora_train.config import Config, ConfigError, Data
from iclora_train.datamodule import LatentData
from iclora_train.files import DiskFullError
from iclora_train.members import latent_members, pair_members
from iclora_train.pair import LatentPair, Pair, VideoShape
from iclora_train.shards import ShardError, ShardSet, ShardWriter
from tests.clips import moving

SHAPE = VideoShape(5, 32, 32, 25.0)
MADE_BY = {"base": {"parts": {"vae": "aaaa"}}, "settings": {}}


def latent(i: int, reference: int = 2) -> LatentPair:
    """A small latent pair, different for every i."""
    generator = torch.Generator().manual_seed(i)
    tensors = [torch.randn(4, 2, n, n, generator=generator).half().float() for n in (4, reference)]
    text = torch.randn(3, 6, generator=generator).half().float()
    return LatentPair(f"clip{i:03d}", tensors[0], (tensors[1],), text, 25.0, f"caption {i}")


def write_latents(folder: Path, counts: dict[str, list[int]], shape: VideoShape = SHAPE) -> ShardWriter:
    """A latent set with shards of the given sizes by split; the writer, for more."""
    writer, names, i = ShardWriter(folder, "latents", MADE_BY), [], 0
    for split, sizes in counts.items():
        for number, size in enumerate(sizes):
            names.append(f"{split}-{number:06d}.tar")
            pairs = [latent(i + k) for k in range(size)]
            if not writer.has(names[-1]):
                writer.write(names[-1], (latent_members(p, shape, source=p.key[:6], record={}) for p in pairs))
            i += size
    writer.finish(names)
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pairs_come_back_bit_by_bit(tmp_path):
    clips = [moving(5, 32, 32, seed) for seed in range(3)]
    pair = Pair("a-0", clips[0], (clips[1], clips[2][:, ::2, ::2]), "a café", 29.97, {"maker": "x", "seed": [1, 2]})
    writer = ShardWriter(tmp_path, "pairs", MADE_BY)
    writer.write("train-000000.tar", [pair_members(pair, "a")])
    writer.finish(["train-000000.tar"])
    back = ShardSet.open(tmp_path).read_pair(0)
    assert (back.key, back.caption, back.fps, back.record) == (pair.key, pair.caption, pair.fps, pair.record)
    assert (back.target == pair.target).all()
    assert [(a == b).all() for a, b in zip(back.references, pair.references, strict=True)] == [True, True]


def test_latents_come_back_and_the_index_tells_where_they_are(tmp_path):
    write_latents(tmp_path, {"train": [3, 2], "val": [1]})
    shards = ShardSet.open(tmp_path)
    shards.verify()
    assert len(shards) == 6
    assert shards.indices("val") == [5]
    assert shards.splits == {"train": 5, "val": 1}
    assert shards.buckets == {"32x32x5": 6}
    for i in (4, 0, 5):
        back, put = shards.read_latents(i), latent(i)
        assert (back.key, back.caption, back.fps) == (put.key, put.caption, put.fps)
        assert back.target.dtype == torch.float32
        assert back.target.equal(put.target)
        assert back.text.equal(put.text)
        assert back.references[0].equal(put.references[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its reader leaves the file open
def test_tars_are_webdataset(tmp_path):
    write_latents(tmp_path, {"train": [3]})
    url = str(tmp_path / "train-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [latent(i).key for i in range(3)]
    assert json.loads(samples[1]["json"])["caption"] == "caption 1"
    assert "latents.safetensors" in samples[1]


def test_same_input_gives_the_same_bytes_after_any_restart(tmp_path):
    write_latents(tmp_path / "a", {"train": [2, 2], "val": [1]})
    write_latents(tmp_path / "b", {"train": [2, 2], "val": [1]})
    (tmp_path / "b" / "index.json").unlink()
    (tmp_path / "b" / "train-000001.tar").unlink()
    (tmp_path / "b" / "train-000001.tar.tmp").write_bytes(b"half")
    write_latents(tmp_path / "b", {"train": [2, 2], "val": [1]})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o444)}


def test_unfinished_missing_and_foreign_sets_are_refused(tmp_path):
    with pytest.raises(ShardError, match=r"no index\.json.*run data_prep"):
        ShardSet.open(tmp_path / "nothing")
    write_latents(tmp_path, {"train": [2]})
    with pytest.raises(ShardError, match=r"made by another base: its vae \(aaaa\) is not that of other \(bbbb\)"):
        ShardSet.open(tmp_path).require_base("other", {"vae": "bbbb"})
    ShardSet.open(tmp_path).require_base("tiny", {"text": "cccc", "vae": "aaaa"})
    with pytest.raises(ShardError, match=r"base\.parts\.vae: aaaa -> bbbb.*another data\.root"):
        ShardWriter(tmp_path, "latents", {**MADE_BY, "base": {"parts": {"vae": "bbbb"}}})
    (tmp_path / "train-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000000\.tar is missing"):
        ShardSet.open(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 99}')
    with pytest.raises(ShardError, match="format 99, not 2"):
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


def test_damage_is_found_by_size_by_sample_and_by_verify(tmp_path):
    write_latents(tmp_path, {"train": [2]})
    path = tmp_path / "train-000000.tar"
    shards, whole = ShardSet.open(tmp_path), path.read_bytes()
    flipped = bytearray(whole)
    flipped[shards.samples[1].offset + 2000] ^= 1
    path.write_bytes(flipped)
    shards = ShardSet.open(tmp_path)
    shards.read_latents(0)
    with pytest.raises(ShardError, match=r"train-000000\.tar is damaged at sample clip001: delete it and run"):
        shards.read_latents(1)
    with pytest.raises(ShardError, match=r"train-000000\.tar is damaged: delete it"):
        shards.verify()
    with pytest.raises(ShardError, match="is damaged"):  # a restart does not declare the damage sound
        ShardWriter(tmp_path, "latents", MADE_BY).finish(["train-000000.tar"])
    path.write_bytes(whole[:-512])
    with pytest.raises(ShardError, match=r"bytes instead of \d+: delete it"):
        ShardSet.open(tmp_path)
    path.write_bytes(b"x" * len(whole))
    (tmp_path / "index.json").unlink()
    with pytest.raises(ShardError, match=r"train-000000\.tar is damaged"):
        ShardWriter(tmp_path, "latents", MADE_BY).finish(["train-000000.tar"])


def test_values_beyond_fp16_are_refused():
    pair = latent(0)
    pair.text[0, 0] = 70000
    with pytest.raises(ValueError, match="clip000: text holds values that do not fit fp16"):
        latent_members(pair, SHAPE, "a", {})


def test_full_disk_leaves_nothing_half_written(tmp_path):
    big = [{"__key__": "a", "json": b"{}", "bin": bytes(200_000)}]
    writer = ShardWriter(tmp_path, "latents", MADE_BY)
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


def test_full_disk_while_flushing_the_index(tmp_path, monkeypatch):
    write_latents(tmp_path / "a", {"train": [2]})
    writer = ShardWriter(tmp_path / "b", "latents", MADE_BY)

    def no_space(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DiskFullError, match="No space left on device"):
        writer.write("train-000000.tar", [])
    with pytest.raises(DiskFullError, match=r"index\.json"):
        writer.finish([])
    assert set(contents(tmp_path / "b")) == {"fingerprint.json"}


def plans(world_size: int, **changes: object) -> list[BatchPlan]:
    settings = {"buckets": (tuple(range(13)), tuple(range(100, 109))), "seed": 0, "batch_size": 2, **changes}
    return [BatchPlan(**settings, rank=rank, world_size=world_size) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_plan_is_pure_disjoint_and_of_one_bucket(world_size):
    ranks = plans(world_size)
    steps = ranks[0].steps_per_epoch
    assert steps == {1: 10, 2: 5, 4: 2}[world_size]
    for epoch in range(3):
        batches = [[rank.batch(epoch * steps + step) for rank in ranks] for step in range(steps)]
        for step in batches:
            assert all(len(batch) == 2 for batch in step)
            assert len({i >= 100 for batch in step for i in batch}) == 1
        used = Counter(i for step in batches for batch in step for i in batch)
        assert set(used.values()) == {1}
    again = plans(world_size)
    assert [r.batch(7) for r in ranks] == [r.batch(7) for r in again]
    assert [plans(1, seed=s)[0].batch(0) for s in (0, 1, 2)] != [plans(1)[0].batch(0)] * 3
    assert {tuple(plans(1)[0].batch(n)) for n in range(10)} != {tuple(plans(1)[0].batch(n)) for n in range(10, 20)}


def taken(data: LatentData, count: int) -> list[tuple[list[str], torch.Tensor]]:
    return [(batch["keys"], batch["target"]) for batch, _ in zip(data.train_dataloader(), range(count), strict=False)]


def test_batches_resume_at_a_number_and_do_not_depend_on_workers(tmp_path):
    write_latents(tmp_path, {"train": [5, 6], "val": [3]})
    whole = taken(LatentData(tmp_path, batch_size=2, seed=3), 9)
    late = taken(LatentData(tmp_path, batch_size=2, seed=3, start_batch=4), 5)
    spawned = taken(LatentData(tmp_path, batch_size=2, seed=3, workers=2), 9)
    for ours, theirs in ((whole[4:], late), (whole, spawned)):
        assert [keys for keys, _ in ours] == [keys for keys, _ in theirs]
        assert all(a.equal(b) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    resumed = LatentData(tmp_path, batch_size=2, seed=3)
    resumed.load_state_dict({"position": 4})
    assert resumed.state_dict() == {"position": 4}
    assert taken(resumed, 1)[0][0] == whole[4][0]


def test_a_batch_has_the_documented_shapes(tmp_path):
    write_latents(tmp_path, {"train": [4], "val": [3]})
    batch = next(iter(LatentData(tmp_path, batch_size=2).train_dataloader()))
    assert batch["target"].shape == (2, 4, 2, 4, 4)
    assert [r.shape for r in batch["references"]] == [(2, 4, 2, 2, 2)]
    assert batch["text"].shape == (2, 3, 6)
    assert batch["fps"].tolist() == [25.0, 25.0]


def test_too_few_clips_for_a_batch(tmp_path, caplog):
    writer = ShardWriter(tmp_path / "mixed", "latents", MADE_BY)
    shapes = [SHAPE, SHAPE, VideoShape(5, 32, 64, 25.0)]
    writer.write("train-000000.tar", [latent_members(latent(i), s, "a", {}) for i, s in enumerate(shapes)])
    writer.finish(["train-000000.tar"])
    LatentData(tmp_path / "mixed", batch_size=2).train_dataloader()
    assert "never trained on: 64x32x5" in caplog.text
    write_latents(tmp_path, {"train": [3]})
    with pytest.raises(ConfigError, match=r"data\.batch_size=4 on 1 rank.*32x32x5 has 3: lower data\.batch_size"):
        LatentData(tmp_path, batch_size=4).train_dataloader()
    write_latents(tmp_path / "none", {"val": [3]})
    with pytest.raises(ConfigError, match="there are no train clips"):
        LatentData(tmp_path / "none", batch_size=1).train_dataloader()


class Counting(LightningModule):
    """Notes the keys of each batch it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["keys"])
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:The .*num_workers:UserWarning")
def test_the_position_counts_what_lightning_trained_on(tmp_path):
    write_latents(tmp_path, {"train": [5], "val": [3]})
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)

    def train(data: LatentData, steps: int) -> list[list[str]]:
        model = Counting()
        Trainer(max_steps=steps, accelerator="cpu", use_distributed_sampler=False, **quiet).fit(model, datamodule=data)
        return model.seen

    whole = train(LatentData(tmp_path, batch_size=2), 5)
    first = LatentData(tmp_path, batch_size=2)
    train(first, 3)
    second = LatentData(tmp_path, batch_size=2)
    second.load_state_dict(first.state_dict())
    assert first.state_dict() == {"position": 3}
    assert train(second, 2) == whole[3:]
