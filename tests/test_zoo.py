"""The zoo: pairs of the tasks without footage, commands that go on after an interruption, and the page of results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.clips.clip_list import list_clips
from scripts import zoo, zoo_pairs
from scripts.zoo_pairs import EDITS
from scripts.zoo_table import NotRun, write_table
from tests.clips import moving
from tests.scores_example import example

FRAMES = moving(6, 96, 96, seed=3)


def edit(task: str) -> tuple[np.ndarray, np.ndarray]:
    return EDITS[task](FRAMES.copy(), np.random.default_rng(0))


@pytest.mark.parametrize("task", EDITS)
def test_a_pair_shows_the_same_frames_before_and_after_an_edit_that_moves_nothing_else(task):
    before, after = edit(task)
    assert before.shape == after.shape == FRAMES.shape
    assert before.dtype == after.dtype == np.uint8
    changed = np.abs(before.astype(int) - after).max(axis=-1) > 8
    assert changed.mean() > 0.01
    assert np.array_equal(FRAMES, after if task == "shave" else before) == (task != "cross_eyed")


def test_an_edit_of_a_part_leaves_the_rest():
    before, after = edit("water")
    assert np.array_equal(before[:, :64], after[:, :64])
    assert not np.array_equal(before[:, 64:], after[:, 64:])
    before, after = edit("cross_eyed")
    assert (before != after).mean() < 0.1


def test_the_night_is_dark_and_blue():
    _, after = edit("day_to_night")
    assert after.mean() < 0.6 * FRAMES.mean()
    assert after[..., 2].mean() > after[..., 0].mean()


def test_pairs_keep_the_samples_splits_and_recordings(tmp_path, monkeypatch):
    samples = [clip for clip in list_clips("samples", 0.1) if clip.id in ("cup_turn", "skyline_rise")]
    monkeypatch.setattr(zoo_pairs, "list_clips", lambda *_: samples)
    clips = list_clips(str(zoo_pairs.write_pairs("shave", tmp_path / "shave")), 0.1)
    assert [(clip.id, clip.split, clip.source) for clip in clips] == [(c.id, c.split, c.source) for c in samples]
    assert all(clip.reference is not None and clip.reference.exists() for clip in clips)


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> list[zoo.Job]:
    """Two jobs whose command writes the scores, and one whose command fails the first time."""

    def start(job: zoo.Job, threads: int) -> None:
        scores = job.run / "eval" / "scores.json"
        fails = job.task == "pose" and not job.log.exists()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text("...\nerror: no memory\n\n")
        scores.parent.mkdir(parents=True, exist_ok=True)
        code = "import sys; sys.exit(2)" if fails else "import sys; open(sys.argv[1], 'w').write('{}')"
        job.process = zoo.subprocess.Popen([sys.executable, "-c", code, str(scores)])
        started.append(job.task)

    started: list[str] = []
    monkeypatch.setattr(zoo.Job, "start", start)
    monkeypatch.setattr(zoo, "POLL_SECONDS", 0.02)
    return [zoo.Job(task, tmp_path) for task in ("canny", "deblur", "pose")]


def test_a_failed_task_does_not_stop_the_others_and_only_it_runs_again(jobs):
    (failed,) = zoo.run_all(jobs, 2, 1)
    assert failed.task == "pose"
    assert failed.last_line() == "error: no memory"
    assert [job.scores is not None for job in jobs] == [True, True, False]
    before = {job.task: job.scores.stat().st_mtime_ns for job in jobs if job.scores}
    assert not zoo.run_all(jobs, 2, 1)
    assert all(job.scores is not None for job in jobs)
    assert {job.task: job.scores.stat().st_mtime_ns for job in jobs if job.task in before and job.scores} == before


def test_a_trained_task_is_only_evaluated(tmp_path, monkeypatch):
    commands: list[list[str]] = []
    monkeypatch.setattr(zoo.subprocess, "Popen", lambda command, **_: commands.append(command))
    job = zoo.Job("deblur", tmp_path, ["optim.lr=1"])
    job.start(1)
    job.run.mkdir(parents=True)
    (job.run / "adapter.safetensors").touch()
    job.start(1)
    assert [command[2] for command in commands] == ["iclora_train", "eval"]
    assert all("conf=deblur" in command and "optim.lr=1" in command for command in commands)


def test_the_page_names_what_fails_and_what_was_not_judged(tmp_path):
    scores = example()
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    page = tmp_path / "results.md"
    write_table(page, {"deblur": tmp_path / "scores.json"}, [NotRun("depth", "its network is\nnot | included")])
    text = page.read_text()
    gates = [verdict for verdict in scores["verdicts"] if verdict["kind"] == "gate"]
    of = len(gates) + len(scores["gates"]["not_measured"])
    held = sum(verdict["outcome"] == "holds" for verdict in gates)
    assert f"| [deblur](#deblur) | {held} of {of} |" in text
    assert r"| depth | not judged: its network is not \| included |" in text
    for verdict in gates:
        assert f"| {verdict['claim']} |" in text
        assert f"| {verdict['threshold']} | {verdict['outcome']} |" in text


def test_every_task_is_run_or_has_a_reason():
    tasks = zoo.task_names()
    assert len(tasks) == 19
    assert set(zoo.NOT_RUN) < set(tasks)
    assert set(EDITS) < set(tasks)
    given = [task for task in tasks if "maker: given" in Path("conf/conf", f"{task}.yaml").read_text()]
    assert sorted(given) == sorted(EDITS)
