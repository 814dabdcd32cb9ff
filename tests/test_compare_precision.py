"""The comparison of precisions: what it reads from a run, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.compare_precision import compared, ending


def test_a_run_ends_with_its_last_measured_figures(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,loss,heldout_correct_0.3,heldout_correct_0.9,sampled_psnr\n0,,5.0,7.0,10.0\n1,2.0,1.0,2.0,\n2,1.0,,,\n"
    )
    assert ending(tmp_path) == {"heldout_loss": 1.5, "sampled_psnr": 10.0}


def test_the_difference_stands_beside_the_spread_over_seeds() -> None:
    runs = {"bf16": [{"psnr": 30.0}, {"psnr": 31.0}, {"psnr": 32.0}], "fp8": [{"psnr": 30.5}, {"psnr": 31.5}]}
    (row,) = compared(runs)
    assert row == {"figure": "psnr", "bf16": 31.0, "fp8": 31.0, "apart": 0.0, "spread": pytest.approx(1.0)}
