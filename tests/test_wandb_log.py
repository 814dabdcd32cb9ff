"""Logging an evaluation to W&B: constant keys, players of mp4 files, complete offline runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eval.clips.windows import Window
from eval.report import wandb_log
from eval.report.exhibits import Exhibit
from iclora_train.config import Config, Task
from iclora_train.core import wandb_run
from tests.clips import moving

METRICS = ("psnr", "edge_f1")


def estimate(mean: float, n: int = 2) -> dict[str, Any]:
    has_interval = n > 1
    return {"mean": mean, "low": mean - 1 if has_interval else None, "high": mean + 1 if has_interval else None, "n": n}


def scores(adapter: Path, n: int = 2) -> dict[str, Any]:
    """The parts of scores.json that `log` reads, for `n` windows."""
    row = {metric: estimate(20.0, n) for metric in METRICS}
    verdict = {"name": "gain", "kind": "gate", "claim": "it helps", "value": estimate(1.0, n), "threshold": "≥ 0.7 dB"}
    verdict |= {"outcome": "holds", "passed": True}
    return {
        "task": "deblur",
        "primary": "psnr",
        "adapter": {"path": str(adapter), "sha256": "0" * 64, "metadata": {"task": "deblur"}},
        "clips": [{"key": f"heldout-{i}", "source": f"shot{i}", "partner": "heldout-0"} for i in range(n)],
        "cells": {"adapter+reference": row, "base+reference": row},
        "strength": [{"s": s, "metrics": row} for s in (1.0, 0.5, 0.0)],
        "control": {"gain": estimate(0.8, n), "curve": {"s50": 0.2}},
        "verdicts": [verdict],
        "gates": {"outcome": "holds", "not_measured": []},
        "windows": {"adapter+reference": {metric: [20.0] * n for metric in METRICS}},
        "simple": {"passed": 1, "of": 1, "signals": [{"name": "square", "value": 0.5, "passed": True}]},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of an evaluation, with clips of one window under two conditions."""
    result = tmp_path / "runs" / "deblur-nano" / "eval"
    clips = {"adapter+reference": moving(5, 16, 32), "strength 0.5": moving(5, 16, 32, seed=1)}
    exhibit = Exhibit(Window(0, "heldout-0", "shot0", "32x16x5", 1), 25.0, "a texture", clips)
    assert list(wandb_log.save_clips([exhibit], result, config(wandb={"project": "p"}))) == [exhibit]
    (result / "report.html").write_text("<!doctype html>")
    (result / "adapter.safetensors").write_bytes(b"weights")
    (result / "scores.json").write_text(json.dumps(scores(result / "adapter.safetensors")))
    return result


def config(**logger: Any) -> Config:
    return Config(task=Task(name="deblur", maker="degrade.defocus"), logger=logger, run="deblur-nano")


@dataclass
class Recorder:
    """Stand-in for a wandb run that records its calls."""

    logged: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    finished: bool = False

    def log(self, values: dict[str, Any]) -> None:
        self.logged |= values

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    result = Recorder()
    monkeypatch.setattr(wandb_run, "start_run", lambda *_, **__: result)
    monkeypatch.setattr(wandb_run, "table", lambda columns, rows: (list(columns), rows))
    monkeypatch.setattr(wandb_run, "line_chart", lambda x, series, *_: (x, series))
    monkeypatch.setattr(wandb_run, "artifact", lambda name, kind, files, metadata: (name, kind, files, metadata))
    return result


def test_a_row_per_clip_a_column_per_condition_and_players_of_mp4_files(folder: Path, recorder: Recorder) -> None:
    wandb_log.log(folder, scores(folder / "adapter.safetensors"), config(wandb={"project": "p"}))
    columns, rows = recorder.logged["clips"]
    assert columns[:4] == ["clip", "source", "partner", "psnr (adapter+reference)"]
    assert columns[-2:] == ["strength 0.5", "strength 0"]
    assert [row[0] for row in rows] == ["heldout-0", "heldout-1"]
    players = {column: value for column, value in zip(columns, rows[0], strict=True) if isinstance(value, Path)}
    assert set(players) == {"adapter+reference", "strength 0.5"}
    for path in players.values():
        assert path.read_bytes()[4:8] == b"ftyp"  # signature of an mp4 file
    assert [value for value in rows[1] if isinstance(value, Path)] == []
    assert recorder.finished


