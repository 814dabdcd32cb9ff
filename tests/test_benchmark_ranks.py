"""The benchmarks with several processes, on a CPU: ranks, loading of a base, waits of the host."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scripts import benchmark, benchmark_base, benchmark_loop
from scripts.benchmark_ranks import table
from tests.tiny import write_tiny_base


def rows_of(output: str) -> list[dict[str, object]]:
    """The JSON lines of an output."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_the_table_has_the_ratio_to_one_gpu() -> None:
    row = {"variant": "fp8 auto", "shape": "S", "first": 1.0, "gib": 1.0}
    one = {**row, "devices": 1, "seconds": 0.5, "tokens_per_s": 10000}
    two = {**row, "devices": 2, "seconds": 0.51, "tokens_per_s": 19500}
    ratios = list(table([two, one]).columns[5].cells)
    assert ratios == ["1.00", "1.95"]


@pytest.mark.slow
def test_one_and_two_ranks_in_one_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--size", "tiny", "--shapes", "tiny", "--precision", "fp32", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["benchmark", "--devices", "1", "2", *small])
    benchmark.main()
    output = capsys.readouterr().out
    rows = [row for row in rows_of(output) if "seconds" in row]
    assert [row["devices"] for row in rows] == [1, 2]
    assert rows[1]["adapters_equal"]
    assert all(
        row["tokens_per_s"] == pytest.approx(row["devices"] * 32 / row["seconds"], abs=1, rel=1e-2) for row in rows
    )  # type: ignore[operator]
    assert "times one GPU" in output


@pytest.mark.slow
def test_a_base_is_loaded_by_several_processes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_tiny_base(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark_base", str(base), "--processes", "2", "--precision", "fp32"])
    benchmark_base.main()
    rows = rows_of(capsys.readouterr().out)
    assert [row["page_cache"] for row in rows] == ["cold", "warm"]
    assert all(len(row["seconds"]) == 2 for row in rows)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")  # warnings of Lightning
def test_steps_are_timed_with_and_without_a_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--size", "tiny", "--shape", "tiny", "--precision", "fp32", "--steps", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark_loop", *small])
    benchmark_loop.main()
    (row,) = rows_of(capsys.readouterr().out)
    assert row["ratio"] == pytest.approx(row["ms, host waits"][0] / row["ms, host goes on"][0], rel=0.01)  # type: ignore[index]
