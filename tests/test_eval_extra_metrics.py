"""An evaluation with `eval.metrics`: values in scores.json and the report, paired differences, and early refusals."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from eval.clips.conditions import batches
from eval.compare import compare
from eval.judging.paired import paired_differences
from eval.metrics.extra import versions_and_weights
from eval.report import tables
from eval.run import open_source
from eval.statistics.estimates import estimate
from eval.transfer.settings import TransferConfig
from iclora_train.config import ConfigError, Eval, Weights
from iclora_train.config.extra_metrics import NEEDS
from iclora_train.core.console import make_console
from iclora_train.data.mixture import open_data
from iclora_train.training.export import plan_evaluation
from tests.command import run
from tests.eval_world import World, build, refused, scores
from tests.test_eval import SCHEMA, violations
from tests.test_extra_metrics import write_clip, write_dino, write_trunk, write_videomae

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("vmaf", "flip")  # packages that measure the tiny clips


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that was evaluated with all metrics whose package is installed."""
    world = build(tmp_path_factory.mktemp("extra"), {"train": ["sea", "road"], "heldout": ["cat", "dog", "cow"]})
    weights = {
        "lpips": write_trunk(world.root / "alexnet.pth", "AlexNet"),
        "clip": write_clip(world.root / "clip"),
        "dino": write_dino(world.root / "dino"),
        "fvd": write_videomae(world.root / "videomae"),
    }
    installed = [name for name in SMALL if importlib.util.find_spec(NEEDS[name].packages[0])]
    settings = [f"eval.weights.{name}={path}" for name, path in weights.items()]
    settings += [f"eval.metrics=[{','.join([*weights, 'warp_own', *installed])}]", "eval.seeds=[0]", "eval.windows=6"]
    result = run(world.root, "eval", *world.arguments, *settings)
    assert result.code == 0, result.err
    return world


def test_extra_metrics_are_measured_in_every_condition(evaluated: World) -> None:
    result = scores(evaluated)
    assert violations(result, SCHEMA) == []
    for name in ("lpips", "clip", "clip_text", "dino", "warp_own"):
        assert name in result["metrics"]
        for row in ("adapter+reference", "base+reference", "swapped", "input", "ceiling", "floor"):
            assert result["cells"][row][name]["n"] == 6, (row, name)
            assert np.isfinite(result["windows"][row][name]).all()
    assert result["metrics"]["lpips"] == {"title": "LPIPS (AlexNet)", "unit": "", "better": "low", "group": "learned"}
    assert "lpips" in result["strength"][-1]["metrics"]


def test_differences_are_paired_over_windows_with_intervals_over_recordings(evaluated: World) -> None:
    result = scores(evaluated)
    recordings = [clip["source"] for clip in result["clips"]]
    for other in ("input", "base+reference", "classic filter"):
        for metric in ("psnr", "ssim", "lpips", "warp_own"):
            own, compared = (result["windows"][row][metric] for row in ("adapter+reference", other))
            expected = estimate(np.subtract(own, compared), recordings)
            assert result["paired"][other][metric] == pytest.approx(expected)
    assert result["paired"]["input"]["lpips"]["low"] < result["paired"]["input"]["lpips"]["high"]


def test_a_window_without_a_value_is_left_out_of_the_difference() -> None:
    rows = {
        "adapter+reference": {"a": np.array([1, 2, np.nan]), "b": np.ones(3)},
        "input": {"a": np.array([0, 0, 5.0])},
    }
    paired = paired_differences(rows, ["x", "y", "z"])
    assert paired.keys() == {"input"}
    assert paired["input"].keys() == {"a"}
    assert paired["input"]["a"]["mean"] == 1.5
    assert paired["input"]["a"]["n"] == 2


