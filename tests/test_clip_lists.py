"""Lists of clips: a folder, a pattern, a csv or a jsonl file gives clips with ids, splits, captions and files."""

from __future__ import annotations

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
    (tmp_path / "list.csv").write_bytes(b"video\n\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"list\.csv cannot be read as text"):
        list_clips(str(tmp_path / "list.csv"), 0.1)


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
        ("caption\na cat\n", "clip 1 names no video"),
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
