"""Clips, their captions, cuts and windows, and the reasons for dropped clips."""

from __future__ import annotations

import json
import tracemalloc
import wave
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.clips.captions import caption_of
from data_prep.clips.clip_list import Clip, list_clips
from data_prep.clips.probed_clip import ProbedClip
from data_prep.clips.windows import heldout_windows, train_windows
from data_prep.select_clips import select_clips
from iclora_train.config import Config, ConfigError, Data, Model, Task
from iclora_train.data.prompts import fill_template, template_fields
from iclora_train.media.clip import ClipInfo, probe, read_clip
from iclora_train.media.frame_times import FrameTimes
from iclora_train.media.shard_clip import encode_clip
from iclora_train.signals import scene_cuts
from iclora_train.signals.scene_cuts import analyse_scenes
from tests.clips import moving, write_clip


def data(**changes: object) -> Data:
    settings = {"clips": "", "root": "", "frames": 5, "height": 32, "width": 32, "zoom": 1.0, "flip": False}
    return Data(**{**settings, **changes})


def config(maker: str = "degrade.grey", trigger: str = "", **changes: object) -> Config:
    task = Task(name="test", maker=maker, trigger=trigger)
    return Config(task=task, model=Model(name="tiny", checkpoint="tiny"), data=data(**changes), run="test")


def reasons(rows: list[dict], folder: Path, maker: str = "degrade.grey", **changes: object) -> list[str]:
    """The reason why each clip of a list is dropped, or ""."""
    (folder / "list.jsonl").write_text("\n".join(json.dumps({"id": f"c{i}", **row}) for i, row in enumerate(rows)))
    clips = list_clips(str(folder / "list.jsonl"), 0.1)
    dropped = {drop["clip"]: drop["reason"] for drop in select_clips(clips, config(maker, **changes))[1]}
    return [dropped.get(clip.id, "") for clip in clips]


def scenes(*lengths: int, height: int = 72, width: int = 96) -> np.ndarray:
    """Moving textures one after another, each in its own colour: uint8 (F,H,W,3)."""
    tint = np.random.default_rng(0).uniform(0.2, 1, (len(lengths), 3))
    parts = [moving(n, height, width, seed) * tint[seed] for seed, n in enumerate(lengths)]
    return np.concatenate(parts).astype(np.uint8)


# --- usable clips ---


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_images_are_clips_of_one_frame(suffix, tmp_path):
    frame = np.repeat(moving(1, 48, 64)[0, ..., :1], 3, axis=2)  # grey: JPEG halves the resolution of colours
    cv2.imwrite(str(tmp_path / f"a{suffix}"), frame)
    write_clip(tmp_path / "b.mp4", frames=6)
    assert [clip.path.name for clip in list_clips(str(tmp_path), 0.1)] == ["b.mp4"]
    listed = list_clips(str(tmp_path), 0.1, images=True)
    usable, _ = select_clips(listed, config(frames=1, fps=50.0))
    (image,) = (footage for footage in usable if footage.clip.is_image)
    (window,) = train_windows([image], data(frames=1, fps=50.0, train_windows=1))
    assert (window.indices, window.fps) == ((0,), 50.0)
    (decoded,) = read_clip(tmp_path / f"a{suffix}")
    assert np.abs(decoded.astype(int) - frame).mean() < 1.5


def test_every_bad_clip_is_dropped_with_its_reason(tmp_path):
    good = write_clip(tmp_path / "good.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(write_clip(tmp_path / "whole.mp4", 60).read_bytes()[:-4000])
    (tmp_path / "folder.mp4").mkdir()
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 8000, "NONE", ""))
        sound.writeframes(bytes(16000))
    write_clip(tmp_path / "one.mp4", 1)
    names = ["good", "empty", "cut", "gone", "folder", "sound", "one"]
    messages = reasons([{"video": f"{name}.mp4"} for name in names] + [{"video": "good.mp4", "fps": 30}], tmp_path)
    assert good.exists()
    for expected, reason in zip(
        [
            "",
            "empty.mp4: cannot be read as a video",
            "cut.mp4: truncated",
            "gone.mp4: cannot be read as a video (No such file",
            "folder.mp4: cannot be read as a video",
            "sound.mp4: no video stream",
            "1 frames are fewer than data.frames=5",
            "its row says fps=30, but the video has 25: correct the list or the video",
        ],
        messages,
        strict=True,
    ):
        assert expected in reason
        assert bool(expected) == bool(reason)


