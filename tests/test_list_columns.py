"""Lists and captions as other programs write them: columns, delimiters, encodings, paths; and hints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from data_prep.clips.clip_list import Clip, list_clips
from data_prep.clips.notes import listing_notes
from data_prep.clips.text_files import caption_beside, read_text
from iclora_train.config import ConfigError

TEXT = "A man\u2019s dog jumps \u2013 \u201chop\u201d."


def clips_of(path: Path, text: str | bytes, **options: object) -> list[Clip]:
    """The clips of a list with this content."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list_clips(str(path), 0.1, **options)


def only(path: Path, text: str | bytes, **options: object) -> Clip:
    """The only clip of a list with this content."""
    (clip,) = clips_of(path, text, **options)
    return clip


# --- columns ---


@pytest.mark.parametrize(
    ("header", "source"),
    [
        ("video,caption", "ours"),
        ("video, caption", "a space after the comma"),
        ("Video,Caption", "capitals"),
        ('"video","caption"', "quotes"),
        ("\ufeffvideo,caption", "Excel's UTF-8"),
        ("video;caption", "Excel in Europe"),
        ("sep=;\r\nvideo;caption", "Excel, with its own line"),
        ("video\tcaption", "tabs"),
        ("video|caption", "bars"),
        ("media_path,caption", "Lightricks"),
        ("video_path,caption", "musubi-tuner"),
        ("file_name,text", "Hugging Face"),
        ("path,text,num_frames", "Open-Sora"),
        ("video,prompt", "DiffSynth-Studio"),
        ("File Name,caption,", "a comma at the end"),
    ],
)
def test_the_columns_of_other_programs_are_read(header: str, source: str, tmp_path: Path) -> None:
    delimiter = next(character for character in ";\t|," if character in header.replace("sep=;", ""))
    row = delimiter.join(("clips/a.mp4", f'"a dog{delimiter} running"'))
    clip = only(tmp_path / "list.csv", f"{header}\r\n{row}\r\n\r\n")
    assert (clip.path, clip.caption) == (tmp_path / "clips/a.mp4", f"a dog{delimiter} running"), source


def test_lists_of_musubi_and_lightricks_name_references(tmp_path):
    rows = [{"video_path": "a.mp4", "caption": "a dog", "control_path": "b.mp4"}]
    clip = only(tmp_path / "a.jsonl", json.dumps(rows[0]))
    assert (clip.path, clip.caption, clip.reference) == (tmp_path / "a.mp4", "a dog", tmp_path / "b.mp4")
    rows = [{"media_path": "a.mp4", "caption": "a dog", "reference_path": "b.mp4"}]
    assert only(tmp_path / "a.json", json.dumps(rows)).reference == tmp_path / "b.mp4"
    assert only(tmp_path / "A.JSON", json.dumps(rows)).caption == "a dog"


def test_our_names_come_before_those_of_others(tmp_path):
    clip = only(tmp_path / "a.csv", "video,file,prompt,caption\na.mp4,b.mp4,longer,short\n")
    assert (clip.path.name, clip.caption, clip.row["prompt"]) == ("a.mp4", "short", "longer")
    (tmp_path / "a.txt").write_text("from the text file")
    assert only(tmp_path / "a.csv", "video,prompt,caption\na.mp4,longer,\n").caption == "from the text file"
    first, second = clips_of(tmp_path / "a.jsonl", '{"video": "a.mp4"}\n{"file": "b.mp4"}\n')
    assert {first.path.name, second.path.name} == {"a.mp4", "b.mp4"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("video,captions", "column `captions` is not read, did you mean `caption`"),
        ("video,captoin", "did you mean `caption`"),
        ("video,caption,refernce", "column `refernce` is not read, did you mean `reference`"),
        ("video,caption,cut", "did you mean `cuts`"),
        ("vidoe,caption", "names no video.*columns are `vidoe`, `caption`; `vidoe` is not read, did you mean `video`"),
        ("name,caption", "names no video: give a column `video` with the path .or file, video_path, media_path"),
        ("video,caption,Caption", "column `caption` occurs twice; remove one"),
        ("video,mood,mood", "column `mood` occurs twice"),
    ],
)
def test_a_misspelt_or_repeated_column_is_an_error(header: str, message: str, tmp_path: Path) -> None:
    row = ",".join("abc"[: header.count(",") + 1])
    with pytest.raises(ConfigError, match=message):
        clips_of(tmp_path / "list.csv", f"{header}\n{row}\n")


