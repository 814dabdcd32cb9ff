"""The ComfyUI workflow of an adapter with several references: a chain for each, with its own factor and frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iclora_train.adapters.comfyui_base import Link, WorkflowNode
from iclora_train.adapters.comfyui_json import NOTE, graph_json
from iclora_train.adapters.comfyui_settings import WorkflowSettings
from iclora_train.adapters.comfyui_workflow import build_workflow
from iclora_train.config import ConfigError

METADATA = {"base_model_family": "ltx", "base_model_version": "2.3", "size": "768x384x49", "fps": "24.0"}
LOOK = {"name": "look", "downscale": 1, "temporal_scale": 1, "frame": -1}
DEPTH = {"name": "depth", "downscale": 2, "temporal_scale": 1, "frame": None}
MASKS = {"name": "masks", "downscale": 4, "temporal_scale": 1, "frame": 8}


def settings_for(*more: dict[str, Any], **metadata: str) -> WorkflowSettings:
    entries = {"reference_downscale_factor": "2", "more_references": json.dumps(more)}
    return WorkflowSettings.from_metadata(Path("two.safetensors"), {**METADATA, **entries, **metadata})


def chain(nodes: dict[str, WorkflowNode], title: str) -> list[tuple[str, WorkflowNode]]:
    """The nodes from the file of a guide to the guide."""
    steps = [(title, nodes[title])]
    while steps[0][1].class_type not in ("LoadVideo", "LoadImage"):
        links = (steps[0][1].inputs.get(name) for name in ("image", "video"))
        link = next(link for link in links if isinstance(link, Link))
        steps.insert(0, (link.node, nodes[link.node]))
    return steps


def test_every_reference_has_a_chain_with_its_own_size() -> None:
    nodes = build_workflow(settings_for(LOOK, DEPTH))
    first, look, depth = (chain(nodes, title) for title in ("guide", "guide: look", "guide: depth"))
    clip = ["LoadVideo", "GetVideoComponents", "ImageFromBatch", "ImageScale", "ImageScale", "LTXVAddGuide"]
    assert [node.class_type for _, node in first] == [node.class_type for _, node in depth] == clip
    assert [node.class_type for _, node in look] == ["LoadImage", "ImageScale", "LTXVAddGuide"]
    assert (look[0][1].inputs["image"], depth[0][1].inputs["file"]) == ("look.png", "depth.mp4")
    sizes = [(steps[-2][1].inputs["width"], steps[-2][1].inputs["height"]) for steps in (first, look, depth)]
    assert sizes == [(384, 192), (768, 384), (384, 192)]
    assert len({title for steps in (first, look, depth) for title, _ in steps}) == 15


def test_the_guides_follow_one_another_in_the_order_of_training() -> None:
    nodes = build_workflow(settings_for(LOOK, DEPTH))
    guides = [nodes[title].inputs for title in ("guide", "guide: look", "guide: depth")]
    for output in ("positive", "negative"):
        sources = ("frame rate", "guide", "guide: look")
        assert [guide[output] for guide in guides] == [Link(title, output) for title in sources]
        assert nodes["guider"].inputs[output] == nodes["remove guide"].inputs[output] == Link("guide: depth", output)
    assert [guide["latent"] for guide in guides[1:]] == [Link("guide", "latent"), Link("guide: look", "latent")]
    assert nodes["video and audio"].inputs["video_latent"] == Link("guide: depth", "latent")
    assert [guide.get("frame_idx") for guide in guides] == [None, 48, None]  # -1 of 49 frames
    assert nodes["frame rate"].inputs["frame_rate"] == Link("frames", "fps")


def test_each_guide_gets_its_own_factor() -> None:
    """The file's factor by a link, 1 without one, a third one by the custom guide node."""
    settings = settings_for(LOOK, DEPTH, MASKS)
    nodes = build_workflow(settings)
    factor = Link("reference factor", "iclora_parameters")
    linked = [nodes[title].inputs.get("iclora_parameters") for title in ("guide", "guide: look", "guide: depth")]
    assert linked == [factor, None, factor]
    own = nodes["guide: masks"]
    assert own.class_type == "LTXAddVideoICLoRAGuide"
    assert (own.inputs["latent_downscale_factor"], own.inputs["frame_idx"]) == (4.0, 8)
    assert "iclora_parameters" not in own.inputs
    graph = graph_json(nodes, settings.notes())
    packages = {node["type"]: node["properties"].get("cnr_id") for node in graph["nodes"]}
    assert (packages["LTXAddVideoICLoRAGuide"], packages["LTXVAddGuide"]) == ("ComfyUI-LTXVideo", "comfy-core")
    (note,) = (node for node in graph["nodes"] if node["type"] == NOTE)
    for line in (
        "reference: a clip.",
        "reference: look: a picture, which stands at frame -1.",
        "This workflow needs the custom nodes of ComfyUI-LTXVideo for masks: ComfyUI's own guide node takes the factor "
        "1 or that of the adapter file, 2.",
    ):
        assert line in note["widgets_values"][0].split("\n\n")
    classes = {node.class_type for node in build_workflow(settings_for(LOOK, DEPTH)).values()}
    assert "LTXAddVideoICLoRAGuide" not in classes


def test_rate_and_sound_are_those_of_a_clip_along_the_video() -> None:
    nodes = build_workflow(settings_for(DEPTH, reference_frame="0"))
    assert nodes["clip"].inputs["audio"] == Link("frames: depth", "audio")
    assert nodes["frame rate"].inputs["frame_rate"] == Link("frames: depth", "fps")
    nodes = build_workflow(settings_for(LOOK, reference_frame="-1"))
    assert nodes["frame rate"].inputs["frame_rate"] == 24.0  # two pictures
    assert nodes["guide: look"].inputs["frame_idx"] == 48


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({**LOOK, "frame": 49}, "look: frame=49 does not exist in a clip of 49 frames"),
        ({**DEPTH, "temporal_scale": 2}, "do not support references with fewer frames per second, which depth has"),
        ({**DEPTH, "downscale": 5}, "size 768x384x49 must be a multiple of 320 pixels"),
        ({**DEPTH, "downscale": 12}, "takes the factor 12 of depth beside the factor 2 of the file: the largest is 10"),
    ],
)
def test_a_reference_that_no_node_can_place_is_named(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"two\.safetensors") as caught:
        settings_for(more)
    assert message in str(caught.value)