def test_keys_do_not_depend_on_the_values(folder: Path, recorder: Recorder) -> None:
    adapter = folder / "adapter.safetensors"
    wandb_log.log(folder, scores(adapter), config(wandb={"project": "p"}))
    keys, columns = set(recorder.logged) | set(recorder.summary), recorder.logged["clips"][0]
    failed = scores(adapter, n=1)
    failed["verdicts"][0] |= {"outcome": "fails", "passed": False}
    wandb_log.log(folder.parent / "eval-other", failed, config(wandb={"project": "p"}))
    assert set(recorder.logged) | set(recorder.summary) == keys
    assert recorder.logged["clips"][0] == columns


def test_curves_are_ordered_by_strength_and_have_intervals_if_measured(folder: Path, recorder: Recorder) -> None:
    wandb_log.log(folder, scores(folder / "adapter.safetensors"), config(wandb={"project": "p"}))
    x, series = recorder.logged["strength/edge_f1"]
    assert x == [0.0, 0.5, 1.0]
    assert series == {"mean": [20.0] * 3, "low": [19.0] * 3, "high": [21.0] * 3}
    wandb_log.log(folder, scores(folder / "adapter.safetensors", n=1), config(wandb={"project": "p"}))
    assert set(recorder.logged["strength/edge_f1"][1]) == {"mean"}


def test_values_have_intervals_and_files_have_their_names(folder: Path, recorder: Recorder) -> None:
    wandb_log.log(folder, scores(folder / "adapter.safetensors"), config(wandb={"project": "p"}))
    assert recorder.summary["adapter+reference/psnr"] == estimate(20.0)
    assert recorder.summary["control/gain"] == estimate(0.8)
    assert recorder.summary["verdicts/passed"] == recorder.summary["verdicts/of"] == 1
    assert recorder.summary["gates/passed"] == recorder.summary["gates/of"] == 1
    assert recorder.summary["gates/outcome"] == recorder.summary["outcome/gain"] == "holds"
    (_, _, files, _), (_, kind, adapter, facts) = recorder.artifacts
    assert {"scores.json", "report.html", "clips/heldout-0/strength_0.5.mp4"} <= set(files)
    assert (kind, list(adapter), facts["task"]) == ("model", ["adapter.safetensors"], "deblur")


def test_a_folder_of_videos_has_no_adapter_and_no_control(folder: Path, recorder: Recorder) -> None:
    values = {**scores(folder / "none"), "control": None, "simple": None, "strength": []}
    values["adapter"] = {"path": "none", "sha256": None, "metadata": {}}
    wandb_log.log(folder, values, config(wandb={"project": "p"}))
    assert [kind for _, kind, _, _ in recorder.artifacts] == ["evaluation"]
    assert recorder.summary["adapter+reference/psnr"] == estimate(20.0)
    assert recorder.logged["strength"][1] == []


def test_without_wandb_nothing_is_sent(folder: Path, recorder: Recorder) -> None:
    wandb_log.log(folder, scores(folder / "adapter.safetensors"), config(csv=True))
    assert recorder.logged == {}
    assert not recorder.finished


def test_offline_runs_contain_everything_for_wandb_sync(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(folder / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    wandb_log.log(folder, scores(folder / "adapter.safetensors"), config(wandb={"project": "p", "mode": "offline"}))
    assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    staged = [path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file()]
    table = next(json.loads(data) for data in staged if b"half mask" in data and b"video-file" in data)
    players = [cell for row in table["data"] for cell in row if isinstance(cell, dict)]
    assert [(cell["_type"], Path(cell["path"]).suffix) for cell in players] == [("video-file", ".mp4")] * 2
    clip = (folder / "clips/heldout-0/strength_0.5.mp4").read_bytes()
    assert clip in staged  # not encoded again
    assert b"weights" in staged


def test_a_control_value_that_was_not_measured_is_left_out(folder: Path, recorder: Recorder) -> None:
    values = scores(folder / "adapter.safetensors")
    values["control"] = {**values["control"], "gain": None, "null": estimate(0.2), "curve": None}
    wandb_log.log(folder, values, config(wandb={"project": "p"}))
    assert "control/gain" not in recorder.summary
    assert recorder.summary["control/null"] == estimate(0.2)
