"""The evaluation of a plain LoRA: its loss on held-out clips against the base's, its strength, and no references."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.clips.conditions import Item, without_references
from eval.clips.sampled import SampledClips
from eval.compare import compare
from eval.judging.answer import answer
from eval.report.media import Media
from eval.report.wandb_log import clip_columns, clip_rows, example_rows
from eval.report.wandb_summary import summary
from eval.run import evaluate, open_source
from iclora_train.adapters.card import card_text
from iclora_train.adapters.file import read
from iclora_train.config import ConfigError
from iclora_train.core.scores import read_comparable_scores
from iclora_train.data.batch import collate
from iclora_train.diffusion.loss import loss_at
from iclora_train.diffusion.sampler import draw_noise
from iclora_train.ltx2.base_model import BaseModel
from tests.eval_world import World, build, refused, scores, write_adapter
from tests.test_eval import SCHEMA, violations

SOURCES = {"train": ["sea", "road"], "heldout": ["cat", "dog", "owl", "fox"]}
SIGMAS = "validation.sigmas=[0.3,0.7]"


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An evaluated plain LoRA with random weights, on eight windows of four recordings."""
    root = tmp_path_factory.mktemp("style")
    world = build(root, SOURCES, references=0, task="style", settings=("eval.windows=8", SIGMAS))
    write_adapter(world.adapter, BaseModel.open(str(root / "base")), adapter_kind="lora")
    evaluate(world.config())
    return world


def test_the_rows_are_those_that_have_a_meaning(style: World) -> None:
    result = scores(style)
    assert violations(result, SCHEMA) == []
    assert list(result["cells"]) == ["base", "adapter", "empty prompt", "ceiling", "floor"]
    assert result["timings"]["sampling_seconds"].keys() == {c.name for c in without_references([1, 0.5, 0])}
    assert result["primary"] == result["adherence"] == "velocity_loss"
    assert (result["mask"], result["simple"], result["harm"]) == (None, None, None)
    assert result["classic"]["filter"] is None
    assert list(result["paired"]) == ["base"]
    assert result["strength"][0]["metrics"] == result["cells"]["adapter"]
    control = result["control"]
    assert {key for key, value in control.items() if value is not None} == {"drift", "curve"}


def test_strength_0_is_the_base(style: World) -> None:
    result = scores(style)
    rows = result["per_window"]["conditions"]
    assert rows["strength 0"] == result["windows"]["base"]
    between = [rows["strength 0.5"], result["windows"]["adapter"]]
    assert between[0]["velocity_loss"] != between[1]["velocity_loss"] != result["windows"]["base"]["velocity_loss"]


def test_the_claims_are_the_held_out_loss_and_the_strength(style: World) -> None:
    result = scores(style)
    assert [verdict["name"] for verdict in result["verdicts"]] == ["adapter_gain", "curve_monotone"]
    loss = {row: np.array(result["windows"][row]["velocity_loss"]) for row in ("adapter", "base")}
    gain = result["verdicts"][0]["value"]
    assert gain["mean"] == pytest.approx(100 * (1 - loss["adapter"].mean() / loss["base"].mean()), rel=1e-3)
    assert gain["low"] < gain["mean"] < gain["high"]
    assert result["gates"]["not_measured"] == []


def test_the_losses_are_those_of_the_validation_of_training(style: World) -> None:
    """By the loss function itself, with the noise of the window and the seed."""
    source = open_source(style.config())
    assert isinstance(source, SampledClips)
    window = source.held_out.windows[3]
    expected = {}
    for condition in source.conditions[:2]:  # adapter, base
        losses = []
        for seed in source.seeds:
            item = next(i for i in _items(source) if i.window == window and i.seed == seed)
            batch = collate([source.held_out.latents(window)])
            noise = draw_noise([item.noise_seed], tuple(batch.target.shape[1:]))
            with source._adapter_of(condition), torch.no_grad():
                losses += [
                    float(loss_at(source.transformer, batch, noise, sigma, source.config.task, source.base.geometry))
                    for sigma in (0.3, 0.7)
                ]
        expected[condition.name] = np.mean(losses)
    windows = scores(style)["windows"]
    for row, value in expected.items():
        assert windows[row]["velocity_loss"][3] == pytest.approx(value, rel=1e-4)


def _items(source: SampledClips) -> list[Item]:
    return [Item(window, seed) for window in source.held_out.windows for seed in source.seeds]


