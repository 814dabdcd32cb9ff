"""Frames that equal their target: they count 100 dB as ever, are named, and claims that depend on them are told."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.clips.external import read_external_clip
from eval.handout import write_handout
from eval.judging.equal_frames import of_others
from eval.judging.symptoms import find_symptoms
from eval.metrics import GroundTruth
from eval.metrics.base import CachedClip
from eval.metrics.picture import PSNR, PSNR_CAP, PSNR_Y
from eval.run import evaluate
from iclora_train.media.shard_clip import encode_clip
from tests.doses import scene
from tests.eval_world import build
from tests.test_eval import SCHEMA, violations

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("group", [PSNR, PSNR_Y])
def test_the_mean_over_the_other_frames_follows_from_the_share(group: Any) -> None:
    target = scene()
    output = (target.astype(int) + 3).clip(0, 255).astype(np.uint8)
    metric, truth = group.metrics[0].key, GroundTruth(target, scene(1), target)
    others = group.measure(CachedClip(output[3:]), GroundTruth(target[3:], scene(1)[3:], target[3:])).values[metric]
    output[:3] = target[:3]
    value = group.measure(CachedClip(output), truth).values[metric]
    assert value > others + 10
    assert of_others([value, None, PSNR_CAP], [3 / len(target), 0.5, 1.0]) == [pytest.approx(others), None, None]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """scores.json of clips that are their inputs, but for two of five frames, which are copied from the targets."""
    sources = {"train": ["sea"], "heldout": ["cat", "dog", "cow", "owl", "fox"]}
    world = build(tmp_path_factory.mktemp("equal"), sources, settings=("eval.windows=10", "eval.seeds=[0]"))
    folder, outputs = world.root / "clips", world.root / "outputs"
    manifest = json.loads(write_handout(world.bare(f"videos={folder}")).read_text())
    outputs.mkdir()
    for window in manifest["windows"]:
        target, output = (
            read_external_clip(folder / window["files"][name]["file"]) for name in ("target", "reference0")
        )
        output = np.concatenate([target[:2], output[2:]])
        (outputs / window["outputs"][0]).write_bytes(encode_clip(output, 25.0))
    report = evaluate(world.bare(f"videos={outputs}"))
    result: dict[str, Any] = json.loads((Path(report).parent / "scores.json").read_text())
    return result


def outliers(scores: dict[str, Any]) -> Any:
    return next(symptom for symptom in find_symptoms(scores) if symptom["symptom"] == "outliers")


def test_equal_frames_are_recorded_and_psnr_keeps_its_definition(judged: dict[str, Any]) -> None:
    assert violations(judged, SCHEMA) == []
    assert judged["equal_frames"]["rows"] == {"adapter+reference": [pytest.approx(0.4)] * 10}
    output, before = (judged["windows"][row]["psnr"] for row in ("adapter+reference", "input"))
    frames = judged["frames"]["adapter+reference"]["psnr"]
    assert output == pytest.approx([np.mean(series) for series in frames], abs=1e-3)
    assert min(output) > max(before) + 10


def test_a_claim_that_holds_only_by_equal_frames_is_told_and_keeps_its_verdict(judged: dict[str, Any]) -> None:
    outcomes = {verdict["name"]: verdict["outcome"] for verdict in judged["verdicts"]}
    assert outcomes["gain_over_input"] == "holds"
    assert judged["equal_frames"]["changed"]["gain_over_input"] == "fails"  # the other frames are those of the input
    flag = outliers(judged)
    assert flag["level"] == "bad"
    assert "adapter+reference in 10 of 10 windows" in flag["reason"]
    assert "gain_over_input: holds, without them fails" in flag["reason"]
    assert judged["flags"] == find_symptoms(judged)


def test_equal_frames_of_inputs_matter_only_if_a_claim_depends_on_them(judged: dict[str, Any]) -> None:
    black = deepcopy(judged)
    black["equal_frames"] = {"rows": {"input": [0.2] + [0.0] * 9}, "changed": {}}
    usual = {key: value for key, value in judged.items() if key != "equal_frames"}  # of an earlier version
    assert outliers(black) == outliers(usual)
    assert outliers(usual)["level"] == "ok"
    black["equal_frames"]["changed"] = {"gain_over_classic": None}
    outcome = next(v["outcome"] for v in judged["verdicts"] if v["name"] == "gain_over_classic")
    flag = outliers(black)
    assert flag["level"] == ("bad" if outcome == "holds" else "warn")
    assert f"gain_over_classic: {outcome}, without them not measured" in flag["reason"]
