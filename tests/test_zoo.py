"""The zoo: pairs of the tasks without footage, commands that go on after an interruption, and the page of results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
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
    """Three jobs whose command writes the scores; the one of pose fails the first time."""

    def start(job: zoo.Job, threads: int, pipe: int) -> None:
        scores = job.run / "eval" / "scores.json"
        fails = job.task == "pose" and not job.log.exists()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text("...\nerror: no memory\n\n")
        scores.parent.mkdir(parents=True, exist_ok=True)
        job.started = time.time()
        code = "import sys; sys.exit(2)" if fails else "import sys; open(sys.argv[1], 'w').write('{}')"
        job.process = subprocess.Popen([sys.executable, "-c", code, str(scores)])

    monkeypatch.setattr(zoo.Job, "start", start)
    monkeypatch.setattr(zoo, "POLL_SECONDS", 0.02)
    return [zoo.Job(task, tmp_path) for task in ("canny", "deblur", "pose")]


def times(jobs: list[zoo.Job]) -> list[int]:
    return [job.record.stat().st_mtime_ns if job.record.exists() else 0 for job in jobs]


def test_a_failed_task_does_not_stop_the_others_and_only_it_runs_again(jobs):
    (failed,) = zoo.run_all(jobs, 2, 1)
    assert failed.task == "pose"
    assert failed.last_line() == "error: no memory"
    before = times(jobs)
    assert [time > 0 for time in before] == [True, True, False]
    assert not zoo.run_all(jobs, 2, 1)
    assert times(jobs)[:2] == before[:2]
    assert all(job.scores() for job in jobs)


def test_a_task_finished_with_other_settings_is_not_finished(jobs):
    zoo.run_all(jobs[:1], 1, 1)
    assert jobs[0].scores() is not None
    assert zoo.Job("canny", jobs[0].folder, ["eval=quick"]).scores() is None


def test_a_trained_task_is_only_evaluated(tmp_path, monkeypatch):
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    job = zoo.Job("deblur", tmp_path, ["optim.lr=1"])
    job.start(1, 3)
    job.run.mkdir(parents=True)
    (job.run / "adapter.safetensors").touch()
    job.start(1, 3)
    assert [command[3] for command in started] == ["iclora_train", "eval"]
    assert all("conf=deblur" in command and "optim.lr=1" in command for command in started)


def test_a_command_ends_with_the_program_that_started_it(tmp_path):
    reading, writing = os.pipe()
    job = zoo.Job("deblur", tmp_path, ["trainer.max_steps=1000"])
    job.start(1, reading)
    os.close(reading)
    os.close(writing)
    assert job.process is not None
    assert job.process.wait(60) != 0
    assert not job.finish()


def test_settings_may_follow_the_tasks():
    options, settings = zoo.parse(["out", "--jobs", "3", "--tasks", "deblur", "canny", "eval=quick"])
    assert (options.tasks, options.jobs, settings) == (["deblur", "canny"], 3, ["eval=quick"])


@pytest.mark.parametrize("word", ["--tasks=blur", "--step=3", "quick", "model=ltx2", "--jobs=0"])
def test_a_wrong_word_is_named(word, capsys):
    with pytest.raises(SystemExit, match="2"):
        zoo.parse(["out", word])
    assert word.removeprefix("--").partition("=")[0] in capsys.readouterr().err


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
    assert tasks == sorted(path.stem for path in Path("conf/conf").glob("*.yaml"))
    assert set(zoo.NOT_RUN) < set(tasks)
    assert set(EDITS) < set(tasks)
    given = [task for task in tasks if "maker: given" in Path("conf/conf", f"{task}.yaml").read_text()]
    assert sorted(set(given) - set(zoo.NOT_RUN)) == sorted(EDITS)
