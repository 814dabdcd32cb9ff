"""Preparation from clips to shards: selection, reproducible references, interrupted runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
import torch
import webdataset
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from data_prep import pipeline
from data_prep.clips.windows import Window
from data_prep.pairs import SourceVideo, crop_window, read_windows
from iclora_train.config import Config, ConfigError, to_config
from iclora_train.config.hydra_app import conf_dir
from iclora_train.core.atomic_files import DiskFullError, exclusive
from iclora_train.core.types import Geometry
from iclora_train.data.batch_sampler import plan_batches
from iclora_train.data.shard_index import ShardError
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.shard_clip import encode_clip
from tests.clips import moving, write_clip
from tests.prep import contents, remake
from tests.tiny import write_tiny_base

SIZE = ("data.frames=5", "data.height=32", "data.width=32", "data.train_windows=10", "data.heldout_windows=2")


def compose(*overrides: str) -> Config:
    """A config as `python -m data_prep` composes it."""
    ConfigStore.instance().store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return to_config(hydra.compose("prep", [*SIZE, "data.keep=lossless", *overrides]))


def die_while_writing(nth: str, overrides: list[str]) -> None:
    """Prepare, but kill this process with SIGKILL after it wrote `nth` samples. A test runs this in a new process."""
    write, remaining = webdataset.TarWriter.write, [int(nth)]

    def write_or_die(tar: webdataset.TarWriter, sample: dict) -> int:
        size = write(tar, sample)
        remaining[0] -= 1
        if remaining[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return size

    webdataset.TarWriter.write = write_or_die
    pipeline.SHARD_CLIPS = 8
    pipeline.prepare(compose(*overrides))


@pytest.fixture(scope="module", autouse=True)
def _small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "SHARD_CLIPS", 8)
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A csv list of five clips with splits, one of them too short."""
    folder = tmp_path_factory.mktemp("clips")
    rows = ["video,caption,split"]
    for i, (split, frames) in enumerate((("train", 24), ("train", 20), ("val", 30), ("heldout", 30), ("train", 3))):
        write_clip(folder / f"clip{i}.mp4", frames, seed=i)
        rows.append(f"clip{i}.mp4,a moving texture {i},{split}")
    (folder / "list.csv").write_text("\n".join(rows))
    return folder / "list.csv"


def config_for(root: Path, clips: Path, base: Path, *more: str) -> Config:
    return compose(
        "conf=deblur", "model.name=tiny", f"model.checkpoint={base}", f"data.clips={clips}", f"data.root={root}", *more
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, clips, base) -> Path:
    return pipeline.prepare(config_for(tmp_path_factory.mktemp("shards"), clips, base))


# --- from clips to shards ---


def test_clips_become_pairs_and_latents(prepared, clips, base):
    pairs, latents = ShardSet.open(prepared / "pairs"), ShardSet.open(prepared / "latents")
    for shards in (pairs, latents):
        shards.verify()
        assert shards.splits == {"train": 10, "val": 2, "heldout": 2}
        assert shards.buckets == {"32x32x5": 14}
        shards.require_settings(config_for(prepared, clips, base))
    assert [sample.key for sample in pairs.samples] == [sample.key for sample in latents.samples]
    assert [facts["count"] for facts in pairs.shards.values()] == [8, 2, 2, 2]
    opened = BaseModel.open(str(base))
    latents.require_base(opened.name, opened.latent_fingerprints)
    pair, latent = pairs.read_pair(3), latents.read_latents(3)
    assert pair.caption == latent.caption
    assert pair.caption.startswith("DEBLUR a moving texture")
    video = torch.from_numpy(pair.target).permute(3, 0, 1, 2)[None] / 127.5 - 1
    expected = opened.vae().encode(video)[0]
    assert (latent.target - expected).abs().max() < 2e-3
    assert latent.references[0].shape == latent.target.shape
    assert (latent.text - opened.text().encode([pair.caption])[0]).abs().max() < 2e-3


def test_the_report_lists_dropped_clips_with_reasons(prepared):
    report = json.loads((prepared / "report.json").read_text())
    assert report["kept"]["train"] == {"clips": 2, "windows": 10}
    (dropped,) = report["dropped"]
    assert dropped["clip"].startswith("clip4")
    assert dropped["reason"] == "3 frames are fewer than data.frames=5"


