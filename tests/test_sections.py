"""Rows with a start and an end: sections of videos are read frame-exactly, with seeking, and are one recording."""

from __future__ import annotations

import contextlib
import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_prep import pipeline
from data_prep.clips.clip_list import Clip, list_clips
from data_prep.clips.notes import listing_notes
from data_prep.clips.windows import Window
from data_prep.makers import build_maker
from data_prep.pairs import ReferenceScale, SourceVideo, make_reference
from iclora_train.config import ConfigError
from iclora_train.data.shards import ShardSet
from iclora_train.media.clip import probe, read_clip
from iclora_train.media.container import decode
from iclora_train.media.section import Section
from tests.clips import write_clip
from tests.prep import config_of
from tests.test_exact import CLIPS, FRAMES, barcode, number_of, write
from tests.tiny import write_tiny_base

RATE = 25


def numbers_of(path: Path, section: Section) -> list[int]:
    return [number_of(frame) for frame in read_clip(path, None, section)]


@pytest.mark.parametrize("name", CLIPS)
def test_a_part_has_exactly_its_frames_in_every_format(name, tmp_path):
    encoder, pix_fmt, suffix, options = CLIPS[name]
    path = write(tmp_path / f"clip.{suffix}", encoder, pix_fmt, options)
    everything = list(read_clip(path))
    for start, end in ((0, 10), (11, 13), (24, 70), (43, 69), (60, 61)):
        section = Section(Fraction(start, RATE), Fraction(end, RATE))
        frames = list(read_clip(path, None, section))
        assert list(map(number_of, frames)) == list(range(start, end))
        assert all((frame == everything[start + i]).all() for i, frame in enumerate(frames))  # no trace of the seek
        info = probe(path, section)
        assert (info.frames, info.fps) == (end - start, pytest.approx(RATE, abs=0.01))
    assert numbers_of(path, Section(Fraction(43), Fraction(47), in_frames=True)) == [43, 44, 45, 46]
    first = next(decode(path, Fraction(60, RATE))).frame
    assert (first.pts * first.time_base > 0.3) == (suffix not in ("avi", "ts"))


def test_rounded_times_choose_the_frames_that_exact_times_choose(tmp_path):
    """Scene lists have milliseconds; at 23.976 fps no frame starts at a whole one."""
    encoder, pix_fmt, suffix, options = CLIPS["h264, open GOP"]
    path = write(tmp_path / f"clip.{suffix}", encoder, pix_fmt, options, [round(i * 1001 / 24) for i in range(FRAMES)])
    for start, end in ((1, 30), (30, 69)):
        for digits in (3, 2):  # up, down, and to hundredths
            times = (Fraction(round(i * 1.001 / 24, digits)).limit_denominator(1000) for i in (start, end))
            assert numbers_of(path, Section(*times)) == list(range(start, end))


def test_sections_that_adjoin_share_no_frame_and_omit_none_at_any_times(tmp_path):
    ticks = np.cumsum(np.random.default_rng(0).choice([20, 40, 120], FRAMES)).tolist()
    encoder, pix_fmt, suffix, options = CLIPS["h264, open GOP"]
    path = write(tmp_path / f"clip.{suffix}", encoder, pix_fmt, options, ticks)
    edges = [Fraction(0), Fraction("0.511"), Fraction("0.512"), Fraction("1.9"), Fraction("3.0003"), None]
    read = []
    for start, end in pairwise(edges):
        with contextlib.suppress(ValueError):  # a section between two frames has none
            read += numbers_of(path, Section(start, end))
    assert read == list(range(FRAMES))


def test_a_section_beyond_its_video_is_refused(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 50)  # two seconds
    assert probe(path, Section(Fraction(1), Fraction(3))).frames == 25  # lists round up
    for section, message in (
        (Section(Fraction(1), Fraction("3.2")), r"a\.mp4 ends after 2\.000 s, but its section is 1 to 3\.2 s: correct"),
        (Section(Fraction(5), Fraction(6)), r"a\.mp4 ends after 2\.000 s, but its section is 5 to 6 s"),
        (Section(Fraction(5)), r"a\.mp4 has no frame from 5 to the end: correct the times"),
        (Section(Fraction(10), Fraction(51), True), r"has 50 frames, but its section is 10 to 51 frames: correct"),
    ):
        with pytest.raises(ValueError, match=message):
            probe(path, section)