def test_reference_and_clip_must_match(tmp_path):
    write_clip(tmp_path / "a.mp4", 24)
    write_clip(tmp_path / "smaller.mp4", 24, 24, 32)
    write_clip(tmp_path / "short.mp4", 20)
    write_clip(tmp_path / "slow.mp4", 24, fps=12.5)
    write_clip(tmp_path / "tall.mp4", 24, 64, 48)
    names = ["smaller", "short", "slow", "tall", "gone"]
    messages = reasons(
        [{"video": "a.mp4", "reference": f"{name}.mp4"} for name in names] + [{"video": "a.mp4"}], tmp_path, "given"
    )
    assert messages[0] == ""
    assert messages[1] == "its reference has 20 frames, the clip has 24"
    assert messages[2] == "its reference has 12.5 frames a second, the clip has 25"
    assert "its reference is 48x64 pixels, the clip 64x48: give both the same aspect ratio" in messages[3]
    assert "gone.mp4: cannot be read as a video" in messages[4]
    assert "the list names no reference" in messages[5]


def test_a_mask_has_the_size_of_its_clip(tmp_path):
    write_clip(tmp_path / "a.mp4", 24)
    cv2.imwrite(str(tmp_path / "good.png"), np.zeros((48, 64), np.uint8))
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((24, 32), np.uint8))
    write_clip(tmp_path / "short.mp4", 20)
    masks = ["good.png", "small.png", "short.mp4", "gone.png"]
    messages = reasons([{"video": "a.mp4", "mask": mask} for mask in masks], tmp_path)
    assert messages[:3] == [
        "",
        "its mask is 32x24 pixels, the clip 64x48: make it in the clip's own size",
        "its mask has 20 frames, the clip has 24: give one or as many",
    ]
    assert messages[3].endswith("gone.png does not exist")


# --- captions ---


def test_a_prompt_is_filled_from_the_columns_of_a_row():
    clip = Clip(
        "a", Path("a.mp4"), "train", "a red dog", row={"reference_caption": "a grey dog", "caption": "a red dog"}
    )
    template = "Reference shows {reference_caption}. Edited shows {caption}. {trigger}"
    assert caption_of(clip, config(trigger="COLORIZE")) == "COLORIZE a red dog"
    whole = "Reference shows a grey dog. Edited shows a red dog. COLORIZE"
    assert caption_of(clip, config(trigger="COLORIZE", prompt=template)) == whole
    assert caption_of(clip, config(prompt="{trigger} {caption} {{so}}")) == "a red dog {so}"
    assert template_fields(template) == ("reference_caption", "caption", "trigger")
    with pytest.raises(ValueError, match=r"has no `caption`, `mood`, which data\.prompt needs"):
        fill_template("{caption} {mood}", {"caption": ""})
    for bad in ("{caption", "{}", "{caption!r}", "{a.b}", "{0}"):
        with pytest.raises(ConfigError, match=r"data\.prompt="):
            template_fields(bad)


def test_a_clip_without_a_column_of_the_prompt_is_dropped(tmp_path):
    write_clip(tmp_path / "a.mp4")
    rows = [{"video": "a.mp4", "caption": "a dog"}, {"video": "a.mp4"}]
    assert reasons(rows, tmp_path) == ["", ""]
    messages = reasons(rows, tmp_path, prompt="{caption} {trigger}")
    assert messages == ["", "its row has no `caption`, which data.prompt needs"]


# --- scenes, sizes, windows ---


def test_hard_cuts_are_detected_but_not_pans_or_flashes(tmp_path):
    frames = scenes(14, 9, 20)
    frames[5] = np.minimum(frames[5].astype(int) + 120, 255)  # a flash of one frame
    frames[30:] = np.stack([np.roll(frame, 7 * i, axis=1) for i, frame in enumerate(frames[30:])])  # a fast pan
    (tmp_path / "a.mp4").write_bytes(encode_clip(frames, 25, lossless=False))
    assert analyse_scenes(tmp_path / "a.mp4").cuts == (14, 23)


def test_scene_cuts_of_a_long_clip_need_little_memory(monkeypatch, tmp_path):
    count, frame = 1000, np.zeros((72, 96, 3), np.uint8)
    monkeypatch.setattr(scene_cuts, "read_clip", lambda *_: (frame.copy() for _ in range(count)))
    monkeypatch.setattr(scene_cuts, "_compare", lambda a, b: (0.0, 0.0))
    tracemalloc.start()
    assert analyse_scenes(tmp_path / "a.mp4").quality.shape == (count,)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * frame.nbytes  # all small frames together are 1,000 of them


def footage(frames: int, height: int = 48, width: int = 64, cuts: tuple[int, ...] = (), name: str = "a") -> ProbedClip:
    info = ClipInfo(height, width, FrameTimes.constant(frames, Fraction(25)))
    return ProbedClip(Clip(name, Path(name), ""), info, cuts, np.zeros(frames))


def crosses(indices: tuple[int, ...], cuts: tuple[int, ...]) -> bool:
    return any(indices[0] < cut <= indices[-1] for cut in cuts)


