"""Batches and steps: a pure function of the seed, by clips or by tokens, on any number of ranks, resumed exactly."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer

from iclora_train.config import Config, ConfigError, Data
from iclora_train.core.types import LatentPair, VideoShape
from iclora_train.data.batch import Batch
from iclora_train.data.batch_sampler import BatchPlan, BatchSampler, bucket_tokens, clips_per_batch, plan_batches
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


BUCKETS = (tuple(range(13)), tuple(range(100, 109)))


def flattened(plan: BatchPlan, steps: int) -> list[tuple[int, ...]]:
    return [batch for n in range(steps) for batch in plan.step(n)]


@pytest.mark.parametrize("batches_per_step", [1, 2, 3, 4, 8])
def test_a_plan_is_pure_uses_no_clip_twice_in_an_epoch_and_leaves_out_less_than_a_step(batches_per_step):
    plan = BatchPlan(BUCKETS, 0, (2, 2), batches_per_step)
    steps = plan.steps_per_epoch
    assert steps == 10 // batches_per_step  # 6 batches of the first bucket, 4 of the second
    for epoch in range(3):
        batches = [batch for n in range(epoch * steps, (epoch + 1) * steps) for batch in plan.step(n)]
        assert len(batches) == steps * batches_per_step
        assert all(len(batch) == 2 for batch in batches)
        assert all(len({i >= 100 for i in batch}) == 1 for batch in batches)
        assert set(Counter(i for batch in batches for i in batch).values()) == {1}
    again = BatchPlan(BUCKETS, 0, (2, 2), batches_per_step)
    assert [plan.step(n) for n in (7, 0, 7)] == [again.step(n) for n in (7, 0, 7)]
    assert len({BatchPlan(BUCKETS, seed, (2, 2), batches_per_step).step(0) for seed in range(3)}) > 1
    assert {plan.step(n) for n in range(steps)} != {plan.step(n) for n in range(steps, 2 * steps)}


def test_each_bucket_has_batches_of_its_size():
    plan = BatchPlan(BUCKETS, 0, (3, 1), 2)
    for epoch in range(2):
        batches = flattened(plan, (epoch + 1) * plan.steps_per_epoch)[epoch * 2 * plan.steps_per_epoch :]
        assert Counter((len(batch), batch[0] >= 100) for batch in batches) in (
            Counter({(3, False): 4, (1, True): 8}),
            Counter({(3, False): 3, (1, True): 9}),
        )


def test_the_batches_of_a_step_are_of_one_bucket_as_far_as_possible():
    """11 + 6 + 2 batches in steps of 4: 2 + 1 + 0 steps of one bucket. 7 batches are left for one step, and 3 left out
    (or, where the batches left out are of the first two buckets, fewer steps of one bucket and two of several)."""
    buckets = (tuple(range(11)), tuple(range(100, 106)), (200, 201))
    plan = BatchPlan(buckets, 0, (1, 1, 1), 4)
    assert plan.steps_per_epoch == 4
    mixed = []
    for epoch in range(50):
        steps = [plan.step(n) for n in range(4 * epoch, 4 * epoch + 4)]
        kinds = [Counter(clip // 100 for (clip,) in step) for step in steps]
        together = sum(kinds, Counter())
        assert sum(len(kind) == 1 for kind in kinds) == sum(count // 4 for count in together.values())
        mixed += [step for step, kind in zip(steps, kinds, strict=True) if len(kind) > 1]
    assert all([clip // 100 for (clip,) in step] == sorted(clip // 100 for (clip,) in step) for step in mixed)


def test_a_bucket_smaller_than_a_step_is_trained_on_as_often_as_others():
    plan = BatchPlan((tuple(range(30)), (100, 101)), 0, (1, 1), 8)
    epochs = 300
    used = Counter(clip for batch in flattened(plan, epochs * plan.steps_per_epoch) for clip in batch)
    assert plan.steps_per_epoch == 4
    assert set(used.values()) == {epochs}  # 32 clips fill 4 steps
    plan = BatchPlan((tuple(range(33)), (100, 101)), 0, (1, 1), 8)
    used = Counter(clip for batch in flattened(plan, epochs * plan.steps_per_epoch) for clip in batch)
    assert len(used) == 35
    assert all(count == pytest.approx(epochs * 32 / 35, rel=0.1) for count in used.values())


@pytest.mark.parametrize(("world_size", "accumulated"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_every_split_of_a_step_has_the_same_batches_at_the_same_places(world_size, accumulated):
    plan = BatchPlan(BUCKETS, 0, (1, 1), 8)
    ranks = [iter(BatchSampler(plan, 3, rank, world_size)) for rank in range(world_size)]
    for n in range(3, 9):
        slots = [next(batches) for _ in range(accumulated) for batches in ranks]  # as in ICLoRA.training_step
        assert slots == [list(batch) for batch in plan.step(n)]


def test_one_batch_per_step_keeps_the_order_of_version_0_1():
    """Adapters and figures of earlier versions were made in this order."""
    plan = BatchPlan(BUCKETS, 0, (2, 2))
    assert [list(batch) for batch in flattened(plan, 12)] == [
        *([5, 12], [106, 104], [0, 3], [11, 8], [102, 105], [6, 9]),
        *([7, 4], [10, 2], [101, 103], [107, 108], [1, 12], [0, 7]),
    ]
    plan = BatchPlan(BUCKETS, 3, (3, 1))
    assert [list(batch) for batch in flattened(plan, 16)] == [
        *([104], [4, 7, 6], [10, 5, 3], [102], [103], [107], [100], [105]),
        *([106], [108], [11, 0, 1], [101], [9, 12, 2], [108], [107], [104]),
    ]


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
    assert not caplog.text


def test_a_clip_beyond_the_budget_is_a_batch_of_one_with_one_warning(tmp_path, caplog):
    write_buckets(tmp_path, {"32x32x5": 2, "64x32x5": 2, "64x64x5": 2})
    data = LatentDataModule(tmp_path, 3, tokens_per_batch=80)
    assert sorted(len(keys) for keys, _ in first_batches(data, 5)) == [1, 1, 1, 1, 2]
    assert [record.message for record in caplog.records] == [
        "data.tokens_per_batch=80 is less than one clip of 64x32x5 (90 tokens), 64x64x5 (160 tokens): 1 clip per batch"
    ]


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


def test_batches_do_not_depend_on_workers(tmp_path):
    write_latents(tmp_path, {"train": [5, 6], "val": [3]})
    alone = first_batches(LatentDataModule(tmp_path, batch_size=2, seed=3), 9)
    spawned = first_batches(LatentDataModule(tmp_path, batch_size=2, seed=3, workers=2), 9)
    assert [keys for keys, _ in alone] == [keys for keys, _ in spawned]
    assert all(a.equal(b) for (_, a), (_, b) in zip(alone, spawned, strict=True))


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
    with pytest.raises(ConfigError, match=r"data\.batch_size=4 needs 4 clips of 32x32x5, which has 3 in.*: lower data"):
        LatentDataModule(tmp_path, batch_size=4).train_dataloader()
    shards = ShardSet.open(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.tokens_per_batch=160 needs 4 clips of 32x32x5, which has 3 in"):
        plan_batches(shards, "train", 0, 1, tokens_per_batch=160)
    with pytest.raises(
        ConfigError,
        match=r"a step has 4 batches \(trainer\.devices x trainer\.num_nodes x trainer\.accumulate_grad_batches\), "
        r"and with data\.batch_size=1 the clips in .* fill 3: lower .* use fewer GPUs, or prepare more windows",
    ):
        plan_batches(shards, "train", 0, 1, None, batches_per_step=4)
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
def test_a_resumed_run_goes_on_with_the_batch_after_the_last_one_it_trained_on(workers, tmp_path):
    """Batches that were only read ahead do not count."""
    write_latents(tmp_path, {"train": [5], "val": [3]})
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    checkpoint = tmp_path / "after3.ckpt"

    def train(steps: int, resume: Path | None = None) -> list[list[str]]:
        model, data = KeyRecorder(), LatentDataModule(tmp_path, batch_size=2, workers=workers)
        trainer = Trainer(max_steps=steps, accelerator="cpu", use_distributed_sampler=False, **quiet)
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"after{steps}.ckpt")
        return model.batch_keys

    whole = train(5)
    assert train(3) == whole[:3]
    assert train(5, checkpoint) == whole[3:]
