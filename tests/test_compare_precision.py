"""The comparison of precisions: the values it reads from a run, and the table it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.compare_precision import compare, final_values


@pytest.mark.parametrize("prefix", ["val", "heldout"], ids=["current", "earlier version"])
def test_a_run_ends_with_its_last_measured_values(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        f"step,loss,{prefix}_correct_0.3,{prefix}_correct_0.9,sampled_psnr\n0,,5.0,7.0,10.0\n1,2.0,1.0,2.0,\n2,1.0,,,\n"
    )
    assert final_values(tmp_path) == {"val_loss": 1.5, "sampled_psnr": 10.0}


def test_the_difference_is_printed_with_the_spread_over_seeds() -> None:
    runs = {"bf16": [{"psnr": 30.0}, {"psnr": 31.0}, {"psnr": 32.0}], "fp8": [{"psnr": 30.5}, {"psnr": 31.5}]}
    (row,) = compare(runs)
    assert row == {"value": "psnr", "bf16": 31.0, "fp8": 31.0, "difference": 0.0, "spread": pytest.approx(1.0)}
