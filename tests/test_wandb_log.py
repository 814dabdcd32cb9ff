"""Logging an evaluation to W&B: constant keys, players of mp4 files, complete offline runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eval.clips.windows import Window
from eval.judging.answer import answer
from eval.report import wandb_log
from eval.report.exhibits import Exhibit
from eval.report.media import Media
from iclora_train.config import Config, Task
from iclora_train.core import wandb_run
from tests.clips import moving

METRICS = ("psnr", "edge_f1")


def estimate(mean: float, n: int = 2) -> dict[str, Any]:
    has_interval = n > 1
    return {"mean": mean, "low": mean - 1 if has_interval else None, "high": mean + 1 if has_interval else None, "n": n}


def scores(adapter: Path, n: int = 2) -> dict[str, Any]:
    """The parts of scores.json that `log` reads, for `n` windows; the first one is the worst."""
    row = {metric: estimate(20.0, n) for metric in METRICS}
    verdict = {"name": "gain_over_input", "kind": "gate", "claim": "it helps", "value": estimate(1.0, n)}
    verdict |= {"by_source": estimate(1.0, n), "threshold": "≥ 0.7 dB", "outcome": "holds", "passed": True}
    output = {metric: [20.0 + i for i in range(n)] for metric in METRICS}
    return {
        "task": "deblur",
        "family": "restoration",
        "primary": "psnr",
        "adherence": "psnr",
        "metrics": {metric: {"title": metric, "unit": "", "better": "high"} for metric in METRICS},
        "adapter": {"path": str(adapter), "sha256": "0" * 64, "metadata": {"task": "deblur"}},
        "clips": [{"key": f"heldout-{i}", "source": f"shot{i}", "partner": "heldout-0"} for i in range(n)],
        "cells": {"adapter+reference": row, "base+reference": row},
        "strength": [{"s": s, "metrics": row} for s in (1.0, 0.5, 0.0)],
        "control": {"gain": estimate(0.8, n), "curve": {"s50": 0.2}},
        "verdicts": [verdict],
        "gates": {"outcome": "holds", "not_measured": []},
        "windows": {"adapter+reference": output, "input": {metric: [19.0] * n for metric in METRICS}},
        "simple": {"passed": 1, "of": 1, "signals": [{"name": "square", "value": 0.5, "passed": True}]},
    }


@pytest.fixture
def media(tmp_path: Path) -> Media:
    """The clips of a report: one window under three conditions, and its first screen."""
    result = Media(tmp_path / "runs" / "deblur-nano" / "eval", with_files=True)
    clips = {
        "reference": moving(3, 16, 32, seed=2),
        "adapter+reference": moving(5, 400, 402),
        "strength 0.5": moving(5, 16, 32, seed=1),
    }
    exhibit = Exhibit(Window(0, "heldout-0", "shot0", "32x16x5", 1), 25.0, "a texture", clips)
    for condition in clips:
        result.shown(exhibit, condition)
    for condition in ("reference", "adapter+reference"):
        result.preview(exhibit, condition)
    (result.folder / "report.html").write_text("<!doctype html>")
    (result.folder / "adapter.safetensors").write_bytes(b"weights")
    (result.folder / "scores.json").write_text(json.dumps(scores(result.folder / "adapter.safetensors")))
    return result


@pytest.fixture
def folder(media: Media) -> Path:
    return media.folder


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


def test_a_row_per_clip_a_column_per_condition_and_players_of_mp4_files(
    folder: Path, media: Media, recorder: Recorder
) -> None:
    wandb_log.log(media, scores(folder / "adapter.safetensors"), config(wandb={"project": "p"}))
    columns, rows = recorder.logged["clips"]
    assert columns[:4] == ["clip", "source", "partner", "psnr (adapter+reference)"]
    assert columns[-2:] == ["strength 0.5", "strength 0"]
    assert [row[0] for row in rows] == ["heldout-0", "heldout-1"]
    players = {column: value for column, value in zip(columns, rows[0], strict=True) if isinstance(value, Path)}
    assert set(players) == {"reference", "adapter+reference", "strength 0.5"}
    for path in players.values():
        assert path.read_bytes()[4:8] == b"ftyp"  # signature of an mp4 file
    assert [value for value in rows[1] if isinstance(value, Path)] == []
    assert recorder.finished


def test_the_first_page_is_the_answer_the_claims_and_the_rows_of_the_report(
    folder: Path, media: Media, recorder: Recorder
) -> None:
    values = scores(folder / "adapter.safetensors")
    wandb_log.log(media, values, config(wandb={"project": "p"}))
    assert list(recorder.logged)[:3] == ["report/answer", "report/claims", "report/examples"]
    columns, rows = recorder.logged["report/answer"]
    assert columns == ["task", "run", "answer"]
    assert rows == [["deblur", "deblur-nano-eval", answer(values)]]
    columns, rows = recorder.logged["report/claims"]
    assert columns[:6] == ["claim", "outcome", "value", "low", "high", "kind"]
    assert rows == [["it helps", "holds", 1.0, 0.0, 2.0, "gate", "≥ 0.7 dB", "gain_over_input", 2, 2]]
    columns, rows = recorder.logged["report/examples"]
    assert columns[-4:] == ["reference", "without adapter", "with adapter", "target"]
    assert [row[:8] for row in rows] == [
        ["worst gain", "heldout-0", "shot0", 1, 2, "psnr", 1.0, "input"],
        ["best gain", "heldout-1", "shot1", 2, 2, "psnr", 2.0, "input"],
    ]
    reference, without, with_adapter, target = rows[0][-4:]
    assert (without, target) == (None, None)  # not sampled
    assert reference == media.file(0, "reference")
    assert with_adapter == media.file(0, "adapter+reference", preview=True) != media.file(0, "adapter+reference")
    assert recorder.summary["report/answer"] == answer(values)


def test_the_first_page_has_the_same_keys_and_columns_for_every_task(
    folder: Path, media: Media, recorder: Recorder
) -> None:
    def first_page(values: dict[str, Any]) -> tuple[set[str], list[list[str]]]:
        recorder.logged.clear()
        recorder.summary.clear()
        wandb_log.log(media, values, config(wandb={"project": "p"}))
        keys = {key for key in (*recorder.logged, *recorder.summary) if key.startswith("report/")}
        return keys, [columns for key, (columns, _) in sorted(recorder.logged.items()) if key.startswith("report/")]

    restoration = scores(folder / "adapter.safetensors")
    control = {**scores(folder / "adapter.safetensors"), "family": "structure", "adherence": "edge_f1", "simple": None}
    control["windows"]["base"] = {"edge_f1": [21.0, 19.0]}
    control["verdicts"] = [{**restoration["verdicts"][0], "name": "edge_gap"}]
    unjudged = {**scores(folder / "adapter.safetensors"), "verdicts": []}
    unjudged["gates"] = {"outcome": "inconclusive", "not_measured": ["swap_drop"]}
    assert first_page(control) == first_page(restoration) == first_page(unjudged)
    first_page(control)
    assert recorder.summary["report/first_gate"] == "edge_gap"
    assert (recorder.summary["report/worst_gain"], recorder.summary["report/gain_over"]) == (-1.0, "base")
    assert recorder.summary["report/worse_windows"] == 1


def test_keys_do_not_depend_on_the_values(folder: Path, media: Media, recorder: Recorder) -> None:
    adapter = folder / "adapter.safetensors"
    wandb_log.log(media, scores(adapter), config(wandb={"project": "p"}))
    keys, columns = set(recorder.logged) | set(recorder.summary), recorder.logged["clips"][0]
    failed = scores(adapter, n=1)
    failed["verdicts"][0] |= {"outcome": "fails", "passed": False}
    wandb_log.log(Media(folder.parent / "eval-other"), failed, config(wandb={"project": "p"}))
    assert set(recorder.logged) | set(recorder.summary) == keys
    assert recorder.logged["clips"][0] == columns


def test_curves_are_ordered_by_strength_and_have_intervals_if_measured(
    folder: Path, media: Media, recorder: Recorder
) -> None:
    wandb_log.log(media, scores(folder / "adapter.safetensors"), config(wandb={"project": "p"}))
    x, series = recorder.logged["strength/edge_f1"]
    assert x == [0.0, 0.5, 1.0]
    assert series == {"mean": [20.0] * 3, "low": [19.0] * 3, "high": [21.0] * 3}
    wandb_log.log(media, scores(folder / "adapter.safetensors", n=1), config(wandb={"project": "p"}))
    assert set(recorder.logged["strength/edge_f1"][1]) == {"mean"}


def test_values_have_intervals_and_files_have_their_names(folder: Path, media: Media, recorder: Recorder) -> None:
    wandb_log.log(media, scores(folder / "adapter.safetensors"), config(wandb={"project": "p"}))
    assert recorder.summary["adapter+reference/psnr"] == estimate(20.0)
    assert recorder.summary["control/gain"] == estimate(0.8)
    assert recorder.summary["verdicts/passed"] == recorder.summary["verdicts/of"] == 1
    assert recorder.summary["gates/passed"] == recorder.summary["gates/of"] == 1
    assert recorder.summary["gates/outcome"] == recorder.summary["outcome/gain_over_input"] == "holds"
    (_, _, files, _), (_, kind, adapter, facts) = recorder.artifacts
    assert {"scores.json", "report.html", media.file(0, "strength 0.5").relative_to(folder).as_posix()} <= set(files)
    assert (kind, list(adapter), facts["task"]) == ("model", ["adapter.safetensors"], "deblur")


def test_a_folder_of_videos_has_no_adapter_and_no_control(folder: Path, media: Media, recorder: Recorder) -> None:
    values = {**scores(folder / "none"), "control": None, "simple": None, "strength": []}
    values["adapter"] = {"path": "none", "sha256": None, "metadata": {}}
    wandb_log.log(media, values, config(wandb={"project": "p"}))
    assert [kind for _, kind, _, _ in recorder.artifacts] == ["evaluation"]
    assert recorder.summary["adapter+reference/psnr"] == estimate(20.0)
    assert recorder.logged["strength"][1] == []


def with_sets(values: dict[str, Any]) -> dict[str, Any]:
    """The scores with FVD, two sources and a control."""

    def distance(mean: float) -> dict[str, Any]:
        return {"mean": mean, "low": None, "high": None, "clips": 4}

    cells = {"adapter+reference": {"psnr": estimate(21.0)}, "input": {"psnr": estimate(19.0)}}
    return {
        **values,
        "sets": {
            "network": "VideoMAE",
            "metrics": {"fvd": "FVD", "kvd": "KVD, 1e-3"},
            "targets": 2,
            "rows": {
                "adapter+reference": {"fvd": distance(5.0), "kvd": distance(1.0)},
                "input": {"fvd": distance(9.0)},
            },
            "paired": {"input": {"fvd": distance(-4.0)}},
        },
        "sources": {"old": cells, "new": cells},
        "controls": {"canny": {"cells": {"swapped": {"edge_f1": estimate(0.3)}}}},
    }


def test_sets_of_clips_sources_and_controls_are_tables_with_the_same_columns_in_every_run(
    folder: Path, media: Media, recorder: Recorder
) -> None:
    values = scores(folder / "adapter.safetensors")
    wandb_log.log(media, values, config(wandb={"project": "p"}))
    plain = {key: recorder.logged[key] for key in ("sets", "parts")}
    assert [rows for _, rows in plain.values()] == [[], []]
    wandb_log.log(media, with_sets(values), config(wandb={"project": "p"}))
    assert all(recorder.logged[key][0] == columns for key, (columns, _) in plain.items())
    assert recorder.logged["sets"][1] == [
        ["adapter+reference", None, "fvd", 5.0, None, None, 4, 2, "VideoMAE"],
        ["adapter+reference", None, "kvd", 1.0, None, None, 4, 2, "VideoMAE"],
        ["input", None, "fvd", 9.0, None, None, 4, 2, "VideoMAE"],
        ["adapter+reference", "input", "fvd", -4.0, None, None, 4, 2, "VideoMAE"],
    ]
    rows = recorder.logged["parts"][1]
    assert rows[0] == ["source", "old", "adapter+reference", "psnr", 21.0, 20.0, 22.0, 2]
    assert [row[:4] for row in rows[2:]] == [
        ["source", "new", "adapter+reference", "psnr"],
        ["source", "new", "input", "psnr"],
        ["control", "canny", "swapped", "edge_f1"],
    ]
    assert recorder.summary["sets/adapter+reference/fvd"]["mean"] == 5.0
    assert recorder.summary["sources/new/psnr"] == estimate(21.0)


def test_without_wandb_nothing_is_sent(folder: Path, media: Media, recorder: Recorder) -> None:
    wandb_log.log(media, scores(folder / "adapter.safetensors"), config(csv=True))
    assert recorder.logged == {}
    assert not recorder.finished


def test_offline_runs_contain_everything_for_wandb_sync(
    folder: Path, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(folder / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    values = with_sets(scores(folder / "adapter.safetensors"))
    wandb_log.log(media, values, config(wandb={"project": "p", "mode": "offline"}))
    assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    staged = [path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file()]
    for column, count in ((b"half mask", 3), (b"without adapter", 2)):  # the tables of all clips and of the examples
        table = next(json.loads(data) for data in staged if column in data and b"video-file" in data)
        players = [cell for row in table["data"] for cell in row if isinstance(cell, dict)]
        assert [(cell["_type"], Path(cell["path"]).suffix) for cell in players] == [("video-file", ".mp4")] * count
    for cell in (b"VideoMAE", b"canny"):
        assert any(cell in data for data in staged)
    assert {path.read_bytes() for path in media.files()} <= set(staged)  # not encoded again
    assert b"weights" in staged


def test_a_control_value_that_was_not_measured_is_left_out(folder: Path, media: Media, recorder: Recorder) -> None:
    values = scores(folder / "adapter.safetensors")
    values["control"] = {**values["control"], "gain": None, "null": estimate(0.2), "curve": None}
    wandb_log.log(media, values, config(wandb={"project": "p"}))
    assert "control/gain" not in recorder.summary
    assert recorder.summary["control/null"] == estimate(0.2)