def test_splits_share_no_clip_and_windows_are_spread_over_the_clips(prepared):
    samples = ShardSet.open(prepared / "pairs").samples
    train, val, heldout = (
        {sample.source for sample in samples if sample.split == split} for split in ("train", "val", "heldout")
    )
    assert not train & val | train & heldout | val & heldout
    assert [sum(sample.source == source for sample in samples) for source in sorted(train)] == [5, 5]


def test_a_record_is_enough_to_remake_the_reference(prepared, clips):
    pairs = ShardSet.open(prepared / "pairs")
    for i in (0, 7, 9, 13):
        pair = pairs.read_pair(i)
        path = clips.parent / str(pair.record["file"])
        assert (remake(SourceVideo(path), pair.record) == pair.references[0]).all()
        window = Window.from_record(pair.record["window"])
        assert (crop_window(next(read_windows(path, [window])), window) == pair.target).all()
        assert not (pair.target == pair.references[0]).all()


def test_a_second_run_does_nothing(prepared, clips, base, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    monkeypatch.setattr(pipeline, "select_clips", None)
    pipeline.prepare(config_for(prepared, clips, base))
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


@pytest.mark.parametrize("nth", ["20", "26"])  # a shard has 8 pairs and 8 latents
def test_a_killed_run_continues_to_the_same_bytes(nth, tmp_path, prepared, clips, base):
    overrides = ["conf=deblur", "model.name=tiny", f"model.checkpoint={base}", f"data.clips={clips}"]
    overrides.append(f"data.root={tmp_path}")
    program = "import sys; from tests.test_data_prep import die_while_writing as die; die(sys.argv[1], sys.argv[2:])"
    killed = subprocess.run([sys.executable, "-c", program, nth, *overrides], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert list(tmp_path.rglob("*.tar.tmp"))
    modified = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    assert modified
    pipeline.prepare(compose(*overrides))
    assert {path: path.stat().st_mtime_ns for path in modified} == modified
    assert contents(tmp_path) == contents(prepared)


def test_a_deleted_shard_is_rewritten(tmp_path, prepared, clips, base):
    config = config_for(tmp_path, clips, base)
    pipeline.prepare(config)
    (tmp_path / "latents" / "val-000000.tar").unlink()
    pipeline.prepare(config)
    assert contents(tmp_path) == contents(prepared)


def test_a_full_disk_is_reported_and_the_run_can_continue(tmp_path, prepared, clips, base, monkeypatch):
    config, write = config_for(tmp_path, clips, base), webdataset.TarWriter.write
    remaining = [4]

    def write_some(tar: webdataset.TarWriter, sample: dict) -> int:
        remaining[0] -= 1
        if remaining[0] < 0:
            raise OSError(28, "No space left on device")
        return write(tar, sample)

    monkeypatch.setattr(webdataset.TarWriter, "write", write_some)
    with pytest.raises(DiskFullError, match=f"No space left on device. Make room in {tmp_path}"):
        pipeline.prepare(config)
    assert [path.name for path in tmp_path.rglob("*.tar*")] == []
    monkeypatch.undo()
    pipeline.prepare(config)
    assert contents(tmp_path) == contents(prepared)


def test_another_base_or_other_settings_are_refused(prepared, clips, base, tmp_path):
    other = write_tiny_base(tmp_path, seed=1)
    with pytest.raises(ShardError, match=r"latents holds shards of other settings \(base\.parts"):
        pipeline.prepare(config_for(prepared, clips, other))
    with pytest.raises(ShardError, match=r"settings\.task\.maker_args\.radius: \[2\.5, 3\.0\] -> \[2, 3\]"):
        pipeline.prepare(config_for(prepared, clips, base, "task.maker_args.radius=[2,3]"))


def test_two_preparations_cannot_write_to_one_folder(tmp_path, clips, base):
    config = config_for(tmp_path, clips, base)
    with (
        exclusive(Path(config.data.root), "..."),
        pytest.raises(ConfigError, match=r"being written by another process.*set another data\.root"),
    ):
        pipeline.prepare(config)
    assert not (Path(config.data.root) / "pairs").exists()
    pipeline.prepare(config)


def test_references_may_be_smaller_and_slower(tmp_path, clips, base):
    scales = ("task.reference_downscale=2", "task.reference_temporal_scale=2", "data.frames=9")
    root = pipeline.prepare(config_for(tmp_path, clips, base, *scales, "data.train_windows=4"))
    pairs, latents = ShardSet.open(root / "pairs"), ShardSet.open(root / "latents")
    assert pairs.read_pair(0).references[0].shape == (5, 16, 16, 3)
    assert latents.read_latents(0).references[0].shape[1:] == (2, 2, 2)
    assert latents.read_latents(0).target.shape[1:] == (3, 4, 4)
    assert pairs.read_pair(0).record["reference_frames"] == [0, 1, 3, 5, 7]


def test_a_supplied_reference_is_cropped_like_its_target(tmp_path, base):
    write_clip(tmp_path / "a.mp4", seed=1)
    write_clip(tmp_path / "b.mp4", seed=2)
    write_clip(tmp_path / "short.mp4", 12)
    rows = [{"video": "a.mp4", "reference": "b.mp4"}, {"video": "b.mp4", "reference": "short.mp4"}, {"video": "b.mp4"}]
    rows = [{"id": f"clip{i}", "split": "train", **row} for i, row in enumerate(rows)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = ("task.maker=given", "~task.maker_args.radius", "data.train_windows=2")
    root = pipeline.prepare(config_for(tmp_path / "out", tmp_path / "list.jsonl", base, *settings))
    pair = ShardSet.open(root / "pairs").read_pair(1)
    window = Window.from_record(pair.record["window"])
    (frames,) = read_windows(tmp_path / "b.mp4", [window])
    assert (pair.references[0] == crop_window(frames, window)).all()
    assert [
        dropped["reason"].split(",")[0] for dropped in json.loads((root / "report.json").read_text())["dropped"]
    ] == [
        "its reference has 12 frames",
        "the list names no reference",
    ]


def test_clips_of_several_shapes_become_shards_of_several_buckets(tmp_path, base):
    for i, (height, width, frames) in enumerate(((48, 80, 20), (80, 48, 20), (48, 80, 6))):
        write_clip(tmp_path / f"{i}.mp4", frames, height, width, seed=i)
    rows = [{"id": f"c{i}", "video": f"{i}.mp4", "split": "train", "mood": f"mood {i}"} for i in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = ("data.buckets=[64x32x9,32x64x9,64x32x5]", "data.prompt='A {mood}, {trigger}'", "data.train_windows=9")
    root = pipeline.prepare(config_for(tmp_path / "out", tmp_path / "list.jsonl", base, *settings))
    pairs, latents = ShardSet.open(root / "pairs"), ShardSet.open(root / "latents")
    assert pairs.buckets == latents.buckets == {"64x32x9": 3, "32x64x9": 3, "64x32x5": 3}
    for i in range(len(pairs)):
        pair, latent = pairs.read_pair(i), latents.read_latents(i)
        assert pair.target.shape == pair.references[0].shape
        assert latent.target.shape[1:] == opened_geometry(base).latent_size(*pair.target.shape[:3])
        assert pair.caption == f"A mood {pairs.samples[i].source[1]}, DEBLUR"
    latents.require_settings(config_for(tmp_path / "out", tmp_path / "list.jsonl", base, *settings))
    plan = plan_batches(latents, "train", 0, 3, None)
    assert all(len({latents.samples[i].bucket for i in plan.step(n)[0]}) == 1 for n in range(6))


def opened_geometry(base: Path) -> Geometry:
    return BaseModel.open(str(base)).geometry


def test_unset_new_settings_keep_older_shards_valid(prepared, clips, base):
    stored_settings = ShardSet.open(prepared / "pairs").fingerprint["settings"]["data"]
    assert not set(stored_settings) & set(pipeline.NEW_SETTINGS)
    with pytest.raises(ShardError, match=r"settings\.data\.pick: None -> stride"):
        pipeline.prepare(config_for(prepared, clips, base, "data.pick=stride"))


def test_images_become_shards_of_one_frame(tmp_path, base):
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), moving(1, 40, 56, seed=i)[0, ..., ::-1])
        (tmp_path / f"{i}.txt").write_text(f"picture {i}")
    root = pipeline.prepare(config_for(tmp_path / "out", tmp_path, base, "data.frames=1", "data.fps=24"))
    pairs = ShardSet.open(root / "pairs")
    assert set(pairs.buckets) == {"32x32x1"}
    assert pairs.read_pair(0).fps == 24
    assert pairs.read_pair(0).caption.startswith("DEBLUR picture")


def test_a_reference_of_another_resolution_gets_the_same_crop(tmp_path, base):
    """Target and reference are one video, the reference at half the size: their windows must match."""
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in moving(12, 96, 128)])
    small = np.stack([cv2.resize(frame, (64, 48), interpolation=cv2.INTER_AREA) for frame in frames])
    (tmp_path / "a.mp4").write_bytes(encode_clip(frames, 25))
    (tmp_path / "b.mp4").write_bytes(encode_clip(small, 25))
    (tmp_path / "list.jsonl").write_text('{"video": "a.mp4", "reference": "b.mp4", "split": "train"}')
    settings = ("task.maker=given", "~task.maker_args.radius", "data.short_side=64", "data.train_windows=6")
    root = pipeline.prepare(config_for(tmp_path / "out", tmp_path / "list.jsonl", base, *settings))
    pairs = ShardSet.open(root / "pairs")
    for i in range(len(pairs)):
        pair = pairs.read_pair(i)
        difference = np.abs(pair.references[0].astype(int) - pair.target).mean()
        assert difference < 4
        assert difference < np.abs(np.roll(pair.references[0], 3, axis=2).astype(int) - pair.target).mean() / 2


