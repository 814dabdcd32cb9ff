"""Images beside videos in one data set: images fill the buckets of one frame, videos the longer ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from data_prep import pipeline
from data_prep.clips.clip_list import Clip, clips_of
from data_prep.makers import build_maker
from data_prep.select_clips import select_clips
from iclora_train.config import Config, Data, Task
from iclora_train.data.batch_sampler import plan_batches
from iclora_train.data.shards import ShardSet
from tests.clips import moving, write_clip
from tests.prep import config_of
from tests.tiny import write_tiny_base

BUCKETS = ["32x32x5", "32x32x1"]


def write_image(path: Path, seed: int = 0) -> Path:
    cv2.imwrite(str(path), moving(1, 48, 64, seed)[0])
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of three videos, one of them of three frames, and three images, one with a caption."""
    clips = tmp_path / "clips"
    for i, frames in enumerate((24, 24, 3)):
        write_clip(clips / f"video{i}.mp4", frames, seed=i)
    for i in range(3):
        write_image(clips / f"image{i}.png", 10 + i)
    (clips / "image0.txt").write_text("a still texture")
    return clips


def config(clips: Path, buckets: list[str] | None, maker: str = "degrade.grey", **args: object) -> Config:
    data = Data(clips=str(clips), root="", frames=5, height=32, width=32, buckets=buckets)
    return replace(Config(), task=Task(name="t", maker=maker, maker_args=args), data=data)


def test_a_size_of_one_frame_lists_images_beside_videos(folder):
    assert {clip.path.suffix for clip in clips_of(config(folder, None))} == {".mp4"}
    listed = clips_of(config(folder, BUCKETS))
    assert {clip.path.stem for clip in listed} == {f"{kind}{i}" for kind in ("video", "image") for i in range(3)}
    assert {clip.caption for clip in listed} == {"", "a still texture"}
    pattern = config(folder / "*[01].*", BUCKETS)
    assert {clip.path.name for clip in clips_of(pattern)} == {"video0.mp4", "video1.mp4", "image0.png", "image1.png"}


def test_images_fill_the_buckets_of_one_frame_and_videos_the_others(folder):
    settings = config(folder, BUCKETS)
    usable, dropped = select_clips(clips_of(settings), settings)
    frames = {probed.clip.path.stem: probed.best_bucket(settings.data).frames for probed in usable}
    assert frames == {"video0": 5, "video1": 5, "image0": 1, "image1": 1, "image2": 1}
    assert [drop["reason"] for drop in dropped] == ["32x32x5: 3 frames are fewer than data.frames=5"]
    alone = config(folder, ["32x32x1"])
    assert len(select_clips(clips_of(alone), alone)[0]) == 6  # without a longer bucket, a video gives single frames


@pytest.mark.parametrize(
    ("maker", "args"),
    [
        ("control.tracks", {}),
        ("control.flow", {}),
        ("degrade.exposure", {}),
        ("degrade.interlace", {}),
        ("edit.loop", {}),
        ("union", {"controls": {"control.canny": {}, "control.flow": {}}}),
        ("degrade.one_of", {"steps": [{"maker": "degrade.grey"}, {"maker": "degrade.exposure"}]}),
    ],
)
def test_makers_that_need_motion_drop_images_with_the_reason(maker, args, folder):
    settings = config(folder, BUCKETS, maker, **args)
    usable, dropped = select_clips(clips_of(settings), settings)
    assert {probed.clip.path.stem for probed in usable} == {"video0", "video1"}
    reasons = [drop["reason"] for drop in dropped if "image" in drop["clip"]]
    assert reasons == [f"it is an image, and task.maker={maker} needs motion: use it with videos only"] * 3


def test_makers_of_stills_take_images(tmp_path):
    image = Clip("a", write_image(tmp_path / "a.png"), "train", reference=tmp_path / "a.png")
    settings = config(tmp_path, BUCKETS, "control.flow")
    assert len(select_clips([image], settings)[0]) == 1  # its reference is supplied
    chain = {"steps": [{"maker": "degrade.grey"}, {"maker": "degrade.interlace", "args": {}}]}
    assert not build_maker("degrade.chain", chain).needs_motion
    assert not build_maker("edit.loop", {"still": "sheet"}).needs_motion


def test_shards_hold_both_and_batches_never_mix(folder, tmp_path):
    base = write_tiny_base(tmp_path / "base")
    settings = (f"data.buckets=[{','.join(BUCKETS)}]", "data.train_windows=12", "data.batch_size=2")
    root = pipeline.prepare(config_of(tmp_path / "out", folder, base, *settings))
    pairs, latents = ShardSet.open(root / "pairs"), ShardSet.open(root / "latents")
    assert set(pairs.buckets) == set(latents.buckets) == set(BUCKETS)
    for i in range(len(pairs)):
        pair = pairs.read_pair(i)
        assert (len(pair.target) == 1) == pair.record["file"].endswith(".png")
        assert pair.references[0].shape == pair.target.shape
        assert latents.read_latents(i).target.shape[1] == (1 if len(pair.target) == 1 else 2)
    plan = plan_batches(latents, "train", 2, None, 0)
    for n in range(plan.steps_per_epoch):
        for batch in plan.step(n):
            assert len({latents.samples[i].bucket for i in batch}) == 1
    dropped = json.loads((root / "report.json").read_text())["dropped"]
    assert [drop["reason"] for drop in dropped] == ["32x32x5: 3 frames are fewer than data.frames=5"]
