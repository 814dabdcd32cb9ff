"""Metrics that show whether the reference is used, and the logs of training."""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from iclora_train.core import wandb_run
from iclora_train.core.console import make_console
from iclora_train.training.loggers import ConsoleLogger, CsvLogger, WandbLogger
from iclora_train.training.validation_metrics import (
    CLIP_COLUMNS,
    CONDITIONS,
    ClipPsnr,
    clip_row,
    current_column,
    loss_columns,
    loss_row,
    psnr,
)
from tests.command import read_csv

SIGMAS = [0.3, 0.9]


def row(correct: float, swapped: float, base: float, none: float = 0.7) -> dict[str, float]:
    """The row of four clips with these losses at every noise level."""
    losses = {"correct": correct, "swapped": swapped, "none": none, "base": base}
    return loss_row(
        {(condition, s): torch.full((4,), value) for condition, value in losses.items() for s in SIGMAS}, SIGMAS
    )


def test_an_ignored_reference_has_neither_gain_nor_gap() -> None:
    ignored = row(0.5, 0.5, 0.5)
    assert ignored["control_gain"] == ignored["swap_gap"] == ignored["control_gain_0.3"] == 0
    assert ignored["swap_won"] == 0


def test_gain_and_gap_grow_as_the_reference_is_used_more() -> None:
    doses = [row(0.5 - effect, 0.5 + effect, 0.5) for effect in (0.0, 0.1, 0.2, 0.4)]
    for name in ("control_gain", "swap_gap", "control_gain_0.9", "swap_gap_0.3"):
        values = [dose[name] for dose in doses]
        assert values == sorted(set(values))
    assert doses[2]["control_gain"] == pytest.approx(0.4)
    assert doses[2]["swap_gap"] == pytest.approx(0.8)
    assert doses[1]["swap_won"] == 1


def test_a_reference_that_only_disturbs_has_a_negative_gain_and_may_have_a_gap() -> None:
    disturbed = row(0.6, 0.7, 0.5)
    assert disturbed["control_gain"] == pytest.approx(-0.2)
    assert disturbed["swap_gap"] == pytest.approx(0.2)


def test_the_loss_without_reference_does_not_enter_gain_and_gap() -> None:
    for name in ("control_gain", "swap_gap"):
        assert row(0.4, 0.6, 0.5, none=0.5)[name] == row(0.4, 0.6, 0.5, none=0.9)[name]


def test_swap_won_counts_clips() -> None:
    losses = {(condition, 0.5): torch.ones(4) for condition in CONDITIONS}
    losses["swapped", 0.5] = torch.tensor([2.0, 2.0, 2.0, 0.5])
    assert loss_row(losses, [0.5])["swap_won"] == 0.75


def test_figures_of_a_swapped_reference_are_not_given_without_one(tmp_path: Path) -> None:
    losses = {(condition, 0.5): torch.ones(4) for condition in CONDITIONS if condition != "swapped"}
    values = loss_row(losses, [0.5])
    assert list(values) == loss_columns([0.5])
    missing = {"val_swapped_0.5", "swap_gap_0.5", "swap_gap", "swap_won"}
    assert {name for name, value in values.items() if math.isnan(value)} == missing
    log = CsvLogger(tmp_path / "metrics.csv", ["step", *loss_columns([0.5])])
    log.start(0)
    log.write([{"step": 1, **values}])
    log.close()
    (row,) = read_csv(tmp_path / "metrics.csv")
    assert {name for name, value in row.items() if value == ""} == missing
    output = StringIO()
    console = ConsoleLogger(1, make_console(file=output, width=200))
    console.start(0)
    console.write([{"step": 1, "loss": 1.0, **values}])
    console.close()
    assert "correct 1.0000, swapped not measured" in output.getvalue()
    assert "swap gap not measured" in output.getvalue()