def test_clips_without_a_caption_are_reported(tmp_path, base):
    for i in range(4):
        write_clip(tmp_path / f"{i}.mp4", 9, seed=i)
    (tmp_path / "0.txt").write_text("a texture")
    root = pipeline.prepare(config_for(tmp_path / "out", tmp_path, base))
    without_caption = json.loads((root / "report.json").read_text())["without_caption"]
    assert len(without_caption) == 3
    assert not any(name.startswith("0-") for name in without_caption)


# --- refused settings ---


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.clips=/nowhere", r"data\.clips=/nowhere: /nowhere does not exist; give samples, a folder"),
        ("data.frames=6", r"data\.frames.*frames=6 is not 4k\+1 \(use 5 or 9\)"),
        ("data.height=30", r"height=30 is not a multiple of 8"),
        (
            "task.reference_downscale=8",
            r"task\.reference_downscale=8.*height=32 is not a multiple of 64 \(use 64 or 128\)",
        ),
        (
            "task.reference_temporal_scale=3",
            r"task\.reference_temporal_scale=3, .*frames=5 is not 12k\+1 \(use 1 or 13\)",
        ),
        ("task.maker=blur", r"task\.maker='blur' is not one of control\.canny, .*degrade\.defocus, "),
        ("+task.maker_args.size=3", r"task\.maker_args\.size is not an argument of degrade\.defocus.*radius, rack"),
        ("task.maker_args.radius=wide", r"task\.maker_args\.radius='wide' must be a range"),
        ("task.maker_args.radius=[4,3]", r"must be a range from small to large"),
        ("data.train_windows=0", r"data\.train_windows=0 must be at least 1"),
    ],
)
def test_bad_settings_are_named(override, message, tmp_path, clips, base):
    with pytest.raises(ConfigError, match=message):
        pipeline.prepare(config_for(tmp_path / "out", clips, base, override))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_clips_and_one_with_bad_clips(tmp_path, base):
    with pytest.raises(ConfigError, match=r"holds no clips; put videos \(\.mp4"):
        pipeline.prepare(config_for(tmp_path / "out", tmp_path, base))
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    with pytest.raises(ConfigError, match="no train clip could be used; see the table"):
        pipeline.prepare(config_for(tmp_path / "out", tmp_path, base))
    (dropped,) = json.loads((tmp_path / "out" / "report.json").read_text())["dropped"]
    assert "text.mp4: cannot be read as a video" in dropped["reason"]


def test_the_command_prints_one_line_and_fails(tmp_path, base):
    command = [sys.executable, "-m", "data_prep", "conf=deblur", f"data.clips={tmp_path}", f"data.root={tmp_path}/out"]
    result = subprocess.run([*command, f"model.checkpoint={base}", *SIZE], check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().startswith(f"error: data.clips={tmp_path}: {tmp_path} holds no clips")
    assert "Traceback" not in result.stderr
