"""data.references: targets in one folder, references of the same names in another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from data_prep import pipeline
from data_prep.clips.clip_list import list_clips
from data_prep.clips.notes import listing_notes
from data_prep.clips.windows import Window
from data_prep.pairs import crop_window, read_windows
from data_prep.select_clips import select_clips
from iclora_train.config import Config, ConfigError, Data, Task
from iclora_train.core.fingerprint import config_hash
from iclora_train.data.shards import ShardSet
from tests.clips import moving, write_clip
from tests.prep import config_of
from tests.tiny import write_tiny_base

GIVEN = ("task.maker=given", "~task.maker_args.radius")


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    return tmp_path / "targets", tmp_path / "references"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_targets_get_the_references_of_their_names_in_folders_and_patterns(folders):
    targets, references = folders
    touch(targets, "a.mp4", "scene/a.mov", "scene/b.mp4", "caf\N{LATIN SMALL LETTER E WITH ACUTE}.mp4")
    touch(references, "a.mkv", "scene/a.mp4", "scene/b.mp4", "cafe\N{COMBINING ACUTE ACCENT}.mp4")
    for clips in (targets, targets / "**" / "*.m*"):
        listed = {
            str(clip.path.relative_to(targets)): clip
            for clip in list_clips(str(clips), 0.1, references=str(references))
        }
        pairs = {name: clip.reference.relative_to(references).as_posix() for name, clip in listed.items()}
        assert [pairs[name] for name in ("a.mp4", "scene/a.mov", "scene/b.mp4")] == [
            "a.mkv",
            "scene/a.mp4",
            "scene/b.mp4",
        ]
        assert not any(clip.problem for clip in listed.values())  # composed and decomposed accents are one name


def test_every_missing_partner_is_listed(folders):
    targets, references = folders
    touch(targets, "a.mp4", "scene/b.mp4", "c.mp4")
    touch(references, "c.mp4", "d.mp4", "scene/e.mov")
    listed = list_clips(str(targets), 0.1, references=str(references))
    problems = {clip.path.name: clip.problem for clip in listed}
    assert problems == {
        "a.mp4": f"no reference in {references} is named a.*",
        "b.mp4": f"no reference in {references} is named scene/b.*",
        "c.mp4": "",
    }
    notes = listing_notes(str(targets), listed, (), str(references))
    assert notes == ["2 files of data.references have no target of their name: d.mp4, scene/e.mov"]


def test_a_caption_lies_next_to_the_target_or_the_reference(folders):
    targets, references = folders
    touch(targets, "a.mp4", "b.mp4")
    touch(references, "a.mp4", "b.mp4")
    (references / "a.txt").write_text("by the reference")
    (references / "b.txt").write_text("not this one")
    (targets / "b.txt").write_text("by the target")
    listed = list_clips(str(targets), 0.1, references=str(references))
    assert {clip.path.name: clip.caption for clip in listed} == {"a.mp4": "by the reference", "b.mp4": "by the target"}


def test_an_ambiguous_name_is_refused_with_both_files(folders):
    targets, references = folders
    touch(targets, "a.mp4")
    touch(references, "a.mp4", "a.png")  # a preview picture beside a video is no second reference
    (clip,) = list_clips(str(targets), 0.1, references=str(references))
    assert clip.reference == references / "a.mp4"
    touch(references, "a.mov")
    with pytest.raises(ConfigError, match=r"a\.mov and .*/a\.mp4 have the name of the clip a\.mp4; keep one"):
        list_clips(str(targets), 0.1, references=str(references))
    (references / "a.mov").unlink()
    touch(targets, "a.mov")
    with pytest.raises(ConfigError, match=r"a\.mov and .*/a\.mp4 have one reference, .*/a\.mp4: keep one, or rename"):
        list_clips(str(targets), 0.1, references=str(references))


def test_one_folder_may_lie_in_the_other(tmp_path):
    touch(tmp_path, "a.mp4", "control/a.mp4", "control/more/b.mp4", "more/b.mp4")
    listed = list_clips(str(tmp_path), 0.1, references=str(tmp_path / "control"))
    assert {clip.path.relative_to(tmp_path).as_posix() for clip in listed} == {"a.mp4", "more/b.mp4"}
    assert not any(clip.problem for clip in listed)
    (inner,) = list_clips(str(tmp_path / "control" / "more"), 0.1, references=str(tmp_path / "control"))
    assert inner.problem == f"no reference in {tmp_path}/control is named b.*"


def test_wrong_folders_are_refused(tmp_path):
    touch(tmp_path, "clips/a.mp4", "list.csv")
    (tmp_path / "list.csv").write_text("video\nclips/a.mp4\n")
    for clips, references, message in (
        ("clips", "gone", r"data\.references=.*gone is not a folder: give the folder that holds a reference for every"),
        ("clips", "clips/../clips", r"is the folder of the clips: put references and targets into two folders"),
        ("list.csv", "clips", r"data\.references=.*clips: a list names references in a column `reference`"),
    ):
        with pytest.raises(ConfigError, match=message):
            list_clips(str(tmp_path / clips), 0.1, references=str(tmp_path / references))


def test_pairs_that_do_not_fit_are_dropped_with_the_reason(folders):
    targets, references = folders
    for name in ("good", "short", "slow", "tall", "still"):
        write_clip(targets / f"{name}.mp4", 12)
    write_clip(references / "good.mkv.mp4", 12)
    (references / "good.mkv.mp4").rename(references / "good.mp4")
    write_clip(references / "short.mp4", 10)
    write_clip(references / "slow.mp4", 12, fps=12.5)
    write_clip(references / "tall.mp4", 12, 64, 48)
    cv2.imwrite(str(references / "still.png"), moving(1, 48, 64)[0])
    data = Data(clips="", root="", frames=5, height=32, width=32)
    config = replace(Config(), task=Task(name="t", maker="given"), data=data)
    listed = list_clips(str(targets), 0.1, references=str(references))
    names = {clip.id: clip.path.stem for clip in listed}
    usable, dropped = select_clips(listed, config)
    assert [names[probed.clip.id] for probed in usable] == ["good"]
    assert {names[drop["clip"]]: drop["reason"] for drop in dropped} == {
        "short": "its reference has 10 frames, the clip has 12",
        "slow": "its reference has 12.5 frames a second, the clip has 25",
        "tall": "its reference is 48x64 pixels, the clip 64x48: give both the same aspect ratio, so that one crop fits "
        "both",
        "still": "its reference has 1 frames, the clip has 12",
    }


def test_two_folders_become_shards_that_know_their_references(folders, tmp_path):
    targets, references = folders
    for i in range(4):
        write_clip(targets / f"{i}.mp4", 24, seed=i)
        write_clip(references / f"{i}.mp4", 24, seed=10 + i)
    write_clip(references / "orphan.mp4", 24)
    base = write_tiny_base(tmp_path / "base")
    settings = (*GIVEN, f"data.references={references}", "data.train_windows=4", "data.flip=false")
    config = config_of(tmp_path / "out", targets, base, *settings)
    root = pipeline.prepare(config)
    pairs = ShardSet.open(root / "pairs")
    for i in range(len(pairs)):
        pair = pairs.read_pair(i)
        (frames,) = read_windows(references / pair.record["file"], [Window.from_record(pair.record["window"])])
        assert (pair.references[0] == crop_window(frames, Window.from_record(pair.record["window"]))).all()
    notes = json.loads((root / "report.json").read_text())["notes"]
    assert "1 files of data.references have no target of their name: orphan.mp4" in notes
    ShardSet.open(root / "latents").require_settings(config)
    moved = references.rename(tmp_path / "elsewhere")
    same = config_of(tmp_path / "out", targets, base, *GIVEN, f"data.references={moved}", *settings[3:])
    assert config_hash(same) == config_hash(config)
    assert pipeline.prepare(same) == root  # the place of the folder does not matter, its contents do
    write_clip(moved / "0.mp4", 24, seed=99)
    with pytest.raises(ConfigError, match=r"sources.*reference"):
        pipeline.prepare(same)