def test_every_row_has_the_same_columns() -> None:
    assert list(row(0.5, 0.5, 0.5)) == list(row(0.1, 0.9, 0.4)) == loss_columns(SIGMAS)
    assert len(set(loss_columns(SIGMAS) + list(CLIP_COLUMNS))) == 8 + 4 + 3 + 2


def test_sampled_psnr_is_the_usual_psnr_and_has_a_chance_level() -> None:
    rng = np.random.default_rng(0)
    target, other = (rng.integers(0, 246, (3, 16, 16, 3), dtype=np.uint8) for _ in range(2))
    assert psnr(target + 10, target) == pytest.approx(28.1308, abs=1e-4)  # 20 log10(255 / 10)
    assert psnr(target + 10, other) < 10
    row = clip_row([ClipPsnr(20.0, 5.0), ClipPsnr(30.0, 7.0)])
    assert row == {"sampled_psnr": 25.0, "sampled_psnr_other": 6.0}
    assert list(row) == list(CLIP_COLUMNS)
    assert clip_row([ClipPsnr(20.0, None)]) == {"sampled_psnr": 20.0}


# --- the logs ---


def test_wandb_gets_the_measured_values_over_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = MagicMock()
    start = MagicMock(return_value=run)
    monkeypatch.setattr(wandb_run, "start_run", start)
    log = WandbLogger(tmp_path, "deblur-nano", {"seed": 0}, {"mode": "offline"})
    log.close()  # before start: nothing to finish
    log.start(0)
    start.assert_called_once_with(tmp_path, "deblur-nano", {"seed": 0}, {"mode": "offline"})
    run.define_metric.assert_called_once_with("*", step_metric="step")
    log.write([{"step": 1, "loss": 0.5, "loss_0.00_0.25": math.nan, "control_gain": 0.1}])
    run.log.assert_called_once_with({"step": 1, "loss": 0.5, "control_gain": 0.1})
    log.write([{"step": 2, "loss": 0.4}, {"step": 3, "loss": 0.3, "mfu": 0.5}])
    assert [call.args[0] for call in run.log.call_args_list[1:]] == [
        {"step": 2, "loss": 0.4},
        {"step": 3, "loss": 0.3, "throughput/mfu": 0.5},
    ]
    log.close()
    run.finish.assert_called_once_with()


def test_columns_of_earlier_versions_have_their_current_names() -> None:
    assert current_column("heldout_correct_0.3") == "val_correct_0.3"
    assert current_column("val_correct_0.3") == "val_correct_0.3"
    assert current_column("loss") == "loss"


def test_a_log_of_an_earlier_version_keeps_its_rows_and_gets_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,heldout_correct_0.5,gone\n1,0.5,,7\n2,0.25,0.125,8\n3,0.1,,9\n")
    log = CsvLogger(path, ["step", "loss", "control_gain", "val_correct_0.5"])
    log.start(2)
    log.write([{"step": 3, "loss": 0.2, "control_gain": 0.5, "val_correct_0.5": 0.1}])
    log.close()
    table = read_csv(path)
    assert list(table[0]) == ["step", "loss", "control_gain", "val_correct_0.5", "gone"]
    assert [line["step"] for line in table] == ["1", "2", "3"]
    assert [line["gone"] for line in table] == ["7", "8", ""]
    assert table[1]["val_correct_0.5"] == "0.125"
    assert [line["control_gain"] for line in table] == ["", "", "0.5"]


def test_resuming_keeps_the_bytes_of_earlier_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = CsvLogger(path, ["step", "loss"])
    log.start(0)
    for step in (1, 2, 3):
        log.write([{"step": step, "loss": 1 / 3 * step}])
    log.close()
    complete = path.read_bytes()
    resumed = CsvLogger(path, ["step", "loss"])
    with path.open("ab") as file:
        file.write(b"4,0.")  # killed while a line was written
    resumed.start(3)
    resumed.close()
    assert path.read_bytes() == complete
