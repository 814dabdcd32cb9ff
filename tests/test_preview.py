"""A preview of a preparation, and the estimate that a preparation prints before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_prep import first_shard, forecast, pipeline, preview
from data_prep.clips.clip_list import SPLITS
from data_prep.estimate import Cost, Machine, Work, estimate, require_room
from data_prep.preview_clips import choose_windows, sample_clips
from data_prep.preview_file import read_cost
from iclora_train.config import ConfigError
from iclora_train.core.progress import progress_bar
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel, open_base
from tests.clips import write_clip
from tests.command import run
from tests.prep import config_of, contents, listed, overrides, write_clips

MANY = ("train",) * 12 + ("val",) * 3 + ("heldout",) * 3


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("many"), MANY)


def number_of(key: str) -> int:
    """The number of the clip of a window."""
    return int(key.rpartition("-")[0].removeprefix("clip"))


def test_eight_windows_of_eight_clips_and_all_splits(tmp_path: Path, base: Path, many: Path) -> None:
    result = run(tmp_path, "data_prep", "preview", *overrides(Path("root"), many, base))
    assert result.code == 0, result.err
    folder = tmp_path / "root/preview"
    keys = sorted(path.stem for path in folder.glob("*.mp4"))
    assert len({key.rpartition("-")[0] for key in keys}) == len(keys) == 8
    page = (folder / "contact.html").read_text()
    assert all(f" {key} " in page for key in keys)
    splits = {MANY[number_of(key)] for key in keys}
    assert splits == set(SPLITS)
    assert "38 windows" in result.out  # 30 for training, 4 of val, 4 of heldout
    assert all(word in result.out for word in ("decode", "VAE", "latents", "free: "))


def test_a_preview_touches_nothing_else_and_replaces_an_earlier_one(tmp_path: Path, base: Path, many: Path) -> None:
    root = tmp_path / "root"
    config = config_of(root, many, base)
    folder = preview.preview(config, open_base(config.model))
    (folder / "old-00000.mp4").write_bytes(b"of an earlier preview")
    first = contents(folder)
    preview.preview(config, open_base(config.model))
    second = contents(folder)
    assert {*second} == {*first} - {"old-00000.mp4"}
    assert {name: data for name, data in second.items() if name.endswith("mp4")} == {
        name: first[name] for name in second if name.endswith("mp4")
    }
    assert {path.name for path in root.iterdir()} == {"preview"}


def test_the_windows_of_a_preview_are_windows_of_the_preparation(tmp_path: Path, base: Path, many: Path) -> None:
    config = config_of(tmp_path / "root", many, base)
    folder = preview.preview(config, open_base(config.model))
    pipeline.prepare(config)
    made = {sample.key for sample in ShardSet.open(tmp_path / "root/pairs").samples}
    train = {path.stem for path in folder.glob("*.mp4") if MANY[number_of(path.stem)] == "train"}
    assert train
    assert train <= made


def test_only_as_many_clips_are_probed_as_needed(tmp_path: Path, base: Path, many: Path) -> None:
    config = config_of(tmp_path / "root", many, base)
    with progress_bar("choosing clips", None) as bar:
        sample = sample_clips(listed(config), config, bar)
    assert sample.probed == {"train": 6, "val": 1, "heldout": 1}
    order = [clip.id for clip in listed(config) if clip.split == "train"]
    places = sorted(order.index(probed.clip.id) for probed in sample.usable if probed.clip.split == "train")
    assert places[0] < 2
    assert places[-1] >= 10


def test_every_bucket_is_shown(tmp_path: Path, base: Path) -> None:
    """Clips of the rare shape come last in the list."""
    paths = [write_clip(tmp_path / f"clips/a{i:02d}.mp4", seed=i) for i in range(12)]
    paths.append(write_clip(tmp_path / "clips/z.mp4", height=64, width=32, seed=50))
    rows = [
        f"{path.stem},{path},{'train' if i % 6 else ('val', 'heldout', 'train')[i // 6]}"
        for i, path in enumerate(paths)
    ]
    (tmp_path / "list.csv").write_text("\n".join(["id,video,split", *rows]))
    config = config_of(tmp_path / "root", tmp_path / "list.csv", base, "data.buckets=[48x32x5,32x48x5]")
    with progress_bar("choosing clips", None) as bar:
        sample = sample_clips(listed(config), config, bar)
    windows = choose_windows(sample.usable, config.data)
    assert len(windows) == 8
    assert {window.size for window in windows} == {(32, 48), (48, 32)}


def test_few_clips_give_several_windows_each_and_bad_clips_are_named(tmp_path: Path, base: Path) -> None:
    clips = write_clips(tmp_path / "clips", ("train", "train", "val", "heldout"))
    (tmp_path / "clips/clip1.mp4").write_bytes(b"no video")
    result = run(tmp_path, "data_prep", "preview", *overrides(Path("root"), clips, base))
    assert result.code == 0, result.err
    assert len(list((tmp_path / "root/preview").glob("*.mp4"))) == 8
    assert "dropped: clip1: " in result.out


def test_no_usable_clip_is_an_error_with_the_reason(tmp_path: Path, base: Path) -> None:
    clips = write_clips(tmp_path / "clips")
    result = run(tmp_path, "data_prep", "preview", *overrides(Path("root"), clips, base, "data.frames=97"))
    assert result.code == 2
    assert "none of 5 clips can be used (clip" in result.err
    assert "data.frames=97" in result.err


def test_a_preview_needs_no_checkpoint(tmp_path: Path, many: Path) -> None:
    settings = ("data.frames=9", "data.height=32", "data.width=32", "data.workers=0")
    result = run(tmp_path, "data_prep", "preview", "conf=deblur", "model=ltx2_3", f"data.clips={many}", *settings)
    assert result.code == 0, result.err
    assert "not encoded by the VAE: no model.checkpoint is named" in result.out
    assert "without the VAE and the text encoder" in result.out
    assert len(list((tmp_path / "shards/deblur-ltx2_3/preview").glob("*.mp4"))) == 8


def test_a_large_vae_does_not_encode_on_a_cpu(
    tmp_path: Path, base: Path, many: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data_prep.measure.CPU_PARAMETERS", 1000)
    config = config_of(tmp_path / "root", many, base)
    preview.preview(config, BaseModel.open(str(base)))
    out = capsys.readouterr().out
    assert "there is no GPU, and the VAE of" in out
    assert "VAE   " not in out


def test_the_estimate_of_a_preparation_comes_from_the_preview(
    tmp_path: Path, base: Path, many: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path / "root", many, base)
    preview.preview(config, BaseModel.open(str(base)))
    monkeypatch.setattr(forecast, "_measure", lambda *_: pytest.fail("nothing must be measured again"))
    capsys.readouterr()
    pipeline.prepare(config)
    assert "measured on 8 windows" in capsys.readouterr().out
    other = replace(config, data=replace(config.data, zoom=1.5))
    assert read_cost(other) is None
    (tmp_path / "root/preview/preview.json").write_text('{"settings": "a", "cost": {"windows": 0}}')
    assert read_cost(config) is None


def test_the_estimate_of_sizes_comes_true(
    tmp_path: Path, base: Path, many: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a preview it is made from two windows; after the first shard it is printed again."""
    monkeypatch.setattr(pipeline, "SHARD_CLIPS", 10)
    config = config_of(tmp_path / "root", many, base)
    shown = []
    monkeypatch.setattr(forecast, "show_estimate", lambda cost, work, machine, result: shown.append(result))
    pipeline.prepare(config)
    tars = {
        kind: sum(path.stat().st_size for path in (tmp_path / "root" / kind).glob("*.tar"))
        for kind in ("pairs", "latents")
    }
    (result,) = shown
    pairs = result.bytes["pairs"] + result.bytes["pairs, val and heldout"]
    assert pairs == pytest.approx(tars["pairs"], rel=0.4)
    assert result.bytes["latents"] < tars["latents"]
    err = capsys.readouterr().err
    assert "10 windows took " in err
    assert "28 more: about " in err
    assert err.count(" more: about ") == 1