def test_the_first_sentence_says_what_was_measured(style: World) -> None:
    result = scores(style)
    sentence = answer(result)
    outcome = result["verdicts"][0]["outcome"]
    low, high = (result["verdicts"][0]["value"][key] for key in ("low", "high"))
    assert outcome == ("holds" if low > 0 else "fails" if high <= 0 else "inconclusive")
    assert "held-out clips" in sentence
    assert "than the base" in sentence
    assert "over 4 recordings" in sentence
    assert "input" not in sentence
    for better, words in ((1, "predicts held-out clips better than the base"), (-1, "predicts held-out clips worse")):
        verdict = {**result["verdicts"][0], "outcome": "holds" if better > 0 else "fails"}
        verdict["value"] = {"mean": 2.0 * better, "low": 2.0 * better - 1, "high": 2.0 * better + 1, "n": 8}
        assert words in answer({**result, "verdicts": [verdict]})


def test_two_evaluations_are_compared_by_the_adapters_row(style: World) -> None:
    result = scores(style)
    same = compare(result, result)
    assert same["primary"] == "velocity_loss"
    assert same["metrics"]["velocity_loss"]["difference"]["mean"] == 0
    other = {**result, "provenance": {**result["provenance"], "loss_sigmas": [0.5]}}
    with pytest.raises(ConfigError, match=r"their validation\.sigmas differ"):
        compare(result, other)
    assert read_comparable_scores(style.results / "scores.json") == result


def test_w_and_b_gets_the_rows_of_the_report(style: World) -> None:
    result = scores(style)
    values = summary(result)
    assert values["report/first_gate"] == "adapter_gain"
    assert values["report/gain_over"] == "base"
    assert "adapter/velocity_loss" in values
    media = Media(style.results, single=False, with_files=True)
    columns = clip_columns(result)
    assert columns[3] == "velocity_loss (adapter)"
    assert [row[3] for row in clip_rows(media, result)] == result["windows"]["adapter"]["velocity_loss"]
    assert len(list(example_rows(media, result))) == 3


def test_the_report_shows_neither_references_nor_their_claims(style: World) -> None:
    page = (style.results / "report.html").read_text()
    body = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    sections = re.sub(r"<section id=.provenance.*", "", body, flags=re.DOTALL)
    for words in (
        "control not followed",
        "Worse than the input?",
        "swapped",
        "with the reference",
        "null test",
        "Masks",
    ):
        assert words not in sections
    assert "does the adapter predict held-out clips better than the base?" in sections
    assert "improves with strength" in sections
    for title in ("without adapter", "with adapter", "strength 0.5", "With and without the adapter"):
        assert title in sections


def test_the_card_names_the_strength_of_the_adapter(style: World) -> None:
    card = card_text("a.safetensors", read(style.adapter), scores(style))
    assert "| adapter strength 0.5 |" in card
    assert "attention strength" not in card


def test_what_cannot_be_judged_without_a_reference_is_refused(style: World, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    refused(style.bare(f"videos={tmp_path}/clips"), "task style has no reference, so clips alone cannot be judged")
    write_adapter(tmp_path / "ic.safetensors", BaseModel.open(str(style.root / "base")))
    refused(style.bare(f"adapter={tmp_path}/ic.safetensors"), "takes a reference, and task style has none")


@pytest.mark.parametrize("more", ["eval.budget=1s", "eval.sequential=true"])
def test_a_budget_and_an_early_stop_keep_adapter_and_base(style: World, more: str) -> None:
    path = evaluate(style.config(more))
    result = json.loads((path.parent / "scores.json").read_text())
    assert {"adapter", "base"} <= result["cells"].keys()
    assert result["verdicts"][0]["name"] == "adapter_gain"


def test_where_parts_are_given_the_other_parts_are_judged(tmp_path: Path) -> None:
    given = "task.conditions=[{kind: mask, shapes: [box], cover: [0.5, 0.5]}]"
    world = build(tmp_path, SOURCES, references=0, task="style", settings=("eval.windows=4", SIGMAS, given))
    write_adapter(world.adapter, BaseModel.open(str(tmp_path / "base")), adapter_kind="lora")
    evaluate(world.config())
    result = scores(world)
    kinds = {verdict["name"]: verdict["kind"] for verdict in result["verdicts"]}
    assert kinds == {"part_gain": "gate", "adapter_gain": "diagnostic", "curve_monotone": "diagnostic"}
    assert result["primary"] == "psnr_inside"
    inside = {row: np.array(result["windows"][row]["psnr_inside"]) for row in ("adapter", "base")}
    gain = result["verdicts"][0]["value"]["mean"]
    assert gain == pytest.approx(float((inside["adapter"] - inside["base"]).mean()), abs=1e-4)
    assert "the parts that are not given" in answer(result)
