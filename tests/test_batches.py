"""The batch sampler: a pure function of seed, batch number and rank, by clips or by tokens, resumed exactly."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer

from iclora_train.config import Config, ConfigError, Data
from iclora_train.core.types import LatentPair, VideoShape
from iclora_train.data.batch import Batch
from iclora_train.data.batch_sampler import BatchPlan, bucket_tokens, clips_per_batch
from iclora_train.data.datamodule import LatentDataModule
from iclora_train.data.shard_sample import pack_latents
from iclora_train.data.shards import ShardSet, ShardWriter
from iclora_train.training.dry_run import largest_batch
from iclora_train.training.validation import ValidationBatches
from tests.test_shards import FINGERPRINT, SHAPE, latent, write_latents

SIZES = {"32x32x5": 4, "64x32x5": 6, "64x64x5": 8}  # bucket -> side of the target's latents
TOKENS = {"32x32x5": 40, "64x32x5": 90, "64x64x5": 160}  # 2 frames of side x side, and a reference half as large


def write_buckets(folder: Path, counts: dict[str, int]) -> Path:
    """Write a latent set with `counts` train clips of each bucket, and two val clips of the smallest bucket."""
    writer, samples = ShardWriter(folder, "latents", FINGERPRINT), []
    for bucket, count in counts.items():
        width, height, frames = map(int, bucket.split("x"))
        for i in range(count):
            target, reference = (torch.full((4, 2, n, n), float(i)) for n in (SIZES[bucket], SIZES[bucket] // 2))
            pair = LatentPair(f"{bucket}-{i}", target, (reference,), torch.zeros(3, 6), 25.0)
            samples.append(pack_latents(pair, VideoShape(frames, height, width, 25.0), "a", {}))
    writer.write("train-000000.tar", samples)
    writer.write("val-000000.tar", (pack_latents(latent(i), SHAPE, "b", {}) for i in range(2)))
    writer.write_empty_text(torch.zeros(3, 6))
    writer.finish(["train-000000.tar", "val-000000.tar"])
    return folder


def plans(world_size: int, **changes: object) -> list[BatchPlan]:
    settings = {"buckets": (tuple(range(13)), tuple(range(100, 109))), "seed": 0, "sizes": (2, 2), **changes}
    return [BatchPlan(**settings, rank=rank, world_size=world_size) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_plan_is_pure_disjoint_and_one_bucket_per_step(world_size):
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


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_bucket_has_batches_of_its_size_and_all_ranks_use_one_bucket_per_step(world_size):
    ranks = plans(world_size, sizes=(3, 1))
    steps = ranks[0].steps_per_epoch
    assert steps == {1: 4 + 9, 2: 2 + 4}[world_size]
    for epoch in range(2):
        batches = [[rank.batch(epoch * steps + step) for rank in ranks] for step in range(steps)]
        for step in batches:
            assert {(len(batch), batch[0] >= 100) for batch in step} in ({(3, False)}, {(1, True)})
        assert set(Counter(i for step in batches for batch in step for i in batch).values()) == {1}


def test_a_budget_of_tokens_gives_each_bucket_its_batch_size(tmp_path, caplog):
    shards = ShardSet.open(write_buckets(tmp_path, {"32x32x5": 8, "64x32x5": 4, "64x64x5": 2}))
    assert bucket_tokens(shards, "train") == TOKENS
    assert bucket_tokens(shards, "val") == {"32x32x5": 40}
    assert clips_per_batch(shards, "train", 3, None) == {"32x32x5": 3, "64x32x5": 3, "64x64x5": 3}
    assert clips_per_batch(shards, "train", 3, 180) == {"32x32x5": 4, "64x32x5": 2, "64x64x5": 1}
    assert clips_per_batch(shards, "train", 3, 1) == {"32x32x5": 1, "64x32x5": 1, "64x64x5": 1}
    batch_keys = [keys for keys, _ in first_batches(LatentDataModule(tmp_path, 3, tokens_per_batch=180), 12)]
    assert Counter((keys[0].split("-")[0], len(keys)) for keys in batch_keys[:6]) == Counter(
        {("32x32x5", 4): 2, ("64x32x5", 2): 2, ("64x64x5", 1): 2}
    )
    assert len({key for keys in batch_keys[:6] for key in keys}) == 14
    assert batch_keys[:6] != batch_keys[6:]
    assert batch_keys[4:] == [keys for keys, _ in first_batches(LatentDataModule(tmp_path, 3, 180, start_batch=4), 8)]
    assert not caplog.text


def test_a_clip_beyond_the_budget_is_a_batch_of_one_with_one_warning(tmp_path, caplog):
    write_buckets(tmp_path, {"32x32x5": 2, "64x32x5": 2, "64x64x5": 2})
    data = LatentDataModule(tmp_path, 3, tokens_per_batch=80)
    assert sorted(len(keys) for keys, _ in first_batches(data, 5)) == [1, 1, 1, 1, 2]
    assert [record.message for record in caplog.records] == [
        "data.tokens_per_batch=80 is less than one clip of 64x32x5 (90 tokens), 64x64x5 (160 tokens): 1 clip per batch"
    ]
    caplog.clear()
    data.plan(rank=1, world_size=2)
    assert not caplog.text  # only rank 0 warns


def test_the_dry_run_uses_the_batch_with_the_most_tokens(tmp_path):
    shards, cpu = (
        ShardSet.open(write_buckets(tmp_path, {"32x32x5": 8, "64x32x5": 4, "64x64x5": 2})),
        torch.device("cpu"),
    )

    def largest(**data: int) -> tuple[str, int]:
        bucket, batch = largest_batch(Config(data=Data(**data)), shards, cpu)
        return bucket, len(batch.target)

    assert largest(batch_size=3) == ("64x64x5", 3)
    assert largest(tokens_per_batch=180) == ("64x32x5", 2)  # 180 tokens against 160 and 160
    assert largest(tokens_per_batch=160) == ("64x64x5", 1)  # as many as four of the smallest, and longer
    assert largest(tokens_per_batch=120) == ("64x64x5", 1)


def test_validation_batches_respect_the_budget(tmp_path):
    shards = ShardSet.open(write_buckets(tmp_path, {"32x32x5": 8}))
    for tokens, sizes in ((80, [2]), (50, [1, 1]), (None, [2])):
        validation = ValidationBatches.open(shards, Config(data=Data(batch_size=8, tokens_per_batch=tokens)))
        assert [len(correct.keys) for correct, _ in validation.batches] == sizes


def test_a_budget_below_one_token_is_refused():
    with pytest.raises(ConfigError, match=r"data\.tokens_per_batch=0 must be at least 1, or null for data\.batch_size"):
        Data(tokens_per_batch=0)


def first_batches(data: LatentDataModule, count: int) -> list[tuple[list[str], torch.Tensor]]:
    return [(batch.keys, batch.target) for batch, _ in zip(data.train_dataloader(), range(count), strict=False)]


def test_batches_resume_at_a_number_and_do_not_depend_on_workers(tmp_path):
    write_latents(tmp_path, {"train": [5, 6], "val": [3]})
    whole = first_batches(LatentDataModule(tmp_path, batch_size=2, seed=3), 9)
    late = first_batches(LatentDataModule(tmp_path, batch_size=2, seed=3, start_batch=4), 5)
    spawned = first_batches(LatentDataModule(tmp_path, batch_size=2, seed=3, workers=2), 9)
    for expected, result in ((whole[4:], late), (whole, spawned)):
        assert [keys for keys, _ in expected] == [keys for keys, _ in result]
        assert all(a.equal(b) for (_, a), (_, b) in zip(expected, result, strict=True))
    resumed = LatentDataModule(tmp_path, batch_size=2, seed=3)
    resumed.load_state_dict({"position": 4})
    assert resumed.state_dict() == {"position": 4}
    assert first_batches(resumed, 1)[0][0] == whole[4][0]


def test_a_batch_has_the_documented_shapes(tmp_path):
    write_latents(tmp_path, {"train": [4], "val": [3]})
    batch = next(iter(LatentDataModule(tmp_path, batch_size=2).train_dataloader()))
    assert batch.target.shape == (2, 4, 2, 4, 4)
    assert [r.shape for r in batch.references] == [(2, 4, 2, 2, 2)]
    assert batch.text.shape == (2, 3, 6)
    assert batch.fps.tolist() == [25.0, 25.0]


def test_frame_rates_stay_on_the_host(tmp_path):
    """Positions are cached by frame rate, and reading frame rates from a GPU would make every step wait."""
    data = LatentDataModule(write_buckets(tmp_path, {"32x32x5": 4}), 2)
    moved = data.transfer_batch_to_device(next(iter(data.loader())), torch.device("meta"), 0)
    assert {tensor.device.type for tensor in (moved.target, moved.text, *moved.references)} == {"meta"}
    assert moved.fps.device.type == "cpu"


def test_too_few_clips_for_a_batch(tmp_path, caplog):
    write_buckets(tmp_path / "mixed", {"32x32x5": 2, "64x32x5": 1})
    LatentDataModule(tmp_path / "mixed", batch_size=2).train_dataloader()
    assert "needs 2 clips of 64x32x5, which has 1 in" in caplog.text
    assert "never trained on" in caplog.text
    write_latents(tmp_path, {"train": [3]})
    with pytest.raises(
        ConfigError, match=r"data\.batch_size=4 on 1 rank.*32x32x5, which has 3 in.*lower data\.batch_s"
    ):
        LatentDataModule(tmp_path, batch_size=4).train_dataloader()
    with pytest.raises(
        ConfigError, match=r"data\.tokens_per_batch=160 on 2 rank\(s\) needs 8 clips.*has 3 in.*: lower"
    ):
        LatentDataModule(tmp_path, 1, tokens_per_batch=160).plan(rank=0, world_size=2)
    write_latents(tmp_path / "none", {"val": [3]})
    with pytest.raises(ConfigError, match="has no train clips"):
        LatentDataModule(tmp_path / "none", batch_size=1).train_dataloader()


class KeyRecorder(LightningModule):
    """Records the keys of each training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batch_keys: list[list[str]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.batch_keys.append(batch.keys)
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_counts_trained_batches(workers, tmp_path):
    write_latents(tmp_path, {"train": [5], "val": [3]})
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)

    def train(data: LatentDataModule, steps: int) -> list[list[str]]:
        model = KeyRecorder()
        Trainer(max_steps=steps, accelerator="cpu", use_distributed_sampler=False, **quiet).fit(model, datamodule=data)
        return model.batch_keys

    whole = train(LatentDataModule(tmp_path, batch_size=2, workers=workers), 5)
    first = LatentDataModule(tmp_path, batch_size=2, workers=workers)
    train(first, 3)
    second = LatentDataModule(tmp_path, batch_size=2, workers=workers)
    second.load_state_dict(first.state_dict())
    assert first.state_dict() == {"position": 3}
    assert train(second, 2) == whole[3:]