def test_a_disk_that_cannot_hold_the_result_is_refused_before_the_work(
    tmp_path: Path, base: Path, many: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data_prep.estimate.free_bytes", lambda _: 10_000)
    config = config_of(tmp_path / "root", many, base)
    with pytest.raises(
        ConfigError, match=r"kB will be written to .*10 kB free: make room, set data.root.*checks.disk="
    ):
        pipeline.prepare(config)
    assert not list((tmp_path / "root").glob("*/*.tar"))
    anyway = config_of(tmp_path / "root", many, base, "checks.disk=false")
    pipeline.prepare(anyway)
    assert "warning: about" in capsys.readouterr().err
    ShardSet.open(tmp_path / "root/latents")


COST = Cost(
    2, 200, {"decode": 1.0, "maker": 2.0, "checks": 0.5, "compression": 0.5, "vae": 3.0}, {"pairs": 100.0, "text": 7.0}
)


def test_time_depends_on_workers_and_gpus() -> None:
    work = Work(windows=20, pixels=2000, captions=4)
    assert estimate(COST, work, Machine(0, 16, 1, 0)).total_seconds == pytest.approx(70)  # one after the other
    assert estimate(COST, work, Machine(4, 16, 1, 0)).total_seconds == pytest.approx(30)  # the VAE is slower
    assert estimate(COST, work, Machine(4, 16, 2, 0)).total_seconds == pytest.approx(15)
    assert estimate(COST, work, Machine(2, 16, 2, 0)).total_seconds == pytest.approx(20)  # the workers are slower
    assert estimate(COST, work, Machine(64, 2, 2, 0)).total_seconds == pytest.approx(20)  # two cores are two processes
    assert estimate(COST, work, Machine(4, 16, 0, 0)).total_seconds == pytest.approx(40)  # a CPU does both


def test_sizes_count_windows_and_captions() -> None:
    result = estimate(COST, Work(windows=20, pixels=2000, captions=4), Machine(0, 1, 0, 0))
    assert result.bytes == {"pairs": 1000, "text in latents": 140, "text cache": 28}
    assert result.open == ("the text encoder",)
    large = replace(COST, bytes={"text": 8e6})
    sizes = estimate(large, Work(windows=20, pixels=2000, captions=4, texts=5), Machine(0, 1, 0, 0)).bytes
    assert sizes == {"text in latents": 40e6, "text cache": 32e6}  # each shard stores a large caption once


def test_pairs_of_train_and_of_the_other_splits_are_counted_apart() -> None:
    """Only the pixels of val and heldout windows may be kept (`data.keep`)."""
    cost = replace(COST, bytes={"pairs": 10.0, "pairs, val and heldout": 300.0})
    sizes = estimate(cost, Work(windows=20, pixels=2000, fixed_pixels=400), Machine(0, 1, 0, 0)).bytes
    assert sizes == {"pairs": 80, "pairs, val and heldout": 600}
    unmeasured = replace(COST, bytes={"pairs": 10.0})
    sizes = estimate(unmeasured, Work(windows=20, pixels=2000, fixed_pixels=400), Machine(0, 1, 0, 0)).bytes
    assert sizes == {"pairs": 80, "pairs, val and heldout": 20}


def test_a_disk_that_may_hold_the_result_only_warns(
    tmp_path: Path, base: Path, many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path / "root", many, base)
    result = estimate(COST, Work(windows=20, pixels=2000), Machine(0, 1, 0, 0))
    require_room(result, Machine(0, 1, 0, free=1140), config)
    assert capsys.readouterr().err == ""
    require_room(result, Machine(0, 1, 0, free=1000), config)
    assert capsys.readouterr().err.startswith("warning: about 1 kB will be written to ")
    with pytest.raises(ConfigError, match="make room"):
        require_room(result, Machine(0, 1, 0, free=700), config)


def test_the_line_after_the_first_shard_warns_when_the_rest_does_not_fit(
    tmp_path: Path, base: Path, many: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "SHARD_CLIPS", 10)
    monkeypatch.setattr(first_shard, "free_bytes", lambda _: 1000)
    pipeline.prepare(config_of(tmp_path / "root", many, base))
    assert "will not hold all shards: make room" in capsys.readouterr().err
