"""The model card has the known facts of an adapter, and ComfyUI would accept the workflow."""

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
from iclora_train.adapters.comfyui_json import api_json, graph_json
from iclora_train.adapters.comfyui_nodes import NODE_CLASSES, NodeInput
from iclora_train.adapters.comfyui_workflow import WorkflowSettings, build_workflow
from iclora_train.adapters.file import Adapter, save
from iclora_train.config import ConfigError
from iclora_train.diffusion.noise_schedule import DISTILLED
from iclora_train.ltx2.weights.versions import VERSIONS

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


def test_scores_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = write_adapter(tmp_path)
    for text, message in (("{}", "is not a scores.json of"), ("hello", "is not a readable scores.json")):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            write_card(path, tmp_path / "scores.json")


# ---- the workflow


def settings_for(version: str = "2.3", **metadata: str) -> WorkflowSettings:
    return WorkflowSettings.from_metadata(PATH, {**METADATA, "base_model_version": version, **metadata})


SETTINGS = [settings_for(version, fps=fps) for version in VERSIONS for fps in ("24.0", "of the clips")]


def accepts(spec: NodeInput, value: object) -> bool:
    """Whether ComfyUI would accept the value of a widget."""
    kinds: dict[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "BOOLEAN": (bool,)}
    if not isinstance(value, kinds.get(spec.type, (str,))):
        return False
    if isinstance(value, int | float) and spec.low is not None and spec.high is not None:
        return spec.low <= value <= spec.high
    return not spec.choices or value in spec.choices


@pytest.mark.parametrize("settings", SETTINGS)
def test_comfyui_would_accept_the_api_format(settings: WorkflowSettings) -> None:
    """Every node exists, every required input is set, links connect equal types, values are in their ranges."""
    api = api_json(build_workflow(settings))
    for node in api.values():
        schema = {spec.name: spec for spec in NODE_CLASSES[node["class_type"]].inputs}
        assert node["inputs"].keys() <= schema.keys()
        assert {name for name, spec in schema.items() if spec.required} <= node["inputs"].keys()
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source, output = value
                assert NODE_CLASSES[api[source]["class_type"]].outputs[output][1] == schema[name].type
            else:
                assert schema[name].widget
                assert accepts(schema[name], value)


def from_graph(graph: dict[str, Any]) -> dict[str, Any]:
    """The API format that ComfyUI's page sends for a graph: an input is its link, or else the next widget value."""
    links = {link[0]: link for link in graph["links"]}
    api = {}
    for node in graph["nodes"]:
        widgets = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for spec in NODE_CLASSES[node["type"]].inputs:
            if spec.widget:
                inputs[spec.name] = next(widgets)
                if spec.extra_widget:
                    assert next(widgets) == spec.extra_widget
        assert list(widgets) == []
        for i, socket in enumerate(node["inputs"]):
            if socket["link"] is not None:
                _, source, output, target, slot, link_type = links[socket["link"]]
                assert (target, slot, link_type) == (node["id"], i, socket["type"])
                inputs[socket["name"]] = [str(source), output]
        api[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node["title"]}}
    return api


@pytest.mark.parametrize("settings", SETTINGS)
def test_both_formats_describe_the_same_workflow(settings: WorkflowSettings) -> None:
    graph = json.loads(json.dumps(graph_json(build_workflow(settings))))
    assert from_graph(graph) == json.loads(json.dumps(api_json(build_workflow(settings))))
    output_links = {
        (node["id"], i, n) for node in graph["nodes"] for i, o in enumerate(node["outputs"]) for n in o["links"]
    }
    assert output_links == {(source, output, number) for number, source, output, *_ in graph["links"]}
    assert len({tuple(node["pos"]) for node in graph["nodes"]}) == len(graph["nodes"])
    assert (graph["last_node_id"], graph["last_link_id"]) == (len(graph["nodes"]), len(graph["links"]))


