"""The model card has the known facts of an adapter."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml

from iclora_train.adapters.__main__ import main
from iclora_train.adapters.card import write_card
from iclora_train.adapters.file import Adapter, save
from iclora_train.config import ConfigError

METADATA = {
    "reference_downscale_factor": "2",
    "base_model": "ltx-2.3-22b-dev",
    "base_model_family": "ltx",
    "base_model_version": "2.3",
    "task": "deblur",
    "trigger": "DEBLUR: now",
    "steps": "3000",
    "rank": "32",
    "learning_rate": "0.0002",
    "clips": "512",
    "config_hash": "da0e4228f72046c4",
    "size": "960x576x49",
    "fps": "24.0",
}
SCORES = {
    "task": "deblur",
    "primary": "psnr",
    "clips": [{}] * 24,
    "seeds": [0, 1, 2],
    "cells": {"adapter+reference": {"psnr": {"mean": 31.19, "low": 29.87, "high": 32.44, "n": 24}}},
    "strength": [
        {"s": s, "metrics": {"psnr": {"mean": 10 + s, "low": None, "high": None, "n": 1}}} for s in (1.0, 0.5)
    ],
}
PATH = Path("deblur.safetensors")


def write_adapter(folder: Path, **metadata: str | None) -> Path:
    """An adapter file with changed or (None) removed metadata."""
    strings = {key: value for key, value in {**METADATA, **metadata}.items() if value is not None}
    names = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.audio_attn1.to_q")
    save(folder / PATH, Adapter({name: (torch.ones(2, 4), torch.ones(4, 2)) for name in names}, strings))
    return folder / PATH


def front_matter(card: str) -> dict[str, Any]:
    _, block, _ = card.split("---\n", 2)
    metadata: dict[str, Any] = yaml.safe_load(block)
    return metadata


def test_the_card_has_the_known_facts(tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps(SCORES))
    card, *workflows = write_card(write_adapter(tmp_path), scores)
    text = card.read_text()
    assert front_matter(text) == {
        "tags": ["lora", "ic-lora", "video", "ltx-2", "ltx-video"],
        "pipeline_tag": "video-to-video",
        "base_model": "Lightricks/LTX-2.3",
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "instance_prompt": "DEBLUR: now",
    }
    for line in (
        "# deblur: an IC-LoRA for ltx 2.3",
        "| trigger | start the prompt with `DEBLUR: now` |",
        "| reference | 2 times smaller than the output clip in width and height (factor 2) |",
        "| size in training | 960x576x49 (width x height x frames) |",
        "| frames per second | 24.0 |",
        "| adapted linears | 2, 1 of them outside the video stream |",
        "| learning rate | 0.0002 |",
        "| training windows | 512 |",
        "| settings (hash) | da0e4228f72046c4 |",
        "| adapter+reference | 31.190 [29.870, 32.440] |",
        "| attention strength 0.5 | 10.500 |",
    ):
        assert line in text.splitlines()
    assert "24 held-out deblur windows" in text
    assert [path.name for path in workflows] == ["deblur.workflow.json", "deblur.api.json"]
    assert all(path.name in text for path in workflows)


def test_the_card_omits_unknown_facts(tmp_path: Path) -> None:
    unknown = dict.fromkeys(("trigger", "task", "size", "fps", "steps"))
    card, *workflows = write_card(write_adapter(tmp_path, **unknown))
    text = card.read_text()
    assert "None" not in text
    assert "| trigger | none |" in text
    assert "Results" not in text
    assert "no workflow was written for this file: the size is unknown" in text
    assert workflows == []


def test_nano_has_a_card_and_no_workflow(tmp_path: Path) -> None:
    card, *workflows = write_card(write_adapter(tmp_path, base_model_family="nano"))
    text = card.read_text()
    assert workflows == []
    assert "base_model" not in front_matter(text)
    assert "The base model nano 2.3 is part of iclora_train" in text


def test_the_card_calls_diffusers_by_its_arguments(tmp_path: Path) -> None:
    text = write_card(write_adapter(tmp_path))[0].read_text()
    match = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert match is not None
    calls = {ast.unparse(node.func): node for node in ast.walk(ast.parse(match[1])) if isinstance(node, ast.Call)}
    arguments = {word.arg: ast.unparse(word.value) for word in calls["pipe"].keywords}
    accepted = inspect.signature(diffusers.LTX2InContextPipeline.__call__).parameters
    assert arguments.keys() <= accepted.keys()
    assert (arguments["reference_downscale_factor"], arguments["width"], arguments["num_frames"]) == ("2", "960", "49")
    condition = diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora.LTX2ReferenceCondition
    assert {word.arg for word in calls["LTX2ReferenceCondition"].keywords} <= inspect.signature(
        condition
    ).parameters.keys()


def loading(folder: Path, **metadata: str | None) -> str:
    """The card's section on loading the adapter."""
    text = write_card(write_adapter(folder, **metadata))[0].read_text()
    return text.partition("## How to load it")[2]


def test_the_card_says_where_diffusers_differs(tmp_path: Path) -> None:
    marker = "no `video_keyframes_mask`"
    for version, fps, frame_rate in (("2.3", "24.0", True), ("2.5", "of the clips", False)):
        text = loading(tmp_path, base_model_version=version, fps=fps)
        assert "An attention strength below 1 acts as 0" in text
        assert (marker in text) is (version == "2.5")
        assert ("frame_rate=24.0," in text) is frame_rate
        assert "a reference that is 2 times smaller than the clip" in text
    assert "'From (a) to ...'" in loading(tmp_path, prompt_template="From {a} to {caption}")
    plain = loading(tmp_path, adapter_kind="lora")
    assert "takes no reference" in plain
    assert ("deblur.workflow.json" in plain) is (tmp_path / "deblur.workflow.json").exists() is True
    card = (tmp_path / "deblur.md").read_text()
    assert "# deblur: a LoRA for ltx 2.3" in card
    assert front_matter(card)["pipeline_tag"] == "text-to-video"
    assert "ic-lora" not in front_matter(card)["tags"]
    assert "reference_conditions" not in plain
    text = loading(tmp_path, reference_downscale_factor="1", reference_temporal_scale_factor="4")
    assert "**diffusers** cannot run this adapter" in text
    assert "LTX2InContextPipeline" not in text
    assert "smaller than the clip" not in text


def test_scores_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = write_adapter(tmp_path)
    for text, message in (("{}", "is not a scores.json of"), ("hello", "is damaged .*: run eval again")):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            write_card(path, tmp_path / "scores.json")


def test_the_commands_write_into_the_adapters_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_adapter(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(["card", str(path)])
    assert capsys.readouterr().out.split() == [str(path.with_suffix(s)) for s in (".md", ".workflow.json", ".api.json")]
    with pytest.raises(SystemExit, match="0"):
        main(["workflow", str(path), "--size", "512x320x17", "--fps", "30"])
    nodes = json.loads(path.with_suffix(".api.json").read_text()).values()
    inputs = {node["class_type"]: node["inputs"] for node in nodes}
    assert (inputs["EmptyLTXVLatentVideo"]["width"], inputs["CreateVideo"]["fps"]) == (512, 30.0)
