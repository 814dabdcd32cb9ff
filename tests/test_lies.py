"""Lies that must be caught: outputs that are not what they claim to be, and the gate or the error that catches each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from eval.clips.external import read_external_clip
from eval.handout import write_handout
from eval.judging.answer import answer
from eval.judging.verdicts import tally
from eval.junit import claim_cases
from eval.run import evaluate
from eval.scores import judged
from iclora_train.media.shard_clip import encode_clip
from tests.eval_world import World, build, refused
from tests.test_eval import SCHEMA, violations

pytestmark = pytest.mark.usefixtures("one_thread")

Clip = np.ndarray
FPS = 25.0
RECORDINGS = {"train": ["sea"], "heldout": ["cat", "dog", "fox", "owl"]}  # two windows each


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Eight windows of four recordings. References are a little darker than their targets, as after mild damage."""
    world = build(tmp_path_factory.mktemp("lies"), RECORDINGS, brightness=0.875)
    world = World(world.root, [*world.overrides, "eval.windows=8", "eval.seeds=[0]"])
    write_handout(world.bare(f"videos={world.root / 'handout'}"))
    return world


def inexact(clip: Clip) -> Clip:
    """A little brighter, as no decoded clip equals its target: the 100 dB of an equal frame would hide the others."""
    return np.minimum(clip, 251) + 4


Maker = Callable[[Clip, Clip, Clip], Clip]  # target, reference and the target of another clip -> output
CAUGHT_BY_A_GATE: dict[str, Maker] = {
    "the reference as output": lambda target, reference, other: reference,
    "the target of another clip": lambda target, reference, other: other,
    "a still frame": lambda target, reference, other: inexact(np.stack([target[2]] * len(target))),
    "mirrored": lambda target, reference, other: inexact(target[:, :, ::-1]),
    "reversed": lambda target, reference, other: inexact(target[::-1]),
    "black, as after NaN": lambda target, reference, other: np.zeros_like(target),
}


def folder_of(world: World, name: str, make: Maker) -> Path:
    """A folder with an output for every window."""
    folder = world.root / name.replace(" ", "-").replace(",", "")
    folder.mkdir()
    manifest = json.loads((world.root / "handout" / "manifest.json").read_text())
    files = [window["files"] for window in manifest["windows"]]
    targets, references = (
        [read_external_clip(world.root / "handout" / file[kind]["file"]) for file in files]
        for kind in ("target", "reference0")
    )
    for i, window in enumerate(manifest["windows"]):
        output = make(targets[i], references[i], targets[(i + 2) % len(targets)])  # two windows on: another recording
        (folder / f"{window['key']}.mp4").write_bytes(encode_clip(np.ascontiguousarray(output), FPS))
    return folder


def scaled_adapter(world: World, name: str, scale: float) -> Path:
    """The world's adapter with lora_B times `scale`, written without the checks of this project."""
    path = world.root / f"{name}.safetensors"
    with safe_open(world.adapter, "pt") as file:
        tensors = {key: file.get_tensor(key) * (scale if "lora_B" in key else 1) for key in sorted(file.keys())}
        save_file(tensors, path, file.metadata())
    return path


def evaluated(world: World, *more: str) -> dict[str, Any]:
    """scores.json of an evaluation."""
    report = evaluate(world.bare(*more))
    result: dict[str, Any] = json.loads((report.parent / "scores.json").read_text())
    return result


def outcomes(result: dict[str, Any]) -> dict[str, str]:
    return {verdict["name"]: verdict["outcome"] for verdict in result["verdicts"]}


def test_a_good_output_passes_the_gate_that_catches_the_lies(world: World) -> None:
    """The targets, slightly inexact. Gates without values keep the evaluation inconclusive."""
    good = folder_of(world, "good", lambda target, reference, other: inexact(target))
    result = evaluated(world, f"videos={good}")
    assert outcomes(result) == {"gain_over_input": "holds", "gain_over_classic": "holds"}
    assert result["gates"] == {"outcome": "inconclusive", "not_measured": ["gain_over_base", "swap_drop"]}


@pytest.mark.parametrize("lie", CAUGHT_BY_A_GATE)
def test_a_lie_fails_a_gate(world: World, lie: str) -> None:
    result = evaluated(world, f"videos={folder_of(world, lie, CAUGHT_BY_A_GATE[lie])}")
    assert outcomes(result) == {"gain_over_input": "fails", "gain_over_classic": "fails"}
    assert result["gates"]["outcome"] == "fails"
    assert tally(result).startswith("2 of 4 gates fail (gain_over_input, gain_over_classic)")


