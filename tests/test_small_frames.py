"""Frames of few pixels: what cannot be measured on them is left out with a reason, the rest is measured."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics import GroundTruth, Suite, dissimilarity
from iclora_train.config import Task
from iclora_train.signals.optical_flow import dis_flow
from tests.clips import moving

TASKS = {
    "restoration": "degrade.defocus",
    "colorize": "degrade.grey",
    "edit": "edit.inpaint",
    "structure": "control.canny",
}


@pytest.mark.parametrize("family", TASKS)
@pytest.mark.parametrize("size", [(8, 8), (8, 16), (10, 32)])
def test_small_frames_are_measured_without_ssim(family: str, size: tuple[int, int]) -> None:
    target = moving(5, *size)
    region = np.zeros(target.shape[:3], bool)
    region[:, :4, :4] = True
    truth = GroundTruth(target, moving(5, *size, seed=1), target, region, band=1)
    suite = Suite.of(Task(name="x", maker=TASKS[family], family=family), side=min(size))
    values = suite.measure(target, truth).values
    assert values["psnr"] == 100
    assert np.isfinite(list(values.values())).all()
    assert values.keys().isdisjoint({"ssim", "ssim_outside"})
    expected = ["ssim", "ssim_outside"] if family == "edit" else ["ssim"]
    assert [missing.metric for missing in suite.not_run] == expected
    assert all("at least 11 pixels" in missing.reason for missing in suite.not_run)
    assert np.isnan(dissimilarity(target, target))


def test_frames_of_eleven_pixels_have_ssim() -> None:
    suite = Suite.of(Task(name="x", maker="degrade.defocus"), side=11)
    target = moving(5, 11, 16)
    assert suite.measure(target, GroundTruth(target, target, target)).values["ssim"] == 1
    assert suite.not_run == ()


@pytest.mark.parametrize("family", TASKS)
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (4, 4), (6, 40)])
def test_whatever_frames_of_few_pixels_cannot_have_is_named(family: str, size: tuple[int, int]) -> None:
    target = moving(5, *size)
    region = np.zeros(target.shape[:3], bool)
    region[:, :1, :1] = True
    suite = Suite.of(Task(name="x", maker=TASKS[family], family=family), min(size), len(target))
    values = suite.measure(target, GroundTruth(target, target, target, region, band=1)).values
    missing = {entry.metric for entry in suite.not_run}
    assert "ssim" in missing
    assert values.keys().isdisjoint(missing)
    assert np.isfinite(list(values.values())).all()


@pytest.mark.parametrize(
    ("frames", "missing"), [(1, {"motion", "flicker", "warp_error", "tof"}), (2, {"flicker"}), (3, set())]
)
def test_short_clips_have_no_flicker_and_the_reason_is_given(frames: int, missing: set[str]) -> None:
    target = moving(frames, 16, 16)
    suite = Suite.of(Task(name="x", maker="degrade.defocus"), 16, frames)
    assert {entry.metric for entry in suite.not_run} == missing
    assert all(f"the clips have {frames}" in entry.reason for entry in suite.not_run)
    assert suite.measure(target, GroundTruth(target, target, target)).values.keys().isdisjoint(missing)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (8, 8), (7, 40), (11, 11), (8, 12)])
def test_flow_of_a_small_picture_has_its_size(size: tuple[int, int]) -> None:
    picture = moving(1, *size)[0, ..., 0]
    flow = dis_flow(picture, picture)
    assert flow.shape == (*size, 2)
    assert np.abs(flow).max() < 0.1
