"""The benchmark of data preparation prints a row per task that says how the preparation compares with its VAE."""

from __future__ import annotations

import json
import sys

import pytest

from iclora_train.config import ConfigError
from scripts import benchmark_prep


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_prep", "--windows", "6", "--vae-windows", "2", *arguments])
    benchmark_prep.main()


def test_a_row_for_each_task(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "--tasks", "deblur,canny", "data.keep=preview")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["task"] for row in rows] == ["deblur", "canny"]
    for row in rows:
        assert row["windows"] == 6
        assert row["ratio"] == pytest.approx(row["seconds_per_window"] / row["vae_seconds"], rel=0.02)
        assert set(row["pair_seconds"]) == {"decode", "maker", "checks", "compression"}
        assert all(size > 0 for size in row["GB_per_1000_windows"].values())


def test_clips_that_cannot_be_used_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no clip is usable.*fewer than data.frames=4001"):
        run(monkeypatch, "--tasks", "deblur", "data.frames=4001")
