"""Lists of clips: a folder, a pattern, a csv or a jsonl file gives clips with ids, splits, captions and files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from data_prep.clips.clip_list import list_clips
from iclora_train.config import ConfigError
from tests.clips import write_clip


def test_a_pattern_finds_clips_and_their_captions(tmp_path):
    for name in ("a/one.mp4", "a/b/two.mp4", "a/b/three.mov", "other.mp4"):
        write_clip(tmp_path / name, frames=2)
    (tmp_path / "a/b/two.txt").write_text("two dogs\n")
    listed = list_clips(f"{tmp_path}/a/**/*.mp4", 0.1)
    assert {(clip.path, clip.caption) for clip in listed} == {
        (tmp_path / "a/one.mp4", ""),
        (tmp_path / "a/b/two.mp4", "two dogs"),
    }
    again = list_clips(str(tmp_path / "a"), 0.1)
    assert {clip.id for clip in listed} < {clip.id for clip in again}  # a folder gives the same ids
    with pytest.raises(ConfigError, match="holds no clips"):
        list_clips(f"{tmp_path}/**/*.webm", 0.1)


def test_a_list_names_the_mask_and_tracks_of_a_clip(tmp_path):
    (tmp_path / "list.csv").write_text(
        'id,video,caption,fps,cuts,mask,tracks,reference_caption\na,v/a.mp4,"a dog, running",25.0,12 30,m.png,,grey\n'
        "b,b.mp4,,,,,t.json,\n"
    )
    (tmp_path / "b.txt").write_text("from the text file")
    a, b = list_clips(str(tmp_path / "list.csv"), 0.1)
    assert (a.caption, a.fps, a.cuts, dict(a.files)) == ("a dog, running", 25.0, (12, 30), {"mask": tmp_path / "m.png"})
    assert a.row["reference_caption"] == "grey"
    assert (b.caption, b.fps, b.cuts, dict(b.files)) == (
        "from the text file",
        None,
        None,
        {"tracks": tmp_path / "t.json"},
    )
    (tmp_path / "list.jsonl").write_text('{"video": "a.mp4", "fps": 25, "cuts": [12, 30]}\n\n')
    (same,) = list_clips(str(tmp_path / "list.jsonl"), 0.1)
    assert (same.fps, same.cuts) == (25.0, (12, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,fps\na.mp4,fast\n", r"clip 1: fps='fast' is not a number above 0"),
        ("video,fps\na.mp4,0\n", r"clip 1: fps='0' is not a number above 0"),
        ("video,cuts\na.mp4,12 x\n", r"clip 1: cuts='12 x' must be frame numbers above 0"),
        ("video,caption\na.mp4,a dog, running\n", r"more cells than the header; put texts with commas in quotes"),
        ("id,video\nx,a.mp4\nx,b.mp4\n", "x is listed twice"),
    ],
)
def test_lists_with_bad_cells_are_refused(text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        list_clips(str(tmp_path / "list.csv"), 0.1)


def test_a_list_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"video\n\xfe\n")
    with pytest.raises(ConfigError, match=r"data\.clips=.*list\.csv is not UTF-8 \(byte 0xfe at 6\)"):
        list_clips(str(tmp_path / "list.csv"), 0.1)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ConfigError, match=r"pipe\.csv cannot be read \(a named pipe, not a file\)"):
        list_clips(str(tmp_path / "pipe.csv"), 0.1)


def test_a_folder_gives_stable_captions_ids_and_splits(tmp_path):
    for i in range(40):
        path = tmp_path / ("more" if i % 2 else "") / f"clip {i}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "clip 0.txt").write_text("a cat\n")
    before = {clip.path: clip for clip in list_clips(str(tmp_path), 0.1)}
    assert before[tmp_path / "clip 0.mp4"].caption == "a cat"
    assert {clip.split for clip in before.values()} == {"train", "val", "heldout"}
    assert len({clip.id for clip in before.values()}) == 40
    assert not any(set(clip.id) & set("./ ") for clip in before.values())
    (tmp_path / "clip 40.mp4").touch()
    after = {clip.path: clip for clip in list_clips(str(tmp_path), 0.1)}
    assert all(after[path] == clip for path, clip in before.items())


def test_small_folders_still_have_every_split(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.mp4").touch()
    assert sorted(clip.split for clip in list_clips(str(tmp_path), 0.1)) == ["heldout", "train", "val"]


def test_lists_are_checked(tmp_path):
    table = tmp_path / "list.csv"
    for text, message in (
        ("caption\na cat\n", r"list\.csv names no video: give a column `video`.*its columns are `caption`"),
        ("video,split\na.mp4,test\n", "split='test' is not one of train, val, heldout"),
        ("id,video\nx,a.mp4\nx,b.mp4\n", "x is listed twice"),
        ("id,video\nx.1,a.mp4\n", r"id='x\.1' may only hold letters"),
    ):
        table.write_text(text)
        with pytest.raises(ConfigError, match=message):
            list_clips(str(table), 0.1)
    lines = tmp_path / "list.jsonl"
    lines.write_text('{"video": "a.mp4"}\n{"video"\n')
    with pytest.raises(ConfigError, match="line 2 is not JSON"):
        list_clips(str(lines), 0.1)
    with pytest.raises(ConfigError, match=r"neither a folder nor a \.csv or \.jsonl list"):
        list_clips(str(write_clip(tmp_path / "a.mp4")), 0.1)


# --- folders ---


def touch(*paths: Path) -> None:
    """Make empty files and the folders that hold them."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def problems(clips: Path) -> dict[str, str]:
    """The problem of each listed clip, by its file name."""
    return {clip.path.name: clip.problem for clip in list_clips(str(clips), 0.1)}