# --- lists ---


def rows_of(folder: Path, rows: list[dict[str, object]]) -> list[Clip]:
    """The clips of a jsonl with these rows, by start."""
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = list_clips(str(folder / "list.jsonl"), 0.1)
    return sorted(clips, key=lambda clip: clip.section.start if clip.section else 0)


@pytest.mark.parametrize(
    "columns",
    [
        {"start": 61.5, "end": "65"},
        {"start": "1:01.5", "end": "00:01:05"},
        {"Start_Timestamp": "00:01:01,500", "End_Timestamp": "00:01:05.000"},
        {"start_time": "61.50", "end_time": "1:05"},
        {"timestamp": ["0:01:01.500", "0:01:05.000"]},
        {"timestamp": "['0:01:01.500', '0:01:05.000']"},
        {"timestamp": [["0:01:01.500", "0:01:05.000"]]},
        {"timestamp": [61.5, 65]},
        {"timestamp": "0:01:01.5 - 0:01:05"},
    ],
)
def test_times_are_read_in_the_forms_of_known_lists(columns, tmp_path):
    (clip,) = rows_of(tmp_path, [{"video": "film.mp4", **columns}])
    assert clip.section == Section(Fraction("61.5"), Fraction(65))
    assert clip.id.startswith("film-")
    assert clip.id.endswith("-61500")


