"""The loading benchmark times the loader of training and prints its share of a step."""

from __future__ import annotations

import sys

import pytest

from scripts import benchmark_loading


def test_a_row_for_each_number_of_workers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--size", "64", "64", "9", "--clips", "4", "--batch-size", "2", "--batches", "4", "--workers", "0", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark_loading", *small, "--step-seconds", "0.01"])
    benchmark_loading.main()
    output = capsys.readouterr().out
    assert "64x64x9, 8.4 MB per clip, 2 clips per batch" in output
    assert "page cache warm; steps of 0.01 s" in output
    rows = [line for line in output.splitlines() if "loader needs" in line]
    assert [row.split()[1] for row in rows] == ["0", "1"]
    assert all("% of a step" in row for row in rows)