def test_one_exchanged_file_is_named_with_the_clip_that_it_shows(world: World) -> None:
    """The targets, of which the first is that of another recording."""
    outputs = iter(range(8))

    def first_is_another(target: Clip, reference: Clip, other: Clip) -> Clip:
        return inexact(other if next(outputs) == 0 else target)

    result = evaluated(world, f"videos={folder_of(world, 'one exchanged', first_is_another)}")
    clips = [clip["key"] for clip in result["clips"]]
    flags = {flag["symptom"]: flag for flag in result["flags"]}
    assert flags["exchanged clips"]["level"] == "bad"
    assert f"{clips[0]} like {clips[2]}" in flags["exchanged clips"]["reason"]
    assert clips[0] in flags["outliers"]["reason"]
    assert min(np.array(result["likeness"]["own"])[1:]) > 0.9
    assert violations(result, SCHEMA) == []


def test_exchanged_channels_are_wrong_colours(world: World) -> None:
    swapped = folder_of(world, "BGR", lambda target, reference, other: inexact(target[..., ::-1]))
    result = evaluated(world, f"videos={swapped}")
    assert {flag["symptom"]: flag["level"] for flag in result["flags"]}["wrong colours"] == "bad"


def test_a_still_frame_is_flagged_where_the_gate_cannot_see_it(world: World) -> None:
    """In clips that hardly move, a still frame is close to the target; its lack of motion shows in the symptoms."""
    still = folder_of(world, "still", lambda target, reference, other: np.stack([target[2]] * len(target)))
    result = evaluated(world, f"videos={still}")  # a frame that equals the target hides the others in the PSNR
    assert outcomes(result) == {"gain_over_input": "holds", "gain_over_classic": "holds"}
    assert {flag["symptom"]: flag["level"] for flag in result["flags"]}["frozen"] == "bad"
    assert re.search("its clips have bad symptoms: .*frozen", answer(result))
    assert {case.name: case.state for case in claim_cases(result)}["symptom frozen"] == "failed"


def test_a_target_shifted_by_a_frame_is_refused(world: World) -> None:
    shifted = folder_of(world, "shifted", lambda target, reference, other: np.roll(target, 1, axis=0))
    refused(world.bare(f"videos={shifted}"), "8 of 8 clips are shifted in time")


def test_an_adapter_of_zeros_fails_the_gates_and_the_file_gives_every_verdict_again(world: World) -> None:
    """It changes nothing, so its gain over the base is exactly 0. Verdicts follow from scores.json alone."""
    result = evaluated(world, f"adapter={scaled_adapter(world, 'zero', 0.0)}")
    caught = next(verdict for verdict in result["verdicts"] if verdict["name"] == "gain_over_base")
    assert caught["value"] == {"mean": 0, "low": 0, "high": 0, "n": 8}
    assert (caught["outcome"], caught["passed"]) == ("fails", False)
    assert result["gates"]["outcome"] == "fails"
    assert "fail (gain_over_input, gain_over_classic, gain_over_base" in tally(result)
    recorded = {key: result[key] for key in ("family", "adherence", "clips", "metrics", "windows", "per_window")}
    recorded["thresholds"] = result["thresholds"]
    again = judged(recorded, result["mask"]["band_pixels"], result["mask"]["band_frames"])
    assert len(again["verdicts"]) == 10
    assert json.loads(json.dumps(again)) == {key: result[key] for key in again}


def test_seeds_average_to_their_window(world: World) -> None:
    result = evaluated(world, "adapter=none", "eval.seeds=[0,1]", "eval.strengths=[1.0,0.0]")
    seeds = np.array(result["per_window"]["seeds"]["swapped"]["psnr"])  # (windows, seeds)
    assert seeds.shape == (8, 2)
    assert seeds.mean(1) == pytest.approx(np.array(result["windows"]["swapped"]["psnr"]), abs=1e-5)
    assert (seeds[:, 0] != seeds[:, 1]).all()


def test_an_adapter_with_nan_is_refused(world: World) -> None:
    """NaN in the file, and weights so large that sampling gives NaN."""
    refused(
        world.bare(f"adapter={scaled_adapter(world, 'nan', float('nan'))}"), "nan.safetensors: .* holds NaN or infinity"
    )
    large = scaled_adapter(world, "large", 1e37)
    refused(world.bare(f"adapter={large}"), "large.safetensors .* a sampled clip contains NaN or infinity")
