"""A folder of odd clips is prepared: each one is used as it should be, or named in the table with its reason."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from data_prep import pipeline
from data_prep.clips.clip_list import list_clips
from iclora_train.data.shards import ShardSet
from scripts.mixed_clips import CLIPS, write_mixed_clips
from tests.prep import config_of
from tests.tiny import write_tiny_base

SETTINGS = ("data.frames=9", "data.fps=24", "data.train_windows=40", "data.heldout_windows=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "clips"
    write_mixed_clips(path)
    return path


@pytest.fixture(scope="module")
def ids(folder: Path) -> dict[str, str]:
    """The id of every listed clip, by its name in CLIPS."""
    return {str(clip.path.relative_to(folder)): clip.id for clip in list_clips(str(folder), 0.1)}


@pytest.fixture(scope="module")
def prepared(folder: Path) -> tuple[Path, str]:
    """data.root, and what the preparation printed."""
    base = write_tiny_base(folder.parent / "base")
    with redirect_stdout(io.StringIO()) as screen:
        root = pipeline.prepare(config_of(folder.parent / "out", folder, base, *SETTINGS))
    return root, screen.getvalue()


@pytest.fixture(scope="module")
def reasons(prepared: tuple[Path, str]) -> dict[str, str]:
    """The reason of every dropped clip in report.json, by id."""
    report = json.loads((prepared[0] / "report.json").read_text())
    return {entry["clip"]: entry["reason"] for entry in report["dropped"]}


def test_every_file_is_listed_once(ids):
    assert ids.keys() == CLIPS.keys()
    assert len(CLIPS) >= 50


@pytest.mark.parametrize("name", CLIPS, ids=lambda name: name.encode("unicode_escape").decode())
def test_a_clip_is_used_or_dropped_with_its_reason(name, prepared, ids, reasons):
    expected = CLIPS[name]
    pairs = ShardSet.open(prepared[0] / "pairs")
    numbers = [i for i, sample in enumerate(pairs.samples) if sample.source == ids[name]]
    if expected.dropped:
        assert expected.dropped in reasons[ids[name]]
        assert not numbers
    else:
        assert ids[name] not in reasons
        assert {pairs.read_pair(i).caption for i in numbers} == {f"DEBLUR {expected.caption}".strip()}


def test_the_table_names_every_dropped_clip(prepared, ids, reasons):
    rows = [line.split("│") for line in prepared[1].splitlines() if line.count("│") == 3]
    names, texts = ("".join(row[column] for row in rows).replace(" ", "") for column in (1, 2))
    for identity, reason in reasons.items():
        assert identity in names
        assert reason.replace(" ", "") in texts
    assert "text[bold].mp4:cannotbereadasavideo(itisatextfile)" in texts


def test_lines_name_what_was_not_read(prepared, folder):
    notes = json.loads((prepared[0] / "report.json").read_text())["notes"]
    assert notes == [
        f"metadata.csv was not read, because data.clips is the folder; data.clips={folder}/metadata.csv reads the list",
        f"files below {folder} that are not clips: 1 .db, 1 .png (images are read with data.frames=1)",
    ]
    assert all(note in prepared[1] for note in notes)


def test_the_report_says_how_odd_clips_are_read(prepared, ids):
    report = json.loads((prepared[0] / "report.json").read_text())
    lines = report["timing"] | report["converted"]
    for name, clip in CLIPS.items():
        assert clip.read_as in lines.get(ids[name], "")
        assert bool(clip.read_as) == (ids[name] in lines)


def test_latents_follow_the_pairs(prepared):
    pairs, latents = (ShardSet.open(prepared[0] / kind) for kind in ("pairs", "latents"))
    assert [sample.key for sample in latents.samples] == [sample.key for sample in pairs.samples]
    latents.verify()