def node_of(api: dict[str, Any], class_type: str) -> dict[str, Any]:
    """The inputs of the only node of a class; a link is (class of the source, name of the output)."""
    (match,) = (node for node in api.values() if node["class_type"] == class_type)

    def resolve(value: object) -> object:
        if not isinstance(value, list):
            return value
        source = api[value[0]]["class_type"]
        return source, NODE_CLASSES[source].outputs[value[1]][0]

    return {name: resolve(value) for name, value in match["inputs"].items()}


def test_the_workflow_matches_training() -> None:
    api = api_json(build_workflow(settings_for()))
    guide = node_of(api, "LTXAddVideoICLoRAGuide")
    assert guide["latent_downscale_factor"] == ("LTXICLoRALoaderModelOnly", "latent_downscale_factor")
    assert guide["image"] == ("ImageScale", "IMAGE")
    assert (guide["frame_idx"], guide["strength"]) == (0, 1.0)
    assert node_of(api, "LTXICLoRALoaderModelOnly")["lora_name"] == PATH.name
    latent, reference = node_of(api, "EmptyLTXVLatentVideo"), node_of(api, "ImageScale")
    assert (latent["width"], latent["height"], latent["length"]) == (960, 576, 49)
    assert (reference["width"], reference["height"], reference["crop"]) == (960, 576, "center")
    assert node_of(api, "ImageFromBatch")["length"] == 49
    texts = [node["inputs"]["text"] for node in api.values() if node["class_type"] == "CLIPTextEncode"]
    assert texts[0].startswith("DEBLUR: now ")
    assert tuple(map(float, node_of(api, "ManualSigmas")["sigmas"].split(", "))) == DISTILLED
    assert node_of(api, "CFGGuider")["cfg"] == 1.0
    assert node_of(api, "CFGGuider")["positive"] == ("LTXAddVideoICLoRAGuide", "positive")
    assert node_of(api, "LTXVCropGuides")["latent"] == ("LTXVSeparateAVLatent", "video_latent")
    assert node_of(api, "VAEDecodeTiled")["samples"] == ("LTXVCropGuides", "latent")
    assert {
        node_of(api, class_type)[name]
        for class_type, name in (("LTXVConditioning", "frame_rate"), ("CreateVideo", "fps"))
    } == {24.0}


def test_without_a_frame_rate_the_clip_keeps_its_own() -> None:
    api = api_json(build_workflow(settings_for(fps="of the clips")))
    for class_type, name in (("LTXVConditioning", "frame_rate"), ("CreateVideo", "fps"), ("LTXFloatToInt", "a")):
        assert node_of(api, class_type)[name] == ("GetVideoComponents", "fps")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"size": "960x544x49"}, "size 960x544x49 must be a multiple of 64 pixels"),
        ({"size": "960x576x50"}, "8k+1 frames"),
        ({"size": "large"}, "the size is unknown"),
        ({"reference_temporal_scale_factor": "2"}, "ComfyUI's nodes do not support reference_temporal_scale_factor"),
        ({"base_model_family": "nano"}, "ComfyUI cannot run nano 2.3"),
        ({"base_model_version": "3.0"}, "ComfyUI cannot run ltx 3.0"),
    ],
)
def test_a_workflow_that_could_not_run_is_not_written(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=r"deblur\.safetensors") as caught:
        WorkflowSettings.from_metadata(PATH, {**METADATA, **metadata})
    assert message in str(caught.value)


def test_the_commands_write_into_the_adapters_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_adapter(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(["card", str(path)])
    assert capsys.readouterr().out.split() == [str(path.with_suffix(s)) for s in (".md", ".workflow.json", ".api.json")]
    with pytest.raises(SystemExit, match="0"):
        main(["workflow", str(path), "--size", "512x320x17", "--fps", "30"])
    api = json.loads(path.with_suffix(".api.json").read_text())
    assert node_of(api, "EmptyLTXVLatentVideo")["width"] == 512
    assert node_of(api, "CreateVideo")["fps"] == 30.0