def test_sections_of_a_video_are_clips_of_one_recording(tmp_path):
    (tmp_path / "film.txt").write_text("a film")
    rows = [{"video": "film.mp4", "start": i, "end": i + 1} for i in range(3)] + [{"video": "film.mp4"}]
    clips = rows_of(tmp_path, [*rows, {"video": "b.mp4"}, {"video": "c.mp4", "end": 5, "source": "C"}])
    assert len({clip.id for clip in clips}) == 6
    assert {(clip.path.name, clip.source) for clip in clips} == {
        ("film.mp4", "film.mp4"),
        ("b.mp4", ""),
        ("c.mp4", "C"),
    }
    assert {clip.caption for clip in clips if clip.path.name == "film.mp4"} == {"a film"}
    assert not any("share one caption file" in note for note in listing_notes(str(tmp_path / "list.jsonl"), clips))
    (frames,) = rows_of(tmp_path, [{"video": "film.mp4", "start_frame": 24, "end_frame": 48}])
    assert frames.section == Section(Fraction(24), Fraction(48), in_frames=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"start": "soon"}, r"list\.jsonl, clip 1: start='soon' is not a time: give seconds or hh:mm:ss"),
        ({"start": "-1"}, "start='-1' is not a time"),
        ({"end": "1:75"}, "end='1:75' is not a time"),
        ({"start": 5, "end": 5}, "its section, 5 to 5 s, ends before it starts"),
        ({"start": 5, "end": 2}, "its section, 5 to 2 s, ends before it starts"),
        ({"start": 1, "start_frame": 25}, "names its section twice, in start, end and in start_frame, end_frame: keep"),
        ({"start_frame": 1.5}, "start_frame='1.5' must be the number of a frame, counted from 0"),
        ({"timestamp": [[0, 1], [2, 3]]}, "give each section of a video a row of its own"),
        ({"reference_start": 4}, "reference_start goes with `start` and `end`, which it does not name"),
        ({"start_frames": 4}, "`start_frames` is not read, did you mean `start_frame`"),
    ],
)
def test_times_that_cannot_be_read_are_refused(row, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        rows_of(tmp_path, [{"video": "a.mp4", **row}])


def test_other_texts_in_similar_columns_stay_texts(tmp_path):
    (clip,) = rows_of(tmp_path, [{"video": "a.mp4", "timestamp": "2024-05-01 12:00:00", "state": "wet", "send": "yes"}])
    assert clip.section is None
    (image,) = rows_of(tmp_path, [{"video": "a.png", "start": 1}])
    assert image.problem == "its row names a section, 1 to the end, but it is an image"


# --- preparation ---


def test_windows_stay_in_their_section_and_references_are_cut_alike(tmp_path):
    """Target and reference show their frame numbers. By default both are cut at the same times."""
    options = CLIPS["h264, open GOP"]
    target = write(tmp_path / "a.mp4", options[0], options[1], options[3])
    base = write_tiny_base(tmp_path / "base")
    rows = [
        {"id": "whole", "start": 0.4, "end": 1.2, "reference": "a.mp4"},
        {"id": "shifted", "start": 1.2, "end": 2, "reference": "a.mp4", "reference_start": 0.2},
        {"id": "held", "start": 2, "reference": "a.mp4", "split": "heldout"},
        {"id": "short", "start": 0, "end": 0.12, "reference": "a.mp4"},
    ]
    rows = [{"video": target.name, "split": "train", "caption": row["id"], **row} for row in rows]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = (
        "task.maker=given",
        "~task.maker_args.radius",
        "data.height=64",
        "data.width=96",
        "data.train_windows=12",
    )
    checks = ("checks.offset.action=warn", "checks.blank.action=warn", "checks.duplicate.action=warn")
    config = config_of(
        tmp_path / "out", tmp_path / "list.jsonl", base, *settings, "data.zoom=1", "data.flip=false", *checks
    )
    root = pipeline.prepare(config)
    pairs = ShardSet.open(root / "pairs")
    seen = set()
    limits = {"whole": (10, 30, 0), "shifted": (30, 50, -25), "held": (50, 70, 0)}
    for i in range(len(pairs)):
        pair = pairs.read_pair(i)
        name = pair.key.rsplit("-", 1)[0]
        first, last, shift = limits[name]
        numbers = [first + n for n in pair.record["window"]["indices"]]
        assert first <= min(numbers) <= max(numbers) < last
        for j, number in enumerate(numbers):
            shown = barcode_part(number, pair.record["window"]["crop"][1])
            assert np.abs(pair.target[j].astype(int) - shown).mean() < 20
            shown = barcode_part(number + shift, pair.record["window"]["crop"][1])
            assert np.abs(pair.references[0][j].astype(int) - shown).mean() < 20
        assert pair.record["source"] == "a.mp4"
        seen.add((name, pair.record["section"][0]))
    assert seen == {("whole", "2/5"), ("shifted", "6/5"), ("held", "2")}
    dropped = json.loads((root / "report.json").read_text())["dropped"]
    assert [(drop["clip"], drop["reason"]) for drop in dropped] == [("short", "3 frames are fewer than data.frames=5")]
    sources = pairs.fingerprint["sources"]
    assert sources["whole"]["video_section"] == ["2/5", "6/5"]
    assert sources["shifted"]["reference_section"] == ["1/5", "1"]
    assert len({source["video"] for source in sources.values()}) == 4  # sections of a file are no copies of it
    rows[0]["end"] = 1.16
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match=r"sources\.whole\.\w+_section"):
        pipeline.prepare(config)


def test_tracks_over_the_whole_clip_span_the_section(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 50)
    (tmp_path / "t.json").write_text(json.dumps([[{"x": 10, "y": 20}, {"x": 50, "y": 20}]]))
    section = Section(Fraction(10), Fraction(31), in_frames=True)  # 21 frames: two pixels per frame
    video = SourceVideo(path, {"tracks": tmp_path / "t.json"}, section)
    window = Window("a", 0, (0, 5, 10, 20), (48, 64), (0, 0), (48, 64), False, 25.0)
    maker = build_maker("control.tracks", {"points": "spline"})
    _, drawn = make_reference([np.zeros((48, 64, 3), np.uint8)] * 4, window, maker, video, [0], ReferenceScale())
    assert drawn["tracks"] == [[[10, 20], [20, 20], [30, 20], [50, 20]]]


def barcode_part(number: int, left: int) -> np.ndarray:
    """The columns of a barcode that a window of 96 pixels shows."""
    return barcode(number)[:, left : left + 96].astype(int)
