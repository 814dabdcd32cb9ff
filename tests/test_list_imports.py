"""Data sets of other trainers as data.clips: Lightricks' dataset.json, and musubi-tuner's dataset config and jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep import pipeline
from data_prep.clips.clip_list import Clip, list_clips
from data_prep.clips.notes import listing_notes
from iclora_train.config import ConfigError
from iclora_train.data.shards import ShardSet
from tests.clips import write_clip
from tests.prep import config_of
from tests.tiny import write_tiny_base


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def musubi(folder: Path, text: str) -> dict[str, Clip]:
    """The clips of a dataset config, by file name."""
    (folder / "dataset.toml").write_text(text)
    return {clip.path.name: clip for clip in list_clips(str(folder / "dataset.toml"), 0.1)}


@pytest.mark.parametrize(
    "columns",
    [
        ("video", "reference_video", "video_mask"),
        ("media_path", "ref_media_path", "mask"),
        ("media_path", "reference_path", "mask"),
    ],
)
def test_the_dataset_json_of_lightricks_trainer_is_read(columns, tmp_path):
    video, reference, mask = columns
    row = {
        "caption": "a dog",
        video: "videos/a.mp4",
        reference: "depth/a.mp4",
        mask: "m.mp4",
        "reference_audio": "a.wav",
        "audio": "b.wav",
    }
    for name, text in (("dataset.json", json.dumps([row])), ("dataset.jsonl", json.dumps(row))):
        (tmp_path / name).write_text(text)
        (clip,) = list_clips(str(tmp_path / name), 0.1)
        assert (clip.path, clip.reference) == (tmp_path / "videos/a.mp4", tmp_path / "depth/a.mp4")
        assert (clip.caption, dict(clip.files)) == (
            "a dog",
            {"mask": tmp_path / "m.mp4", "reference_sound": tmp_path / "a.wav"},
        )
        assert listing_notes(str(tmp_path / name), [clip])[0] == (
            "columns of the list that are stored but not used: audio (the sound of a clip is read from its own file, "
            "with data.sound)"
        )


def test_the_folders_of_a_musubi_config_give_clips_captions_and_controls(tmp_path):
    touch(tmp_path, "v/a.mp4", "v/b.mov", "v/c.mp4", "v/d.mp4", "v/.hidden.mp4", "v/deeper/e.mp4", "images/f.png")
    touch(tmp_path, "c/a.mkv", "c/b_0.mp4", "c/d_0.mp4", "c/d_1.mp4")
    (tmp_path / "v/a.cap").write_text("a dog\n")
    (tmp_path / "v/a.txt").write_text("not this one")
    (tmp_path / "images/f.cap").write_text("a picture")
    clips = musubi(
        tmp_path,
        """
        [general]
        caption_extension = ".cap"
        resolution = [960, 544]
        [[datasets]]
        video_directory = "v"
        control_directory = "c"
        cache_directory = "cache"
        target_frames = [1, 25]
        num_repeats = 3
        [[datasets]]
        image_directory = "images"
        num_repeats = 1
        """,
    )
    assert clips.keys() == {"a.mp4", "b.mov", "c.mp4", "d.mp4", "f.png"}
    assert {name: clip.reference for name, clip in clips.items() if clip.reference} == {
        "a.mp4": tmp_path / "c/a.mkv",
        "b.mov": tmp_path / "c/b_0.mp4",
    }
    assert (clips["a.mp4"].caption, clips["f.png"].caption) == ("a dog", "a picture")
    assert clips["c.mp4"].problem == f"no control in {tmp_path}/c is named c.*"
    assert clips["d.mp4"].problem == "it has 2 controls (d_0, d_1), and a clip has one reference"
    notes = listing_notes(str(tmp_path / "dataset.toml"), list(clips.values()))
    assert set(notes) == {
        "resolution=[960, 544] of dataset.toml is not used; instead: data.width and data.height, or data.buckets",
        "cache_directory=cache of dataset.toml is not used; instead: data.root",
        "target_frames=[1, 25] of dataset.toml is not used; instead: data.frames, or data.buckets",
        "num_repeats=3 of dataset.toml is not used; instead: data.sources with `repeats`",
    }


def test_the_jsonl_of_a_musubi_config_is_read_and_a_file_counts_once(tmp_path, monkeypatch):
    touch(tmp_path, "meta/v/a.mp4", "start/v/b.mp4", "meta/v/b.mp4")
    rows = [
        {"video_path": "v/a.mp4", "control_path": "v/grey.mp4", "caption": "a"},
        {"video_path": "v/b.mp4", "control_path_0": "v/first.mp4", "control_path_1": "v/second.mp4", "caption": "b"},
    ]
    (tmp_path / "meta/list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path / "start")  # musubi-tuner looks in the working folder first
    dataset = f'[[datasets]]\nvideo_jsonl_file = "{tmp_path}/meta/list.jsonl"\n'
    clips = musubi(tmp_path, 2 * dataset)
    assert (clips["a.mp4"].path, clips["a.mp4"].reference) == (tmp_path / "meta/v/a.mp4", tmp_path / "meta/v/grey.mp4")
    assert clips["b.mp4"].path == tmp_path / "start/v/b.mp4"
    assert clips["b.mp4"].problem == "its row names several controls (`control_path_1`), and a clip has one reference"
    direct = {clip.path.name: clip for clip in list_clips(str(tmp_path / "meta/list.jsonl"), 0.1)}
    assert direct["b.mp4"].problem == clips["b.mp4"].problem
    assert direct["a.mp4"].reference == tmp_path / "meta/v/grey.mp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[general\n", r"dataset\.toml is not a toml file: .*line 1"),
        ("[tool.ruff]\n", r"is not a dataset config of musubi-tuner: it needs a \[\[datasets\]\] table with video_dir"),
        ("datasets = 3\n", "is not a dataset config of musubi-tuner"),
        ("[[datasets]]\nnum_repeats = 1\n", "dataset 1 names no clips: give one of video_directory, image_directory"),
        ('[[datasets]]\nvideo_directory = "v"\nvideo_jsonl_file = "l"\n', "names video_directory and video_jsonl_file"),
        (
            '[[datasets]]\nvideo_directory = "v"\n[[datasets]]\nvideo_directory = "gone"\n',
            "dataset 2: video_directory=gone",
        ),
        ('[[datasets]]\nvideo_directory = "v"\ncontrol_directory = "gone"\n', "control_directory=gone does not exist"),
        (
            '[[datasets]]\nvideo_directory = "v"\ncontrol_directory = "v"\n',
            "control_directory=.*is the folder of the clips",
        ),
        ("[[datasets]]\nvideo_directory = 3\n", "dataset 1: video_directory=3 must be a text"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(text, message, tmp_path):
    touch(tmp_path, "v/a.mp4")
    with pytest.raises(ConfigError, match=message):
        musubi(tmp_path, text)


def test_a_musubi_config_becomes_shards(tmp_path):
    for i in range(3):
        write_clip(tmp_path / f"v/{i}.mp4", 12, seed=i)
        write_clip(tmp_path / f"c/{i}.mp4", 12, seed=9 + i)
        (tmp_path / f"v/{i}.txt").write_text(f"texture {i}")
    (tmp_path / "dataset.toml").write_text('[[datasets]]\nvideo_directory = "v"\ncontrol_directory = "c"\n')
    base = write_tiny_base(tmp_path / "base")
    settings = ("task.maker=given", "~task.maker_args.radius", "data.train_windows=2")
    root = pipeline.prepare(config_of(tmp_path / "out", tmp_path / "dataset.toml", base, *settings))
    pairs = ShardSet.open(root / "pairs")
    assert {pairs.read_pair(i).caption[-9:] for i in range(len(pairs))} == {f"texture {i}" for i in range(3)}
    assert all("reference" in source for source in pairs.fingerprint["sources"].values())
