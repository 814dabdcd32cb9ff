"""The comparison of the dtypes of latents, on nano's VAE."""

from __future__ import annotations

import math

import pytest

from iclora_train.ltx2.base_model import BaseModel
from scripts.latent_precision import compare
from tests.clips import moving


def test_fp16_rounds_less_than_bf16_and_far_less_than_the_vae_loses() -> None:
    vae = BaseModel.open("nano").vae()
    rows = {row["dtype"]: row for row in compare(vae, [moving(9, 64, 64, seed) for seed in range(2)], "target")}
    assert rows["fp32"]["error"] == 0
    assert rows["fp32"]["decoded_psnr"] is None
    # A value is rounded by at most half a step of 2^-10 (fp16) or 2^-7 (bf16) of its power of two.
    assert 2**-13 < rows["fp16"]["error"] < 2**-11
    assert rows["bf16"]["error"] == pytest.approx(8 * rows["fp16"]["error"], rel=0.05)
    for name in ("fp16", "bf16"):
        assert rows[name]["decoded_psnr"] > rows[name]["round_trip_psnr"] + 20
        assert math.isclose(rows[name]["round_trip_psnr"], rows["fp32"]["round_trip_psnr"], abs_tol=0.05)
    assert rows["fp16"]["room"] > 1000
    assert rows["fp16"]["mb"] == rows["fp32"]["mb"] / 2
