"""eval.transfer: each choice is sampled as it says, compared in pairs, stored, and every sentence is judged."""

from __future__ import annotations

import json
import re
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from eval.clips.conditions import at_strength
from eval.clips.resized import ResizedHeldOut
from eval.clips.sampled import SampledClips
from eval.clips.sampling_ranks import SamplingRank
from eval.clips.two_stages import TwoStageClips
from eval.judging.claims import Bound
from eval.transfer.comparison import costs, judged
from eval.transfer.measure import Measurements, sample_for_first
from eval.transfer.run import results_folder, transfer
from eval.transfer.sentences import Evidence, Line, lines
from eval.transfer.settings import Transfer, TransferConfig
from eval.transfer.variants import REFERENCE, Variant, variants
from iclora_train.adapters import lora
from iclora_train.adapters.metadata import KIND, PLAIN
from iclora_train.config import ConfigError, to_config
from iclora_train.config.hydra_app import conf_dir
from iclora_train.core.types import Geometry
from iclora_train.diffusion.noise_schedule import DISTILLED_STAGE2
from iclora_train.diffusion.sampler import SamplerSettings, sample
from iclora_train.ltx2.base_model import BaseModel
from scripts.synthetic.upsampler import write_upsampler
from tests.command import run, start
from tests.eval_world import World, build, write_adapter
from tests.scores_example import example
from tests.test_eval import violations
from tests.tiny import CHANNELS