@pytest.mark.parametrize("fps", [None, 12.5])
@pytest.mark.parametrize("pick", [None, "random", "stride", "best"])
def test_windows_do_not_cross_cuts(pick, fps):
    cuts = (14, 23, 26)
    settings = data(pick=pick, stride=1, fps=fps, train_windows=60)
    windows = train_windows([footage(60, cuts=cuts)], settings) + heldout_windows([footage(60, cuts=cuts)], settings)
    assert windows
    assert not any(crosses(window.indices, cuts) for window in windows)
    assert {sum(window.indices[0] >= cut for cut in cuts) for window in windows} >= {0, 3}


def test_cuts_come_from_the_list_or_from_detection(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode_clip(scenes(14, 20), 25, lossless=False))
    clip = Clip("a", tmp_path / "a.mp4", "train")
    listed = Clip("a", tmp_path / "a.mp4", "train", cuts=(9,))

    def cuts(clip: Clip, **changes: object) -> tuple[int, ...]:
        return select_clips([clip], config(**changes))[0][0].cuts

    assert [cuts(clip), cuts(clip, cuts=True), cuts(listed), cuts(listed, cuts=True)] == [(), (14,), (9,), (9,)]
    beyond = Clip("a", tmp_path / "a.mp4", "train", cuts=(9, 34))
    assert (
        select_clips([beyond], config())[1][0]["reason"]
        == "its row names a cut at frame 34, but the video has 34 frames"
    )
    short = Clip("a", tmp_path / "a.mp4", "train", cuts=(4, 8, 12, 16, 20, 24, 28, 32))
    assert "4 frames between two cuts are fewer" in select_clips([short], config())[1][0]["reason"]


def test_stride_places_windows_at_fixed_steps():
    windows = train_windows([footage(33)], data(pick="stride", stride=4, train_windows=100))
    assert [window.indices[0] for window in windows] == list(range(0, 29, 4))
    assert len(train_windows([footage(33)], data(pick="stride", stride=4, train_windows=3))) == 3
    assert len(train_windows([footage(33)], data(pick="stride", train_windows=100))) == 15  # default: half a window


def test_the_best_windows_move_and_are_sharp(tmp_path):
    still = np.repeat(moving(1, 64, 96), 20, axis=0)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 6) for frame in moving(20, 64, 96, seed=1)])
    frames = np.concatenate([still, moving(20, 64, 96, seed=2), blurred])
    (tmp_path / "a.mp4").write_bytes(encode_clip(frames, 25, lossless=False))
    usable, _ = select_clips([Clip("a", tmp_path / "a.mp4", "train")], config(pick="best"))
    windows = train_windows(usable, data(pick="best", train_windows=3))
    assert all(20 <= window.indices[0] <= window.indices[-1] < 40 for window in windows)
    assert all(a.indices[-1] < b.indices[0] for a, b in pairwise(windows))


@pytest.mark.parametrize(
    ("frames", "height", "width", "bucket"),
    [
        (60, 540, 960, "96x64x9"),
        (60, 960, 540, "64x96x9"),
        (60, 500, 500, "64x64x9"),
        (7, 540, 960, "96x64x5"),  # too short for 9 frames
        (60, 64, 200, "96x64x9"),
    ],
)
def test_a_clip_uses_the_best_bucket(frames, height, width, bucket):
    buckets = ["96x64x5", "96x64x9", "64x96x9", "64x64x9"]
    (window, *_) = train_windows([footage(frames, height, width)], data(buckets=buckets))
    assert f"{window.size[1]}x{window.size[0]}x{len(window.indices)}" == bucket


def test_a_clip_without_a_bucket_has_a_reason_per_bucket():
    with pytest.raises(ValueError, match=r"64x64x9: 7 frames are fewer .*; 96x32x5: 64x48 pixels do not hold"):
        footage(7).best_bucket(data(buckets=["64x64x9", "96x32x5"]))
    for bad in (["96x64"], ["0x64x9"], []):
        with pytest.raises(ConfigError, match=r"data\.buckets"):
            data(buckets=bad)


def test_windows_of_several_buckets_have_their_share():
    clips = [footage(60, 540, 960, name="wide"), footage(60, 960, 540, name="tall")]
    settings = data(buckets=["96x64x9", "64x96x9"], train_windows=10, heldout_windows=6)
    for windows, count in ((train_windows(clips, settings), 5), (heldout_windows(clips, settings), 3)):
        assert [window.clip for window in windows].count("wide") == count
        assert {(window.clip, window.size) for window in windows} == {("wide", (64, 96)), ("tall", (96, 64))}


def test_a_rotated_jpeg_is_upright(tmp_path):
    frame = moving(1, 48, 64)[0]
    assert probe(write_rotated(tmp_path / "a.jpg", frame)).width == 48


def write_rotated(path: Path, frame: np.ndarray) -> Path:
    """A JPEG with EXIF orientation 6 (rotate clockwise)."""
    _, data = cv2.imencode(".jpg", frame[..., ::-1])
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path.write_bytes(data.tobytes()[:2] + segment + data.tobytes()[2:])
    return path
