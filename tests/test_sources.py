"""Several sets of clips in one run (`data.sources`): shares, recordings in several sets, errors, training."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from iclora_train.config import Config, ConfigError
from iclora_train.config.sources import DataSource, apportion, check_sources, windows_per_epoch
from iclora_train.core.types import LatentPair, VideoShape
from iclora_train.data.batch_sampler import BatchPlan, BatchSampler, Draw, plan_batches
from iclora_train.data.mixture import Mixture, open_data
from iclora_train.data.recordings import recording_of_clips
from iclora_train.data.shard_sample import pack_latents
from iclora_train.data.shards import ShardWriter
from tests.command import read_csv, run
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents

SHAPES = {"long": VideoShape(9, 32, 32, 25.0), "short": VideoShape(5, 32, 32, 25.0)}


def write_set(
    root: Path, clips: dict[str, Sequence[tuple[str, str]]], shape: str = "short", references: int = 1, **task: object
) -> Path:
    """A latent set without a base. clips: split -> (clip id, recording or ""), one window each."""
    settings = {"task": {"reference_downscale": 1, "reference_temporal_scale": 1, **task}, "data": {"fps": 25.0}}
    writer = ShardWriter(root / "latents", "latents", {"settings": settings, "base": {"parts": {"vae": "a"}}})
    for split, rows in clips.items():
        latent = torch.zeros(2, SHAPES[shape].frames // 4 + 1, 4, 4)
        pairs = [LatentPair(clip, latent, (latent,) * references, torch.zeros(3, 4), 25.0, clip) for clip, _ in rows]
        samples = [
            pack_latents(pair, SHAPES[shape], clip, {"source": recording})
            for pair, (clip, recording) in zip(pairs, rows, strict=True)
        ]
        writer.write(f"{split}-000000.tar", samples)
    writer.finish([f"{split}-000000.tar" for split in clips])
    return root


def plain_clips(train: int) -> dict[str, Sequence[tuple[str, str]]]:
    return {"train": [(f"t{i}", "") for i in range(train)], "val": [("v0", ""), ("v1", "")]}


def settings(sources: str, *more: str) -> Config:
    return composed("conf=deblur", "data=clips", "data.root=mixed", f"data.sources={sources}", *more)


def mixture(sources: str) -> Mixture:
    opened = open_data(settings(sources), "latents")
    assert isinstance(opened, Mixture)
    return opened


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sets, a of 12 and b of 4 train windows, in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "a", plain_clips(12))
    write_set(tmp_path / "b", plain_clips(4))
    return tmp_path


def drawn(plan: BatchPlan, shards: Mixture, epochs: int) -> list[Counter[str]]:
    """How often each clip occurs in each epoch."""
    steps = [
        [plan.step(n) for n in range(e * plan.steps_per_epoch, (e + 1) * plan.steps_per_epoch)] for e in range(epochs)
    ]
    return [Counter(shards.samples[i].key for step in epoch for batch in step for i in batch) for epoch in steps]


def test_repeats_are_the_times_that_each_window_occurs_in_an_epoch(folders: Path) -> None:
    shards = mixture("[{root: a}, {root: b, repeats: 3}]")
    plan = plan_batches(shards, "train", 0, 2, None)
    for epoch in drawn(plan, shards, 3):
        assert {count for key, count in epoch.items() if key.startswith("a-")} == {1}
        assert {count for key, count in epoch.items() if key.startswith("b-")} == {3}


def test_weights_are_shares_of_an_epoch_and_favour_no_window_of_a_source(folders: Path) -> None:
    """16 windows an epoch, one of two from each source: b's windows occur twice each, a's 12 in 3 epochs twice."""
    shards = mixture("[{root: a, weight: 1}, {root: b, weight: 1}]")
    plan = plan_batches(shards, "train", 0, 2, None)
    epochs = drawn(plan, shards, 3)
    for epoch in epochs:
        assert sum(count for key, count in epoch.items() if key.startswith("a-")) == 8
        assert {count for key, count in epoch.items() if key.startswith("b-")} == {2}
    total: Counter[str] = sum(epochs, Counter())
    assert {count for key, count in total.items() if key.startswith("a-")} == {2}


def test_the_clips_of_a_step_are_a_function_of_seed_and_step_on_any_number_of_ranks(folders: Path) -> None:
    sources = "[{root: a, weight: 3}, {root: b, weight: 2}]"
    plan, again = (plan_batches(mixture(sources), "train", 5, 1, None, 4) for _ in range(2))
    assert [plan.step(n) for n in range(12)] == [again.step(n) for n in reversed(range(12))][::-1]
    assert plan.step(7) != plan_batches(mixture(sources), "train", 6, 1, None, 4).step(7)
    reordered = plan_batches(mixture("[{root: b, weight: 2}, {root: a, weight: 3}]"), "train", 5, 1, None, 4)
    assert reordered.step(7) == plan.step(7)
    ranks = [iter(BatchSampler(plan, 3, rank, 2)) for rank in range(2)]
    together = [next(ranks[i % 2]) for i in range(4)]
    assert together == [list(batch) for batch in plan.step(3)]


def test_buckets_of_several_sources_make_epochs_of_equal_length(folders: Path) -> None:
    write_set(folders / "c", plain_clips(5), shape="long")
    shards = mixture("[{root: a, weight: 1}, {root: b, weight: 1}, {root: c, weight: 2}]")
    plan = plan_batches(shards, "train", 0, 1, None)
    for epoch in drawn(plan, shards, 4):
        by_source = Counter(key[0] for key in epoch.elements())
        assert by_source == {"a": 5, "b": 5, "c": 11}


def test_a_plan_without_sources_is_as_before() -> None:
    """These batches were drawn before sources existed."""
    plan = BatchPlan((tuple(range(7)), tuple(range(100, 105))), 3, (2, 2), 2)
    assert [plan.step(n) for n in range(4)] == [
        ((5, 6), (2, 1)),
        ((4, 3), (100, 101)),
        ((100, 104), (103, 101)),
        ((2, 1), (4, 0)),
    ]


@pytest.mark.parametrize(
    ("draw", "epochs"), [(Draw(0, tuple(range(5)), 3), 5), (Draw(1, (7,), 4), 2), (Draw(0, tuple(range(4)), 9), 4)]
)
def test_every_clip_takes_part_equally_often(draw: Draw, epochs: int) -> None:
    counts = Counter(clip for epoch in range(epochs) for clip in draw.clips_of(epoch, 0, 0))
    assert set(counts) == set(draw.clips)
    assert max(counts.values()) == min(counts.values())


def test_shares_are_whole_numbers_that_add_up() -> None:
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [0.5, 0.25, 0.25]) == [3, 2, 2]
    assert apportion(2, [1000, 1, 1]) == [2, 1, 1]  # none is left out altogether
    weights = [DataSource(root=name, weight=weight) for name, weight in (("a", 3.0), ("b", 1.0))]
    assert windows_per_epoch([10, 90], check_sources(weights)) == [75, 25]
    assert windows_per_epoch([10, 90], [DataSource(root="a", repeats=2), DataSource(root="b")]) == [20, 90]


def test_a_recording_that_is_held_out_in_one_source_is_not_trained_on_in_another(folders: Path) -> None:
    write_set(folders / "c", {"train": [("x", "tape 1"), ("y", "tape 2")], "heldout": [("z", "tape 3")]})
    write_set(folders / "d", {"train": [("x", "")], "val": [("y", "tape 1")], "heldout": [("w", "")]})
    shards = mixture("[{root: c}, {root: d}]")
    train = [shards.samples[i].key for i in shards.indices("train")]
    assert train == ["c-y", "d-x"]  # two clips of one id are two clips
    assert shards.notes == [
        "train windows are left out (1 of c), because their recordings are held out, in the same source or in another: "
        "tape 1"
    ]
    recordings = recording_of_clips(shards)
    assert (recordings["d-y"], recordings["d-x"], recordings["c-y"]) == ("tape 1", "d-x", "tape 2")
    write_set(folders / "e", {"train": [("x", "tape 1")], "val": [("y", "tape 1")]})
    with pytest.raises(ConfigError, match=r"no train windows are left \(train windows are left out \(1 of e\)"):
        mixture("[{root: e}]")


def test_a_mixture_is_read_by_key_and_can_be_sent_to_a_worker(folders: Path) -> None:
    shards = mixture("[{root: a}, {root: b}]")
    copy = pickle.loads(pickle.dumps(shards))
    i = next(i for i in copy.indices("train") if copy.samples[i].key == "b-t3")
    assert (copy.read_latents(i).key, copy.read_latents(i).caption, copy.caption(i)) == ("b-t3", "t3", "t3")
    assert copy.splits == {"train": 16, "val": 4}
    assert shards.sha256 != mixture("[{root: a}]").sha256


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("[]", "data.sources is empty"),
        ("[{weight: 1}]", "needs either clips or root"),
        ("[{root: a, clips: b}]", "needs either clips or root"),
        ("[{root: a, references: b}]", "has references=b: they go with clips"),
        ("[{root: a, weight: 0}]", "weight=0.0 must be a number above 0"),
        ("[{root: a, repeats: 0}]", "repeats=0 must be at least 1"),
        ("[{root: a, weight: 1, repeats: 2}]", "a has weight and repeats"),
        ("[{root: a, weight: 1}, {root: b, repeats: 2}]", "a has a weight and b has repeats"),
        ("[{root: a}, {root: x/a}]", "two sources are called a: give each a name"),
        ("[{root: a, name: a-b}]", "name='a-b' may only hold letters"),
    ],
)
def test_sources_that_contradict_one_another_are_refused(sources: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(sources)


@pytest.mark.parametrize(
    ("clips", "name"),
    [
        ("/videos/own clips/", "own_clips"),
        ("/videos/**/*.mp4", "videos"),
        ("/own/list.csv", "own"),
        ("/set-1/{000..123}.tar", "set_1"),
        ("list.csv", "list_csv"),
    ],
)
def test_a_source_is_called_by_its_folder(clips: str, name: str) -> None:
    assert DataSource(clips=clips).label == name


def test_clips_beside_sources_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.clips=/videos and data.sources are both set"):
        settings("[{root: a}]", "data.clips=/videos")
    with pytest.raises(ConfigError, match=r"data.references=/before and data.sources are both set"):
        settings("[{root: a}]", "data.references=/before")


def test_sources_that_do_not_fit_the_run_or_one_another_are_refused(folders: Path) -> None:
    write_set(folders / "half", plain_clips(2), reference_downscale=2)
    write_set(folders / "two", plain_clips(2), references=2)
    config = settings("[{root: a}, {root: half}]")
    with pytest.raises(ConfigError, match=r"half was made with task.reference_downscale=2, and this run has 1: set"):
        open_data(config, "latents").require_settings(config)
    config = settings("[{root: a}, {root: two}]")
    with pytest.raises(ConfigError, match=r"references of 2x4x4 latents in a, and of 2x4x4, 2x4x4 in two"):
        open_data(config, "latents").require_settings(config)
    with pytest.raises(ConfigError, match=r"a/latents was made by another base: its vae"):
        mixture("[{root: a}]").require_base("other", {"vae": "b"})
    with pytest.raises(ConfigError, match=r"two sources are the folder"):
        mixture("[{root: a}, {root: ./a/, name: c}]")
    with pytest.raises(ConfigError, match=r"none/latents holds no finished shard set"):
        mixture("[{root: a}, {root: none}]")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with two finished sets of a tiny base, and the overrides of a run on both."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny_base(folder / "base")
    common = ["conf=deblur", f"model.checkpoint={base}", "trainer.accelerator=cpu", *SETTINGS, "model.lora.rank=2"]
    common += ["optim=adamw", "trainer.max_steps=4", "run=run", "logger=csv", "eval.after_training=false"]
    common += ["sample.steps=2", "validation.sigmas=[0.5]", "validation.loss_every=4", "validation.checkpoint_every=2"]
    for seed, (name, trigger) in enumerate((("soft", "SOFT"), ("hard", ""))):
        config = composed(*common, f"task.trigger={trigger}", f"data.root={folder}")
        write_tiny_latents(folder / name / "latents", base, config, seed=seed, train=12)
    return folder, common


def test_a_run_on_two_sources_counts_the_windows_of_each_and_resumes(tiny: tuple[Path, list[str]]) -> None:
    folder, common = tiny
    weights = "data.sources=[{root: soft, weight: 3}, {root: hard, weight: 1}]"
    result = run(folder, "iclora_train", *common, weights, "data.batch_size=4")
    assert (result.code, result.err) == (0, "")
    assert "sources: hard (weight 1, 12 windows), soft (weight 3, 12 windows)" in result.out
    config = composed(*common, weights.replace("root: ", f"root: {folder}/"), "data.batch_size=4")
    shards = open_data(config, "latents")
    assert isinstance(shards, Mixture)
    plan = plan_batches(shards, "train", config.seed, 4, None)
    table = read_csv(folder / "runs/run/metrics.csv")
    for n, row in enumerate(table[1:]):
        names = Counter(shards.samples[i].key.partition("-")[0] for batch in plan.step(n) for i in batch)
        assert (row["drawn_soft"], row["drawn_hard"]) == (str(names["soft"]), str(names["hard"]))
    card = (folder / "runs/run/adapter.md").read_text()
    assert "hard (weight 1, 12 windows); soft (weight 3, 12 windows, trigger SOFT)" in card
    adapter = (folder / "runs/run/adapter.safetensors").read_bytes()
    (folder / "runs/run/adapter.safetensors").unlink()
    (folder / "runs/run/checkpoints/step-00000004.ckpt").unlink()
    assert run(folder, "iclora_train", *common, weights, "data.batch_size=4").code == 0
    assert (folder / "runs/run/adapter.safetensors").read_bytes() == adapter
    refused = run(folder, "iclora_train", *common, weights.replace("3", "2"), "data.batch_size=4")
    assert refused.code == 2
    assert "data.sources.soft: weight 3 -> weight 2" in refused.err