def test_sets_of_clips_are_compared(evaluated: World) -> None:
    result = scores(evaluated)
    sets = result["sets"]
    assert sets["network"] == "VideoMAE"
    assert sets["targets"] == 6
    assert {row["fvd"]["clips"] for row in sets["rows"].values()} == {6}
    assert {"adapter+reference", "base+reference", "swapped", "input", "classic filter", "ceiling"} <= set(sets["rows"])
    own = sets["rows"]["adapter+reference"]
    for metric in ("fvd", "kvd"):
        assert own[metric]["low"] < own[metric]["mean"] < own[metric]["high"]
        for other in ("input", "base+reference"):
            difference = own[metric]["mean"] - sets["rows"][other][metric]["mean"]
            assert sets["paired"][other][metric]["mean"] == pytest.approx(difference)
    assert "fvd" not in result["metrics"]
    page = (evaluated.results / "report.html").read_text()
    assert "All outputs against all 6 targets, features of VideoMAE" in page
    assert tables.interval(own["kvd"], 1) in page


def test_the_report_shows_the_metrics_and_the_differences(evaluated: World) -> None:
    page = (evaluated.results / "report.html").read_text()
    assert "LPIPS (AlexNet)" in page
    assert "CLIP similarity to the caption" in page
    result = scores(evaluated)
    value = result["paired"]["base+reference"]["lpips"]
    assert "adapter+reference - base+reference, paired" in page
    assert tables.interval(value, 3) in page


def test_versions_and_weights_are_recorded_and_other_weights_are_not_compared(evaluated: World) -> None:
    result = scores(evaluated)
    assert {"transformers", "torchmetrics"} <= result["provenance"]["versions"].keys()
    assert result["provenance"]["weights"].keys() == {"lpips", "clip", "dino", "fvd"}
    other = deepcopy(result)
    assert {"lpips", "clip", "clip_text", "dino"} <= compare(result, other)["metrics"].keys()
    other["provenance"]["weights"] |= {"lpips": "another file", "clip": "another folder"}
    compared = compare(result, other)
    assert not {"lpips", "clip", "clip_text"} & compared["metrics"].keys()
    assert {"dino", "psnr"} <= compared["metrics"].keys()
    assert [note for note in compared["notes"] if "weights" in note] == [
        "the weights of lpips, which is left out",
        "the weights of clip, which is left out",
    ]


def test_the_hash_of_a_folder_changes_with_its_weights(tmp_path: Path) -> None:
    settings = Eval(metrics=["dino"], weights=Weights(dino=str(write_dino(tmp_path / "dino"))))
    before = versions_and_weights(settings)[1]["dino"]
    assert versions_and_weights(settings)[1]["dino"] == before
    with (tmp_path / "dino" / "model.safetensors").open("ab") as file:
        file.write(b"0")
    assert versions_and_weights(settings)[1]["dino"] != before


def test_other_metrics_sample_nothing_again(evaluated: World) -> None:
    source = open_source(evaluated.config("eval.metrics=[]", "eval.seeds=[0]", "eval.windows=6"))
    items = batches(source.held_out.windows, source.seeds, source.config.eval.batch_size)
    assert all(source.is_finished(condition, batch) for condition in source.conditions for batch in items)


def test_a_transfer_does_not_leave_a_metric_out_in_silence() -> None:
    with pytest.raises(
        ConfigError, match=r"eval\.metrics: fvd compares all clips at once, which eval\.transfer does not"
    ):
        TransferConfig(eval=Eval(metrics=["fvd"]))


def test_a_metric_that_is_not_at_hand_stops_before_anything_is_sampled(evaluated: World) -> None:
    refused(evaluated.config("eval.metrics=[dists]", "eval.label=x"), "dists needs weights: set eval.weights.dists to")
    assert not list(evaluated.root.glob("runs/*/*-x"))


def test_training_refuses_a_metric_that_its_evaluation_would_refuse(evaluated: World, tmp_path: Path) -> None:
    config = evaluated.config("eval.metrics=[dino]", f"eval.weights.dino={tmp_path / 'gone'}")
    with pytest.raises(ConfigError, match=r"eval.weights.dino=.*gone does not exist.* eval.after_training=false"):
        plan_evaluation(config, open_data(config, "latents"), make_console())