SCHEMA = json.loads((Path(__file__).parent.parent / "eval" / "transfer" / "transfer.schema.json").read_text())
GEOMETRY = Geometry(8, 8, 4)
SIZE = (9, 64, 64)
SECOND_OF_TWO = {  # variables of a launcher
    **{"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},
}


def settings(*overrides: str) -> TransferConfig:
    ConfigStore.instance().store(name="schema", node=TransferConfig)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = to_config(compose("transfer", list(overrides)))
    assert isinstance(config, TransferConfig)
    return config


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with an effect LoRA and an upsampler."""
    world = build(tmp_path_factory.mktemp("transfer"), task="colorize")
    write_adapter(world.root / "effect.safetensors", BaseModel.open(str(world.root / "base")), **{KIND: PLAIN})
    small = {"in_channels": CHANNELS, "mid_channels": 32, "num_blocks_per_stage": 1}
    write_upsampler(world.root / "upsampler.safetensors", **small)
    return world


def arguments(world: World, *more: str) -> list[str]:
    root = world.root
    chosen = ["steps=[2,3]", "effect_strengths=[0.5]", "adapter_strengths=[0.5]", "sizes=[0.5]", "precisions=[fp8]"]
    files = [f"transfer.{name}={root / name}.safetensors" for name in ("effect", "upsampler")]
    return [
        *world.arguments,
        "eval.seeds=[0]",
        "eval.metrics=[warp_own]",
        *files,
        *(f"transfer.{text}" for text in chosen),
        *more,
    ]


@pytest.fixture(scope="module")
def finished(world: World) -> World:
    """The world after all choices were measured."""
    assert transfer(settings(*arguments(world))) == []
    return world


def record(world: World) -> dict[str, Any]:
    folder = results_folder(settings(*arguments(world)))
    result: dict[str, Any] = json.loads((folder / "transfer.json").read_text())
    return result


def by_name(result: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in result["choices"]}


def chosen(*overrides: str, task: str = "colorize") -> dict[str, Variant]:
    return {v.name: v for v in variants(settings(f"conf={task}", *overrides), SIZE, GEOMETRY)}


def test_every_choice_differs_in_one_thing_or_says_why_it_is_impossible(tmp_path: Path) -> None:
    found = chosen("sample.steps=2", "model.precision=fp32", "transfer.sizes=[0.5,0.7,96x64,48x48x5,60x64,32x32]")
    assert found["dev"].sample.schedule == "dev"
    assert found["dev"].sample.steps == 2
    assert (found["distilled"].sample.schedule, found["distilled"].sample.steps) == ("distilled", 8)
    assert found["two stages"].obstacle.startswith("it needs transfer.upsampler=<file>")
    assert found["32x32x9"].size == (9, 32, 32), "listed once, although named twice"
    assert found["40x40x9"].size == (9, 40, 40), "0.7 of 64 is 45, rounded to a multiple of 8"
    assert found["48x48x5"].size == (5, 48, 48)
    assert found["96x64x9"].obstacle.startswith("the windows have 64x64x9: prepare larger ones")
    assert found["60x64x9"].obstacle == "width 60 is not a multiple of 8"
    assert found["50 steps"].sample.steps == 50
    assert found["fp8"].precision == "fp8"
    assert found["adapter 1"].obstacle == f"the same as the {REFERENCE}"
    assert found["effect LoRA"].obstacle.startswith("it needs transfer.effect=<file>")
    effect = tmp_path / "effect.safetensors"
    effect.touch()
    beside = chosen(f"transfer.effect={effect}", "transfer.effect_strengths=[0.5,0.8]")
    assert len([v for v in beside.values() if v.axis == "effect"]) == 6
    assert beside["effect 0.8, adapter 0.75"].adapter_strength == 0.75


def test_choices_of_a_distilled_run_and_of_pairs_with_positions() -> None:
    found = chosen("sample.schedule=distilled", "sample.steps=8")
    assert found["40 steps"].obstacle == "the distilled schedule has 8 steps"
    assert "start from a dev checkpoint" in found["dev"].obstacle
    assert found["distilled"].obstacle == f"the same as the {REFERENCE}"
    placed = chosen("transfer.sizes=[0.5,64x64x5]", task="motion_tracks")
    for size in ("32x32x9", "64x64x5"):
        message = f"pairs of control.tracks hold for the prepared size: prepare windows of {size}"
        assert placed[size].obstacle == message


@pytest.mark.parametrize(
    ("task", "changed"),
    [
        ("deblur", "degrade.defocus"),
        ("canny", "control.canny"),
        ("decompress", "degrade.codec"),
        ("denoise", "degrade.shot, degrade.noise, degrade.grain"),
        ("deinterlace", "degrade.interlace"),
        ("colorize", ""),
        ("day_to_night", ""),
    ],
)
def test_a_smaller_size_is_refused_where_averaging_changes_the_references(task: str, changed: str) -> None:
    found = chosen("transfer.sizes=[0.5,64x64x5]", task=task)
    message = f"averaging down changes the references of {changed}: prepare windows of 32x32x9"
    assert found["32x32x9"].obstacle == (message if changed else "")
    assert found["64x64x5"].obstacle == "", "fewer frames leave each picture as it is"


def test_the_parts_of_a_union_and_of_inner_chains_decide_about_sizes() -> None:
    union = chosen(task="union")["32x32x9"].obstacle
    assert union == "pairs of control.pose hold for the prepared size: prepare windows of 32x32x9"
    grey = "+task.maker_args={steps: [{maker: degrade.chain, args: {steps: [{maker: degrade.grey}]}}]}"
    inner = chosen("task.maker=degrade.chain", grey)
    assert inner["32x32x9"].obstacle == ""


def test_wrong_settings_name_the_key() -> None:
    for key, value in (
        ("schedules", ["fast"]),
        ("sizes", ["1.5"]),
        ("sizes", ["64"]),
        ("steps", [0]),
        ("precisions", ["int8"]),
        ("adapter_strengths", [0.0]),
        ("attention_strengths", [1.5]),
        ("tolerance", 0.0),
        ("required", ["speed"]),
    ):
        with pytest.raises(ConfigError, match=f"transfer.{key}="):
            Transfer(**{key: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"eval\.sequential=true is for eval"):
        settings("conf=deblur", "eval.sequential=true")
    with pytest.raises(ConfigError, match=r"transfer\.effect=none\.safetensors does not exist"):
        chosen("transfer.effect=none.safetensors")


def test_every_choice_has_a_cost_or_a_reason(finished: World) -> None:
    result = record(finished)
    assert violations(result, SCHEMA) == []
    assert violations({**result, "extra": 1}, SCHEMA) == ["$.extra: unknown"]
    rows = by_name(result)
    measured = {name for name, row in rows.items() if row["cost"] is not None}
    assert measured == {
        *(REFERENCE, "dev", "distilled", "two stages", "16x16x5", "3 steps", "fp8", "adapter 0.5"),
        *("effect 0.5, adapter 0.5", "attention 0.5", "attention 0"),
    }
    assert all(bool(row["obstacle"]) == (row["cost"] is None) for row in rows.values())
    assert (rows["two stages"]["passes"], rows["two stages"]["token_passes"]) == (8 + 3, 8 / 4 + 3)
    assert (rows["16x16x5"]["passes"], rows["16x16x5"]["token_passes"]) == (2, 0.5)
    gates = [row["gates"]["each"].keys() for row in rows.values() if row["gates"]]
    assert all(names >= {"chroma_over_base", "swap_drop"} for names in gates)
    assert "warp_own" in rows["fp8"]["cost"]["differences"], "a metric of eval.metrics"
    assert {line["sentence"] for line in result["sentences"]} == {
        *("less than 10 % compute", "0.5: balanced blend", "40-50 instead of 30 steps"),
        *("works with FP8", "compatible with distilled models"),
    }


def test_differences_are_paired_within_windows(finished: World) -> None:
    rows = by_name(record(finished))
    measurements = Measurements(settings(*arguments(finished)), results_folder(settings(*arguments(finished))))
    found = {v.name: v for v in variants(measurements.config, measurements.size, measurements.base.geometry)}
    psnr = {}
    for name in (REFERENCE, "3 steps"):
        scores = measurements.finished(found[name])
        assert scores is not None
        psnr[name] = np.array(scores["windows"]["adapter+reference"]["psnr"])
    expected = float((psnr["3 steps"] - psnr[REFERENCE]).reshape(2, 2).mean(1).mean())  # two windows a recording
    assert rows["3 steps"]["cost"]["differences"]["psnr"]["difference"]["mean"] == pytest.approx(expected)


def test_the_control_is_compared_in_pairs(finished: World) -> None:
    rows = by_name(record(finished))
    for name in ("3 steps", "fp8", "16x16x5"):
        cost, own = rows[name]["cost"], rows[REFERENCE]["cost"]
        expected = cost["control"]["mean"] - own["control"]["mean"]
        assert cost["control_change"]["mean"] == pytest.approx(expected, abs=1e-9)
        assert cost["control_change"]["n"] == 4
    assert rows[REFERENCE]["cost"]["control_change"]["mean"] == 0
    assert rows["attention 0.5"]["cost"]["control_change"] is None, "without swapped references"


def test_the_page_has_every_sentence_and_runs_nothing(finished: World) -> None:
    page = (results_folder(settings(*arguments(finished))) / "transfer.html").read_text()
    for line in record(finished)["sentences"]:
        assert line["sentence"] in page
    assert "<script" not in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "effect 0.5, adapter 0.5" in page


def test_finished_choices_are_not_sampled_again(finished: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: list[str] = []
    make = Measurements.measure

    def measure(self: Measurements, variant: Variant, *more: Any) -> Any:
        sampled.append(variant.name)
        return make(self, variant, *more)

    monkeypatch.setattr(Measurements, "measure", measure)
    before = record(finished)
    transfer(settings(*arguments(finished)))
    assert sampled == []
    assert record(finished) == before
    transfer(settings(*arguments(finished, "transfer.steps=[2,3,4]", "eval.label=more", "transfer.gates=false")))
    assert "4 steps" in sampled, "another folder has its own results"
    sampled.clear()
    transfer(settings(*arguments(finished, "transfer.steps=[3,4]")))
    assert sampled == ["4 steps"]


def test_the_command_says_what_it_costs_first_and_how_it_ended(world: World) -> None:
    none = [f"transfer.{axis}=[]" for axis in ("schedules", "sizes", "adapter_strengths", "precisions")]
    command = [*world.arguments, "eval.seeds=[0]", "eval.label=cli", *none, "transfer.steps=[3]"]
    first = run(world.root, "eval.transfer", *command)
    assert first.code == 0, first.err
    lines = first.out.splitlines()
    cost = next(i for i, line in enumerate(lines) if line.startswith("32 clips to sample in at most about"))
    assert lines[cost + 1] == f"1 of 2: {REFERENCE}"
    assert "2 of 2: 3 steps" in lines
    assert any(line.startswith("not measured here  works with FP8 (fp8)") for line in lines)
    assert lines[-1].endswith("transfer.html")
    again = run(world.root, "eval.transfer", *command, "transfer.required=[fp8]")
    assert (again.code, "clips to sample" in again.out) == (1, False)
    wrong = run(world.root, "eval.transfer", *command, "transfer.required=[speed]")
    assert (wrong.code, "transfer.required='speed' is not one of compute" in wrong.err) == (2, True)


@pytest.fixture(scope="module")
def few(world: World) -> list[str]:
    """Settings with a choice of each kind of loaded weights, and one that shows only when it is sampled that it is
    impossible."""
    weights = {"transformer_blocks.0.attn1.to_q": (torch.randn(2, 40), torch.randn(40, 2))}
    wide = world.root / "wide.safetensors"
    lora.save(wide, lora.Adapter(weights, {KIND: PLAIN, "reference_downscale_factor": "1"}))
    more = ["schedules=[]", "steps=[3]", f"effect={wide}", "gates=false", "attention_strengths=[]"]
    return [f"transfer.{text}" for text in more]


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """transfer.json without what differs between runs: times, the command, paths, and the sentence about times."""
    keys = ("choices", "sentences", "adapter", "provenance")
    rest = {key: value for key, value in result.items() if key not in keys}
    choices = [{**row, "seconds_per_clip": None, "settings": None} for row in result["choices"]]
    return {**rest, "choices": choices, "sentences": [x for x in result["sentences"] if x["name"] != "compute"]}


def test_two_processes_measure_what_one_measures(world: World, few: list[str], tmp_path: Path) -> None:
    alone = settings(*arguments(world, *few, "eval.label=alone"))
    transfer(alone)
    mine = arguments(world, *few, f"runs_dir={tmp_path / 'runs'}", "eval.devices=2")
    second = start(tmp_path, "eval.transfer", *mine, variables=SECOND_OF_TWO, suffix="1")
    while second.is_alive() and not list(tmp_path.rglob("eval-cells/*.safetensors")):
        time.sleep(0.01)  # so that it has sampled some clips, however slow the machine is
    spread = run(tmp_path, "eval.transfer", *mine)
    second.join(120)
    assert (spread.code, spread.err, second.exitcode) == (0, "", 0)
    assert (tmp_path / "out1.txt").read_text() == ""
    assert "2 processes sample" in spread.out
    assert re.search("clips to sample by 2 processes in at most", spread.out)
    folders = results_folder(alone), results_folder(settings(*mine))
    results = [json.loads((folder / "transfer.json").read_text()) for folder in folders]
    assert without_times(results[0]) == without_times(results[1])
    of_each = [{path.name: path for path in (folder / "choices").iterdir()} for folder in folders]
    assert of_each[0].keys() == of_each[1].keys()
    for name in of_each[0]:
        first, second = (json.loads(paths[name].read_text()) for paths in of_each)
        assert all(
            first[key] == second[key] for key in ("windows", "per_window", "cells", "verdicts", "gates", "clips")
        )
    assert not list(tmp_path.rglob("eval-cells/*.lock"))


def test_another_process_samples_the_clips_of_all_choices_that_are_possible(
    world: World, few: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(*arguments(world, *few, f"runs_dir={tmp_path / 'runs'}"))
    measurements = Measurements(config, results_folder(config))
    possible = variants(config, measurements.size, measurements.base.geometry)
    sample_for_first(measurements, possible, SamplingRank(1, 2))
    assert not (results_folder(config) / "choices").exists(), "the first process measures and writes"
    sampled: list[str] = []
    monkeypatch.setattr(SampledClips, "_make", lambda self, condition, batch: sampled.append(condition.name))
    transfer(config)
    assert sampled == []
    rows = by_name(json.loads((results_folder(config) / "transfer.json").read_text()))
    assert "wide.safetensors" in rows["effect 0.5, adapter 0.5"]["obstacle"]
    assert {name for name, row in rows.items() if row["cost"] is not None} >= {"fp8", "16x16x5", "adapter 0.5"}


def test_an_adapter_must_exist_and_the_label_names_the_folder(world: World) -> None:
    for more, message in (
        ("adapter=none", "adapter=none has nothing to transfer"),
        ("adapter=missing.safetensors", "adapter=missing.safetensors does not exist: train it first"),
        ("videos=clips", "videos= has no adapter to sample"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            transfer(settings(*arguments(world, more)))
    labelled = results_folder(settings(*arguments(world, "eval.label='seeds=[0]'")))
    assert labelled.name.endswith("-seeds=-0")


def test_a_required_sentence_that_does_not_hold_is_returned(finished: World) -> None:
    assert transfer(settings(*arguments(finished, "transfer.required=[fp8,compute]"))) == ["compute", "fp8"]


def test_an_effect_that_does_not_fit_is_listed_and_the_rest_is_measured(world: World, tmp_path: Path) -> None:
    weights = {"transformer_blocks.0.attn1.to_q": (torch.randn(2, 40), torch.randn(40, 2))}
    lora.save(tmp_path / "wide.safetensors", lora.Adapter(weights, {KIND: PLAIN, "reference_downscale_factor": "1"}))
    more = [
        "transfer.schedules=[]",
        "transfer.sizes=[]",
        "transfer.steps=[]",
        "eval.label=wide",
        "transfer.gates=false",
    ]
    config = settings(*arguments(world, *more, f"transfer.effect={tmp_path / 'wide.safetensors'}"))
    transfer(config)
    rows = by_name(json.loads((results_folder(config) / "transfer.json").read_text()))
    assert "wide.safetensors" in rows["effect 0.5, adapter 0.5"]["obstacle"]
    assert rows["fp8"]["cost"] is not None


@pytest.fixture(scope="module")
def measurements(finished: World) -> Measurements:
    return Measurements(settings(*arguments(finished)), results_folder(settings(*arguments(finished))))


def latents(measurements: Measurements, name: str) -> torch.Tensor:
    """The latents of the first batch under a choice, sampled now."""
    found = {v.name: v for v in variants(measurements.config, measurements.size, measurements.base.geometry)}
    source = measurements.source(found[name])
    return source._sample(at_strength(1), measurements.batches()[0], source.sampler).video


def test_adapter_and_effect_are_added_at_their_strengths(measurements: Measurements, finished: World) -> None:
    sampled = latents(measurements, "effect 0.5, adapter 0.5")
    own, effect = (lora.read(finished.root / name) for name in ("adapter.safetensors", "effect.safetensors"))
    both = {
        name: (torch.cat([a, effect.weights[name][0]]), 0.5 * torch.cat([b, effect.weights[name][1]], dim=1))
        for name, (a, b) in own.weights.items()
    }
    source = measurements.source(next(iter(variants(measurements.config, measurements.size, GEOMETRY))))
    transformer = measurements.base.transformer().eval()
    lora.load_adapter(transformer, lora.Adapter(both, own.metadata))
    source.transformer = transformer
    expected = source._sample(at_strength(1), measurements.batches()[0], source.sampler).video
    assert torch.allclose(sampled, expected, atol=1e-4)
    measurements._loaded = None  # its transformer was exchanged
    assert not torch.allclose(sampled, latents(measurements, "adapter 0.5"), atol=1e-2)


def test_windows_of_another_size_do_not_keep_the_vae_of_an_earlier_model(measurements: Measurements) -> None:
    known = {v.name: v for v in variants(measurements.config, measurements.size, GEOMETRY)}
    smaller = measurements.source(known["16x16x5"]).held_out
    assert measurements.source(known["3 steps"]).held_out is measurements.held_out
    assert measurements.source(known["16x16x5"]).held_out is smaller, "encoded once for each loaded model"
    measurements.source(known["adapter 0.5"])
    assert list(measurements._resized.values()) == [measurements.held_out]


def test_two_stages_refine_the_enlarged_first_stage(measurements: Measurements) -> None:
    sampled = latents(measurements, "two stages")
    assert measurements._loaded is not None
    source, batch = measurements._loaded[1], measurements.batches()[0]
    assert isinstance(source, TwoStageClips)
    pairs = [source.half.latents(item.window) for item in batch]
    text, fps = torch.stack([pair.text for pair in pairs]), torch.tensor([pair.fps for pair in pairs])
    seeds = [item.noise_seed for item in batch]
    references = source._references(at_strength(1), batch, source.half)
    assert references[0].latent.shape[-2:] == (2, 2)
    first = sample(source.transformer, text, (2, 2, 2), GEOMETRY, fps, source.sampler, seeds, references)
    refine = SamplerSettings(DISTILLED_STAGE2)
    expected = sample(source.transformer, text, (2, 4, 4), GEOMETRY, fps, refine, seeds, start=source.upsampler(first))
    assert torch.allclose(sampled, expected, atol=1e-5)


def test_windows_of_another_size_are_the_same_windows(measurements: Measurements) -> None:
    original = measurements.held_out
    window = original.windows[0]
    half = ResizedHeldOut(original, (5, 16, 24), measurements.config.task, measurements.base.vae())
    assert half.pair(window).target.shape == (5, 16, 24, 3)
    assert half.latents(window).target.shape == half.latents(window).references[0].shape == (CHANNELS, 2, 2, 3)
    assert torch.equal(half.latents(window).text, original.latents(window).text)
    assert half.fingerprint["pairs"] == original.fingerprint["pairs"]
    assert half.fingerprint["latents"] != original.fingerprint["latents"]
    same = ResizedHeldOut(original, measurements.size, measurements.config.task, measurements.base.vae())
    assert np.array_equal(same.pair(window).target, original.pair(window).target)
    assert torch.allclose(same.latents(window).target, original.latents(window).target.float(), atol=1e-2)


def test_fp8_clips_are_not_those_of_another_precision(measurements: Measurements) -> None:
    specifications = []
    for variant in variants(measurements.config, measurements.size, GEOMETRY):
        if not variant.obstacle and variant.axis in ("reference", "precision", "adapter strength", "effect"):
            source = measurements.source(variant)
            assert isinstance(source, SampledClips)
            specifications.append(source.specification(at_strength(1), measurements.batches()[0]))
    texts = {json.dumps(specification, sort_keys=True) for specification in specifications}
    assert len(texts) == len(specifications) == 4


def evidence(choices: dict[str, dict[str, Any]], variants_: list[Variant], **more: Any) -> dict[str, Line]:
    known = {"reference_tokens": 1.0, "distilled": variants_[0].checkpoint, "tolerance": 0.1, **more}
    return {line["name"]: line for line in lines(Evidence(scores=choices, variants=variants_, **known))}


def shifted(scores: dict[str, Any], db: float, spread: float = 0.0) -> dict[str, Any]:
    """The scores with another PSNR of adapter + reference."""
    changed = deepcopy(scores)
    values = np.array(scores["windows"]["adapter+reference"]["psnr"])
    noise = np.random.default_rng(0).normal(0, spread, len(values))
    changed["windows"]["adapter+reference"]["psnr"] = (values + db + noise).tolist()
    return changed


def plain_scores() -> dict[str, Any]:
    return {**example(), "per_window": {"conditions": {}}}


def own_scores(half: float) -> dict[str, Any]:
    """Scores whose reference has the share `half` of its effect at attention strength 0.5, and a step that takes 1.05
    times as long with it."""
    scores = plain_scores()
    psnr = np.array(scores["windows"]["adapter+reference"]["psnr"])
    scores["per_window"]["conditions"]["strength 0"] = {"psnr": (psnr - 10).tolist()}
    scores["per_window"]["conditions"]["strength 0.5"] = {"psnr": (psnr - 10 * (1 - half)).tolist()}
    scores["timings"]["step_seconds"] = [[1.05 + 0.001 * i, 1.0] for i in range(10)]
    return scores


@pytest.fixture(scope="module")
def choices() -> list[Variant]:
    return variants(
        settings("conf=deblur", "sample.schedule=dev", "sample.steps=20", "model.precision=bf16"), SIZE, GEOMETRY
    )


def test_sentences_that_are_true_hold(choices: list[Variant]) -> None:
    own = own_scores(half=0.5)
    scores = {REFERENCE: own, "fp8": shifted(own, -0.2, 0.1), "30 steps": own, "40 steps": shifted(own, 0.5, 0.1)}
    found = evidence(scores, choices)
    held = [name for name, line in found.items() if line["outcome"] == "holds"]
    assert held == ["compute", "blend", "steps_control", "fp8"]
    assert found["compute"]["value"]["mean"] == pytest.approx(0.0545)  # type: ignore[index]
    assert found["steps_picture"]["outcome"] == "fails", "SSIM is the same, so it is not better"
    assert found["distilled"]["outcome"] == "not measured here"


def test_sentences_that_are_false_fail(choices: list[Variant]) -> None:
    own = own_scores(half=0.9)
    own["timings"]["step_seconds"] = [[1.8 + 0.01 * i, 1.0] for i in range(10)]
    distilled = deepcopy(own)
    distilled["gates"] = {"outcome": "fails", "not_measured": []}
    scores = {REFERENCE: own, "fp8": shifted(own, -3, 0.1), "30 steps": own, "50 steps": shifted(own, -0.5, 0.1)}
    found = evidence({**scores, "distilled": distilled}, choices)
    failed = [name for name, line in found.items() if line["outcome"] == "fails"]
    assert failed == ["compute", "blend", "steps_control", "steps_picture", "fp8", "distilled"]
    on_another_base = evidence({**scores, "distilled": distilled}, choices, distilled=None)["distilled"]
    assert on_another_base["outcome"] == "not measured here"
    assert "only its noise levels were sampled" in on_another_base["note"]


def test_the_distilled_sentence_is_about_the_distilled_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "short.safetensors"
    checkpoint.touch()
    run = ("sample.schedule=distilled", "sample.steps=8")
    two_models = list(chosen(*run, f"transfer.distilled={checkpoint}").values())
    own, other = own_scores(half=0.5), plain_scores()
    own["gates"], other["gates"] = ({"outcome": outcome, "not_measured": []} for outcome in ("holds", "fails"))
    given = {"distilled": str(checkpoint)}
    assert evidence({REFERENCE: own, "distilled": other}, two_models, **given)["distilled"]["outcome"] == "fails"
    refused = [replace(v, obstacle="another VAE") if v.name == "distilled" else v for v in two_models]
    line = evidence({REFERENCE: own}, refused, **given)["distilled"]
    assert (line["outcome"], line["note"]) == ("not measured here", "another VAE")
    one_model = list(chosen(*run).values())
    assert evidence({REFERENCE: own}, one_model)["distilled"]["outcome"] == "holds"
    unused = list(chosen(*run, f"transfer.distilled={checkpoint}", "transfer.schedules=[]").values())
    assert evidence({REFERENCE: own}, unused, **given)["distilled"]["outcome"] == "not measured here"


def test_gates_that_were_not_measured_leave_the_distilled_sentence_open(choices: list[Variant]) -> None:
    own, distilled = own_scores(half=0.5), plain_scores()
    distilled["gates"] = {"outcome": "inconclusive", "not_measured": ["gain_over_base", "swap_drop"]}
    distilled["windows"] = {"adapter+reference": own["windows"]["adapter+reference"]}
    line = evidence({REFERENCE: own, "distilled": distilled}, choices)["distilled"]
    assert line["outcome"] == "not measured here"
    unmeasured = "gates that were not measured: gain_over_base, swap_drop (transfer.gates=false)"
    assert line["note"].startswith(unmeasured)


def test_a_metric_that_was_measured_on_no_window_stops_nothing(choices: list[Variant]) -> None:
    own = own_scores(half=0.5)
    empty, absent = deepcopy(own), deepcopy(own)
    for rows in (*empty["windows"].values(), *empty["per_window"]["conditions"].values()):
        rows["psnr"] = [np.nan] * len(rows["psnr"])
    del absent["windows"]["adapter+reference"]["psnr"]
    for reference, other in ((own, empty), (own, absent), (empty, empty), (empty, own), (absent, own)):
        cost = costs(reference, {REFERENCE: reference, "fp8": other}, 0.1, ["fp8"])["fp8"]
        assert (cost["value"] is None) == (other is not own)
        assert (cost["kept"], cost["outcome"]) == (None, "not decided")
        steps = {f"{n} steps": other for n in (30, 40)}
        found = evidence({REFERENCE: reference, "fp8": other, "adapter 0.5": other, **steps}, choices)
        assert found["compute"]["outcome"] == "holds"
        assert found["fp8"]["outcome"] == "not measured here"
        assert (found["steps_control"]["outcome"] == "not measured here") == (other is not own)
        assert (found["blend"]["outcome"] == "not measured here") == (reference is not own)


def test_few_windows_decide_nothing_and_without_a_gain_nothing_is_kept() -> None:
    values = np.full(7, 0.5) + np.linspace(0, 1e-3, 7)
    assert judged(values, [f"tape {i}" for i in range(7)], Bound(0.25, 0.75))[0] == "inconclusive"
    assert judged(np.append(values, 0.5), [f"tape {i}" for i in range(8)], Bound(0.25, 0.75))[0] == "holds"
    own = plain_scores()
    own["windows"]["base+reference"] = own["windows"]["adapter+reference"]
    cost = costs(own, {"same": own}, 0.1)["same"]
    assert (cost["kept"], cost["p"], cost["outcome"]) == (None, None, "not decided")


def test_a_choice_is_equivalent_worse_or_better() -> None:
    own = plain_scores()
    found = costs(
        own, {"close": shifted(own, -0.2, 0.1), "low": shifted(own, -4, 0.5), "high": shifted(own, 4, 0.5)}, 0.1
    )
    assert [cost["outcome"] for cost in found.values()] == ["equivalent", "worse", "better"]
    assert found["low"]["kept"]["mean"] == pytest.approx(1 - 4 / 9, abs=0.05)  # type: ignore[index]
    smaller = shifted(own, -6)
    smaller["windows"]["base+reference"]["psnr"] = [x - 6 for x in own["windows"]["base+reference"]["psnr"]]
    assert costs(own, {"smaller": smaller}, 0.1)["smaller"]["outcome"] == "worse"
    assert costs(own, {"smaller": smaller}, 0.1, ["smaller"])["smaller"]["outcome"] == "equivalent"
    lower = deepcopy(own)
    lower["primary"] = "flicker"
    worse = deepcopy(lower)
    worse["windows"]["adapter+reference"]["flicker"] = [x + 2 for x in own["windows"]["adapter+reference"]["flicker"]]
    assert costs(lower, {"flickers": worse}, 0.1)["flickers"]["outcome"] == "worse"


def test_the_kinds_of_a_variant_share_a_model_only_with_equal_weights() -> None:
    found = chosen("sample.steps=2", "model.precision=fp32")
    assert found["32x32x9"].weights == found["50 steps"].weights == found[REFERENCE].weights
    assert len({found[name].weights for name in (REFERENCE, "fp8", "adapter 0.5")}) == 3
    assert replace(found["dev"], name="x").same_as(found["dev"])
