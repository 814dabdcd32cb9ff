"""The classic filters: what an adapter has to beat is itself better than the input, and uses only what a user has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from data_prep.makers import build_maker
from eval.clips.classic_filters import FILTERS, Degraded, classic_filters, without_filter
from eval.clips.deconvolution import disk, gaussian, level_line, richardson_lucy, wiener
from eval.metrics import GroundTruth
from eval.metrics.picture import psnr
from eval.scoring.classic_row import ClassicRow
from iclora_train.config import Task
from tests import doses
from tests.doses import HOLE, scene

CPU = torch.device("cpu")


def task_of(maker: str, family: str = "restoration", **settings: Any) -> Task:
    return Task("task", family, maker=maker, maker_args=settings)


def blurred(clip: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.stack([cv2.filter2D(frame, -1, kernel) for frame in clip])


def best_gain(task: Task, target: np.ndarray, window: Degraded) -> float:
    """Mean PSNR of the best filter above that of the input, dB."""
    results = [psnr(f.apply(window), target).mean() for f in classic_filters(task, CPU)]
    return float(max(results) - psnr(window.clip, target).mean())


def interlaced(target: np.ndarray) -> np.ndarray:
    """The odd lines come from a later time, in which the scene has moved by 3 pixels, so that they comb."""
    woven = target.copy()
    woven[:, 1::2] = np.roll(target, -3, axis=2)[:, 1::2]
    return woven


DEGRADED = {
    "degrade.defocus": (1.0, lambda clip: blurred(clip, disk(3.0))),
    "degrade.gaussian": (1.0, lambda clip: blurred(clip, gaussian(2.0))),
    "degrade.motion": (1.0, lambda clip: blurred(clip, level_line(5.0))),
    "degrade.noise": (2.0, lambda clip: doses.noise(clip, 20)),
    "degrade.interlace": (1.0, interlaced),
}


@pytest.mark.parametrize("maker", DEGRADED)
def test_the_best_filter_is_better_than_the_input(maker: str) -> None:
    gain, degrade = DEGRADED[maker]
    target = scene(3)
    reference = degrade(target)
    task = task_of(maker, **({"length": [4.0, 6.0]} if maker == "degrade.motion" else {}))
    assert best_gain(task, target, Degraded(reference, reference, None)) > gain


def test_a_hole_is_filled_and_the_rest_stays() -> None:
    target = scene(3)
    region = np.zeros(target.shape[:3], bool)
    region[HOLE] = True
    reference = np.where(region[..., None], np.array([102, 255, 0], np.uint8), target)
    window = Degraded(reference, reference, region)
    assert best_gain(task_of("edit.hole", "edit"), target, window) > 4
    for f in classic_filters(task_of("edit.hole", "edit"), CPU):
        assert (f.apply(window)[~region] == target[~region]).all()
        assert not (f.apply(window)[region] == (102, 255, 0)).all(-1).any()


def test_a_small_reference_is_enlarged_from_its_own_pixels() -> None:
    target = doses.blur(scene(3), 1)
    stored = np.stack([cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA) for frame in target[::2]])
    clip = np.repeat(stored, 2, axis=0)[:9].repeat(2, 1).repeat(2, 2)  # an input that shows the pixels
    lanczos = classic_filters(task_of("degrade.low_resolution"), CPU)[0]
    assert lanczos.name == "Lanczos"
    window = Degraded(clip, stored, None)
    assert psnr(lanczos.apply(window), target)[::2].mean() > psnr(clip, target)[::2].mean() + 1
    assert (lanczos.apply(window.at(np.array([0, 8]))) == lanczos.apply(window)[[0, 8]]).all()


@pytest.mark.parametrize("task", [task_of("degrade.grey", "colorize"), task_of("control.canny", "structure")])
def test_a_task_that_no_filter_can_do_has_a_reason(task: Task) -> None:
    assert classic_filters(task, CPU) == ()
    assert "no filter without a model" in without_filter(task)
    assert "edit.loop" in without_filter(task_of("edit.loop", "edit"))


def test_every_degradation_of_the_project_has_its_filters() -> None:
    """A new maker is either listed, or a chain whose steps are."""
    names = {f"degrade.{name}" for name in ("defocus", "gaussian", "motion", "exposure", "noise", "shot", "grain")}
    names |= {f"degrade.{name}" for name in ("codec", "jpeg", "resize", "low_resolution", "interlace", "grey")}
    assert names <= FILTERS.keys()
    for name in names - {"degrade.low_resolution"}:
        build_maker(name, {})  # it exists
    steps = [{"maker": "degrade.noise"}, {"maker": "degrade.chain", "args": {"steps": [{"maker": "degrade.codec"}]}}]
    chained = {f.name for f in classic_filters(task_of("degrade.one_of", steps=steps), CPU)}
    assert "non-local means, h 15" in chained  # of noise
    assert "non-local means, h 4" in chained  # of codec
    assert len(classic_filters(task_of("given"), CPU)) > 3


def test_the_kernel_comes_from_the_settings_and_not_from_the_clip() -> None:
    names = {f.name for f in classic_filters(task_of("degrade.defocus", radius=[2.5, 3.0]), CPU)}
    assert {"Wiener, disk 2.5, noise 0.01", "Richardson-Lucy, disk 2.75, 30 steps"} <= names


def test_deconvolution_without_blur_changes_nothing_and_undoes_a_blur() -> None:
    target = scene(3, frames=2)
    point = np.ones((1, 1))
    assert np.abs(richardson_lucy(target, point, 5, CPU).astype(int) - target).max() <= 1
    assert np.abs(wiener(target, point, 1e-6, CPU).astype(int) - target).max() <= 1
    soft = blurred(target, gaussian(1.5))
    for restored in (richardson_lucy(soft, gaussian(1.5), 20, CPU), wiener(soft, gaussian(1.5), 0.003, CPU)):
        assert restored.dtype == np.uint8
        assert psnr(restored, target).mean() > psnr(soft, target).mean() + 1


def test_one_filter_is_chosen_for_all_windows_by_mean_psnr() -> None:
    """Two windows are noisy, ten are nearly clean: the choice follows the mean and is made once."""
    targets = [scene(i, frames=2) for i in range(12)]
    references = [doses.noise(target, 20 if i < 2 else 1) for i, target in enumerate(targets)]
    truths = SimpleNamespace(of=lambda n: GroundTruth(targets[n], targets[n], references[n]))
    held_out = SimpleNamespace(windows=range(12), pair=lambda n: SimpleNamespace(references=(references[n],)))
    row = ClassicRow(held_out, truths, task_of("degrade.noise"), CPU)
    with ThreadPoolExecutor(2) as pool:
        choice = row.choose(pool)
    assert choice.chosen is not None
    assert choice.windows == 8
    assert choice.psnr[choice.chosen.name] == max(choice.psnr.values())
    assert set(choice.psnr) == {f.name for f in row.filters}
    facts = choice.json_facts
    assert facts["filter"] == choice.chosen.name
    none = ClassicRow(held_out, truths, replace(row.task, family="colorize"), CPU)
    with ThreadPoolExecutor(2) as pool:
        facts = none.choose(pool).json_facts
    assert facts == {"filter": None, "reason": without_filter(none.task), "windows": 0, "candidates": {}}