def test_links_are_followed_in_folders_and_patterns_alike(tmp_path):
    folder, disk = tmp_path / "clips", tmp_path / "disk"
    touch(disk / "shoot" / "a.mp4", disk / "b.mp4", folder / "c.mp4")
    (folder / "shoot").symlink_to(disk / "shoot")
    (folder / "b.mp4").symlink_to(disk / "b.mp4")
    (folder / "gone.mp4").symlink_to(disk / "gone.mp4")
    for clips in (folder, folder / "**" / "*.mp4"):
        assert problems(clips) == {"a.mp4": "", "b.mp4": "", "c.mp4": "", "gone.mp4": ""}
    assert problems(folder / "shoot") == {"a.mp4": ""}
    assert problems(folder / "*.mp4").keys() == {"b.mp4", "c.mp4", "gone.mp4"}


def test_circles_of_links_end_and_a_file_is_used_once(tmp_path):
    touch(tmp_path / "real" / "a.mp4", tmp_path / "real" / "b.mp4")
    for link in ("another", "loop", "real/up"):
        (tmp_path / link).symlink_to(tmp_path if link != "another" else tmp_path / "real")
    (tmp_path / "copy.mp4").symlink_to(tmp_path / "real" / "a.mp4")
    for clips in (tmp_path, tmp_path / "**" / "*.mp4"):
        same = f"{tmp_path}/copy.mp4 is the same file as {tmp_path}/real/a.mp4"
        assert problems(clips) == {"a.mp4": "", "b.mp4": "", "copy.mp4": same}
    ids = {clip.path: clip.id for clip in list_clips(str(tmp_path), 0.1)}
    assert ids[tmp_path / "real" / "a.mp4"].startswith("real-a-")  # a link does not change the ids of real files


def test_hidden_files_are_not_clips(tmp_path):
    touch(tmp_path / "a.MP4", tmp_path / "._a.MP4", tmp_path / ".cache" / "b.mp4", tmp_path / "__MACOSX" / "._c.mp4")
    touch(tmp_path / ".DS_Store", tmp_path / "Thumbs.db", tmp_path / "d.mp4.part")
    for clips in (tmp_path, tmp_path / "**" / "*.[mM][pP]4", tmp_path / "**"):
        assert problems(clips) == {"a.MP4": ""}
    assert problems(tmp_path / ".cache") == {"b.mp4": ""}


def test_brackets_in_the_name_of_a_folder_are_not_wildcards(tmp_path):
    folder = tmp_path / "takes [v2]"
    touch(folder / "a.mp4", folder / "x" / "b.mp4", folder / "take (1)" / "c, d.mp4")
    assert problems(folder).keys() == {"a.mp4", "b.mp4", "c, d.mp4"}
    assert problems(folder / "*.mp4").keys() == problems(folder / "*").keys() == {"a.mp4"}
    assert problems(folder / "*" / "?.mp4").keys() == {"b.mp4"}
    assert problems(folder / "**" / "*.mp4").keys() == {"a.mp4", "b.mp4", "c, d.mp4"}
    assert problems(folder / "**" / "[bc]*.mp4").keys() == {"b.mp4", "c, d.mp4"}
    with pytest.raises(ConfigError, match=r"gone\.mp4 does not exist"):
        list_clips(str(folder / "gone.mp4"), 0.1)


def test_any_file_name_gives_an_id(tmp_path):
    names = ["new\nline.mp4", "emoji \U0001f436.mp4", "-dash.mp4", "cap.v2.final.mp4", "x [b].mp4", "a" * 200 + ".mp4"]
    touch(*(tmp_path / name for name in names), Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.mp4")))
    listed = list_clips(str(tmp_path), 0.1)
    assert len({clip.id for clip in listed}) == len(names) + 1
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,60}", clip.id) for clip in listed)


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    touch(tmp_path / "a.mp4", tmp_path / "secret" / "b.mp4")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for clips in (tmp_path, tmp_path / "**" / "*.mp4"):
        reason = f"the folder {tmp_path}/secret cannot be read: give it read permission"
        assert problems(clips) == {"a.mp4": "", "secret": reason}
    with pytest.raises(ConfigError, match=r"secret cannot be read: give it read permission"):
        list_clips(str(tmp_path / "secret"), 0.1)