def test_a_column_that_the_prompt_names_is_not_misspelt(tmp_path):
    clip = only(tmp_path / "list.csv", "video,captions\na.mp4,two texts\n", columns=("captions",))
    assert (clip.caption, clip.row["captions"]) == ("", "two texts")
    assert only(tmp_path / "list.csv", "video,caption,captions,source_id\na.mp4,x,y,z\n").caption == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('video,caption\na.mp4,"a" dog\n', r"line 2 is not csv"),
        ("video,caption\n\na.mp4,a dog, running\n", r"line 3 has more cells than the header; put texts with commas in"),
        (b"video,caption\na.mp4,un caf\xe9\n", r"is not UTF-8 \(byte 0xe9 at 26\): save it as UTF-8 \(iconv"),
        (b"video,caption\na.mp4,a\0dog\n", r"holds a NUL character at 21"),
    ],
)
def test_bad_csv_is_refused_with_its_line(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        clips_of(tmp_path / "list.csv", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"video": "a.mp4"}]', r"line 1 is not a JSON object"),
        ('{"video": "a.mp4", "caption": {"en": "a dog"}}', r"line 1: `caption` is a JSON object, not a text"),
        ('{"video": "a.mp4", "caption": "a\\u0000b"}', r"line 1: `caption` holds a NUL"),
        ('{"video": "a.mp4", "caption": "a \\ud83d dog"}', r"line 1: `caption` holds half of a surrogate pair"),
        ('{"video": "\\udce9.mp4"}', r"line 1: `video` holds half of a surrogate pair"),
        ('{"video": "a.mp4", "video": "b.mp4"}', r"line 1: a key occurs twice in video, video"),
        ('{"video": ' + "[" * 100_000, r"line 1 cannot be read as JSON"),
        ('{"video": "a.mp4", "fps": ' + "9" * 5000 + "}", r"line 1 cannot be read as JSON"),
        ('{"video": "a.mp4", "cuts": "' + "9" * 5000 + '"}', r"must be frame numbers above 0"),
    ],
)
def test_bad_jsonl_is_refused_with_its_line(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        clips_of(tmp_path / "list.jsonl", text)


# --- paths ---


def test_paths_may_be_absolute_in_the_home_folder_or_of_windows(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    (tmp_path / "we\\ird.mp4").touch()
    cells = {
        "/else/a.mp4": "/else/a.mp4",
        "~/a.mp4": f"{tmp_path}/home/a.mp4",
        r"clips\a.mp4": f"{tmp_path}/clips/a.mp4",
    }
    for cell, path in {**cells, r"we\ird.mp4": f"{tmp_path}/we\\ird.mp4", "../b.mp4": f"{tmp_path}/../b.mp4"}.items():
        assert only(tmp_path / "list.csv", f"video\n{cell}\n").path == Path(path)


def test_addresses_are_problems_of_their_clips(tmp_path):
    for cell in (
        "http://host/x.mp4",
        "async:http://host/x",
        "tcp:host:80",
        "concat:a:b",
        "file:///x/a.mp4",
        "S3://b/a.mp4",
    ):
        for row in ({"video": cell}, {"video": "a.mp4", "reference": cell}, {"video": "a.mp4", "mask": cell}):
            clip = only(tmp_path / "list.jsonl", json.dumps(row))
            assert clip.problem == f"its row names {cell}: only local files are read; download it and give its path"
    (tmp_path / "12:30:05.mp4").touch()
    (tmp_path / "a:b:c.mp4").touch()
    assert not any(clip.problem for clip in clips_of(tmp_path / "list.csv", "video\n12:30:05.mp4\na:b:c.mp4\n"))


# --- captions ---


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (TEXT.encode(), TEXT),
        (TEXT.encode("utf-8-sig"), TEXT),
        (TEXT.encode("utf-16"), TEXT),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), TEXT),
        (TEXT.encode("utf-32"), TEXT),
        ((TEXT + "\r\n\r\nSecond.\r\n").encode(), f"{TEXT}\n\nSecond."),
        (b"One.\rTwo.\r", "One.\nTwo."),
        ("\ufeff\ufeffA dog.\ufeff".encode(), "A dog."),
        (b"   \n\t", ""),
        (b"", ""),
    ],
)
def test_captions_are_read_as_editors_save_them(data: bytes, caption: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "a.mp4").touch()
    (clip,) = list_clips(str(tmp_path), 0.1)
    assert (clip.caption, clip.problem) == (caption, "")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            TEXT.encode("cp1252"),
            r"its caption .*a\.txt is not UTF-8 \(byte 0x92 at 5\): save it as UTF-8 \(iconv -f WIN",
        ),
        (b"\xff\xfea", r"is not UTF-16"),
        (b"A dog.\0", r"holds a NUL character at 6"),
        (TEXT.encode("utf-16-le"), r"is not UTF-8|NUL character"),
    ],
)
def test_a_caption_that_cannot_be_read_is_a_problem_of_its_clip(data: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    by_name = {clip.path.name: clip for clip in list_clips(str(tmp_path), 0.1)}
    assert by_name["b.mp4"].problem == ""
    with pytest.raises(ValueError, match=problem):
        raise ValueError(by_name["a.mp4"].problem)
    with pytest.raises(ValueError, match=r"is not UTF|NUL"):
        read_text(tmp_path / "a.txt")


def test_caption_files_of_other_trainers(tmp_path):
    (tmp_path / "a.caption").write_text("kohya")
    assert caption_beside(tmp_path / "a.mp4") == "kohya"
    (tmp_path / "a.TXT").write_text("capitals")
    assert caption_beside(tmp_path / "a.mp4") == "capitals"
    (tmp_path / "a.txt").write_text("\n")  # empty: the next one counts
    assert caption_beside(tmp_path / "a.mp4") == "capitals"
    (tmp_path / "b.v2.txt").write_text("two dots")
    assert caption_beside(tmp_path / "b.v2.mov") == "two dots"
    (tmp_path / "c.txt").mkdir()
    assert caption_beside(tmp_path / "c.mp4") == ""
    os.mkfifo(tmp_path / "d.txt")
    with pytest.raises(ValueError, match=r"its caption .*d\.txt cannot be read \(a named pipe, not a file\)"):
        caption_beside(tmp_path / "d.mp4")


# --- hints ---


def test_notes_name_what_was_not_read(tmp_path):
    for name in ("a.mp4", "a.mov", "b.mp4", "a.txt", "b.json", "metadata.csv", "x.braw", "y.braw", "z.png", "._b.mp4"):
        (tmp_path / name).write_text("a text" if name == "a.txt" else "")
    lines = listing_notes(str(tmp_path), list_clips(str(tmp_path), 0.1))
    assert lines == [
        "metadata.csv was not read, because data.clips is the folder; "
        f"data.clips={tmp_path}/metadata.csv reads the list",
        f"files below {tmp_path} that are not clips: 2 .braw, 1 .json, 1 .png (images are read with data.frames=1)",
        "b.json: not read as captions; put the text into a file such as b.txt",
        "a.mov, a.mp4 share one caption file, because their names differ only in the suffix",
    ]


def test_notes_name_unused_columns_and_equal_captions(tmp_path):
    listed = clips_of(tmp_path / "list.csv", "video,caption,mood,frames\na.mp4,a dog,x,1\nb.mp4,a dog,y,2\n")
    assert listing_notes(str(tmp_path / "list.csv"), listed, ("mood",)) == [
        "columns of the list that are stored but not used: frames",
        "all 2 clips have the same caption",
    ]
    assert listing_notes("samples", list_clips("samples", 0.1)) == []
