"""ComfyUI would accept the workflow, newer versions open it too, and the guide gets the pixels that training saw."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from data_prep.clips.windows import Window
from data_prep.makers import build_maker
from data_prep.pairs import ReferenceScale, SourceVideo, make_reference
from iclora_train.adapters.comfyui_base import Link
from iclora_train.adapters.comfyui_json import NOTE, api_json, graph_json
from iclora_train.adapters.comfyui_nodes import NODE_CLASSES, NodeClass, NodeInput
from iclora_train.adapters.comfyui_settings import WorkflowSettings
from iclora_train.adapters.comfyui_workflow import build_workflow
from iclora_train.config import ConfigError
from iclora_train.diffusion.noise_schedule import DISTILLED
from iclora_train.ltx2.weights.versions import VERSIONS

METADATA = {
    "reference_downscale_factor": "2",
    "base_model_family": "ltx",
    "base_model_version": "2.3",
    "trigger": "DEBLUR: now",
    "size": "960x576x49",
    "fps": "24.0",
}
PATH = Path("deblur.safetensors")


def settings_for(version: str = "2.3", fps: float | None = None, **metadata: str) -> WorkflowSettings:
    return WorkflowSettings.from_metadata(PATH, {**METADATA, "base_model_version": version, **metadata}, fps=fps)


SETTINGS = [
    settings_for(version, fps, reference_downscale_factor=factor)
    for version in VERSIONS
    for fps in (23.976, None)
    for factor in "12"
] + [settings_for(version, adapter_kind="lora") for version in VERSIONS]
CONDITIONS = (
    [{"kind": "first_frame"}],
    [{"kind": "prefix", "frames": [9, 33]}],
    [{"kind": "prefix", "frames": [9, 9]}, {"kind": "suffix", "frames": [8, 16]}],
    [{"kind": "mask", "shapes": ["box"], "cover": [0.1, 0.5]}],
    [{"kind": "first_frame"}, {"kind": "mask", "shapes": ["box"], "cover": [0.1, 0.5]}],
)
KINDS_OF_REFERENCE: tuple[dict[str, str], ...] = (
    {"adapter_kind": "lora"},
    {"reference_downscale_factor": "1"},
    {"reference_downscale_factor": "2"},
    {"reference_downscale_factor": "1", "reference_frame": "-1"},
    {"reference_downscale_factor": "1", "reference_frame": "0"},
    {"reference_downscale_factor": "1", "more_references": '[{"name": "look", "frame": -1}]'},
    {
        "reference_downscale_factor": "2",
        "more_references": '[{"name": "look", "frame": 0}, {"name": "b", "downscale": 3}]',
    },
)
SETTINGS += [
    settings_for("2.3", **kind, target_conditions=json.dumps(conditions))
    for conditions in CONDITIONS
    for kind in KINDS_OF_REFERENCE
]


def accepts(spec: NodeInput, value: object) -> bool:
    """Whether ComfyUI would accept the value of a widget."""
    kinds: dict[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "FLOAT,INT": (int, float)}
    kinds["BOOLEAN"] = (bool,)
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
                kind = NODE_CLASSES[api[source]["class_type"]].outputs[output][1]
                assert kind in schema[name].type.split(",")
            else:
                assert schema[name].widget
                assert accepts(schema[name], value)


# A widget that a page of ComfyUI has, in its order: name and default.
Widgets = list[tuple[str, object]]


def page_widgets(node_class: NodeClass) -> Widgets:
    """The widgets of a node on the page of the version that the table describes."""
    widgets: Widgets = []
    for spec in node_class.inputs:
        if spec.widget:
            widgets.append((spec.name, spec.default))
            if spec.after_generate:
                widgets.append(("control_after_generate", "randomize"))
    return widgets


def open_graph(graph: dict[str, Any], widgets: dict[str, Widgets], by_name: bool = False) -> dict[str, Any]:
    """The API format that ComfyUI's page sends for a graph.

    The page's rule (comfyui-frontend 1.58, LGraphNode.configure): the i-th widget takes the i-th value of
    `widgets_values` and, where the list has ended, keeps its default. With the setting NamedValuesRestore it takes the
    value of its name. A link replaces the value.
    """
    links = {link[0]: link for link in graph["links"]}
    api = {}
    for node in graph["nodes"]:
        if node["type"] == NOTE:  # stays on the page
            continue
        named, values = node["widgets_values_named"], node["widgets_values"]
        assert len(values) <= len(widgets[node["type"]])
        inputs = {
            name: named.get(name, default) if by_name else values[i] if i < len(values) else default
            for i, (name, default) in enumerate(widgets[node["type"]])
        }
        assert inputs.pop("control_after_generate", "fixed") == "fixed"
        for i, socket in enumerate(node["inputs"]):
            if socket["link"] is not None:
                _, source, output, target, slot, kind = links[socket["link"]]
                assert (target, slot) == (node["id"], i)
                assert kind in socket["type"].split(",")
                inputs[socket["name"]] = [str(source), output]
        api[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node["title"]}}
    return api


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_both_formats_describe_the_same_workflow(settings: WorkflowSettings, by_name: bool) -> None:
    graph = json.loads(json.dumps(graph_json(build_workflow(settings), settings.notes())))
    widgets = {name: page_widgets(node_class) for name, node_class in NODE_CLASSES.items()}
    assert open_graph(graph, widgets, by_name) == json.loads(json.dumps(api_json(build_workflow(settings))))
    output_links = {
        (node["id"], i, n) for node in graph["nodes"] for i, o in enumerate(node["outputs"]) for n in o["links"]
    }
    assert output_links == {(source, output, number) for number, source, output, *_ in graph["links"]}
    assert len({tuple(node["pos"]) for node in graph["nodes"]}) == len(graph["nodes"])
    assert (graph["last_node_id"], graph["last_link_id"]) == (len(graph["nodes"]), len(graph["links"]))


def test_a_page_with_more_widgets_opens_the_same_workflow() -> None:
    """ComfyUI 0.38: LoadVideo has `edit`, CreateVideo three more widgets, and SaveVideo a codec within its format.

    `first` is made up: a widget before others that keep their defaults.
    """
    workflow = build_workflow(settings_for())
    trim = {"trim": {"start_time": 0, "duration": 0}}
    widgets = {name: page_widgets(node_class) for name, node_class in NODE_CLASSES.items()}
    widgets["LoadVideo"] += [("edit", trim), ("upload", "image")]
    widgets["CreateVideo"] += [("bit_depth", "auto"), ("color_space", "sRGB"), ("codec", "none")]
    widgets["SaveVideo"].insert(2, ("format.codec", "auto"))
    widgets["LTXVAddGuide"].insert(0, ("first", True))
    widgets["VAEDecodeTiled"].insert(0, ("first", True))
    added: dict[str, dict[str, object]] = {
        "LTXVAddGuide": {"first": True},
        "VAEDecodeTiled": {"first": True},
        "LoadVideo": {"edit": trim, "upload": "image"},
        "CreateVideo": {"bit_depth": "auto", "color_space": "sRGB", "codec": "none"},
        "SaveVideo": {"format.codec": "auto"},
    }
    expected = api_json(workflow)
    for node in expected.values():
        node["inputs"] |= added.get(node["class_type"], {})
    for by_name in (False, True):
        assert open_graph(graph_json(workflow), widgets, by_name) == expected


def node_of(api: dict[str, Any], title: str) -> dict[str, Any]:
    """The inputs of a node; a link is (title of the source, name of the output)."""
    (match,) = (node for node in api.values() if node["_meta"]["title"] == title)

    def resolve(value: object) -> object:
        if not isinstance(value, list):
            return value
        source = api[value[0]]
        return source["_meta"]["title"], NODE_CLASSES[source["class_type"]].outputs[value[1]][0]

    return {name: resolve(value) for name, value in match["inputs"].items()}


def test_the_workflow_matches_training() -> None:
    api = api_json(build_workflow(settings_for()))
    guide = node_of(api, "guide")
    assert guide["iclora_parameters"] == ("reference factor", "iclora_parameters")
    assert node_of(api, "reference factor")["iclora_model"] == ("adapter", "MODEL")
    assert (guide["frame_idx"], guide["strength"]) == (0, 1.0)
    assert node_of(api, "adapter")["lora_name"] == PATH.name
    latent = node_of(api, "empty video")
    assert (latent["width"], latent["height"], latent["length"]) == (960, 576, 49)
    assert node_of(api, "first frames")["length"] == 49
    assert node_of(api, "prompt")["text"].startswith("DEBLUR: now ")
    assert tuple(map(float, node_of(api, "sigmas")["sigmas"].split(", "))) == DISTILLED
    assert node_of(api, "guider")["cfg"] == 1.0
    assert node_of(api, "guider")["positive"] == ("guide", "positive")
    assert node_of(api, "remove guide")["latent"] == ("video only", "video_latent")
    assert node_of(api, "decode")["samples"] == ("remove guide", "latent")


def test_a_reference_of_one_frame_is_a_guide_at_its_frame() -> None:
    api = api_json(build_workflow(settings_for(reference_frame="-1")))
    assert node_of(api, "guide")["frame_idx"] == -1
    assert node_of(api, "reference") == {"image": "reference.png"}
    assert "frames" not in {node["_meta"]["title"] for node in api.values()}
    assert node_of(api, "frame rate")["frame_rate"] == 24.0  # of the training clips
    assert node_of(api, "clip").keys() == {"images", "fps"}


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{caption} {trigger}", "describe the clip here DEBLUR: now"),
        ("From {before} to {caption}", "From (before) to describe the clip here"),
        ("{caption", "DEBLUR: now describe the clip here"),
    ],
)
def test_the_prompt_has_the_form_of_the_training_prompts(template: str, prompt: str) -> None:
    api = api_json(build_workflow(settings_for(prompt_template=template)))
    assert node_of(api, "prompt")["text"] == prompt


@pytest.mark.parametrize(("fps", "expected"), [(None, ("frames", "fps")), (23.976, 23.976)])
def test_the_frame_rate_is_that_of_the_reference_unless_one_is_given(fps: float | None, expected: object) -> None:
    """As in `generate`. The rate of the training clips (24.0 in the metadata) would slow a clip of 30 down."""
    api = api_json(build_workflow(settings_for(fps=fps)))
    rates = (("frame rate", "frame_rate"), ("empty audio", "frame_rate"), ("clip", "fps"))
    assert [node_of(api, title)[name] for title, name in rates] == [expected] * 3


# ---- the pixels of the guide


def image_scale(images: Tensor, method: str, width: int, height: int) -> Tensor:
    """ComfyUI's ImageScale with crop=center on (F,C,H,W): comfy.utils.common_upscale."""
    rows, columns = images.shape[-2:]
    aspect, target = columns / rows, width / height
    x = round((columns - columns * (target / aspect)) / 2) if aspect > target else 0
    y = round((rows - rows * (aspect / target)) / 2) if aspect < target else 0
    images = images[..., y : rows - y, x : columns - x]
    if method != "lanczos":
        return interpolate(images, size=(height, width), mode=method)
    pictures = [Image.fromarray(np.uint8(255 * frame.permute(1, 2, 0).numpy())) for frame in images]
    resized = [np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)) for picture in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255


def guide_pixels(frames: np.ndarray, settings: WorkflowSettings) -> Tensor:
    """What the guide node of the workflow encodes: (F,C,H,W) in [0, 1]."""
    api = api_json(build_workflow(settings))
    steps = []
    title = node_of(api, "guide")["image"][0]
    while title != "first frames":
        steps.append(node_of(api, title))
        title = steps[-1]["image"][0]
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    for step in reversed(steps):
        images = image_scale(images, step["upscale_method"], step["width"], step["height"])
    factor = settings.references[0].downscale  # LTXVAddGuide: bilinear, without a filter
    return image_scale(images, "bilinear", settings.width // factor, settings.height // factor)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_guide_gets_the_pixels_that_training_saw(factor: int) -> None:
    """At factor 4 a full-size picture before the guide node would be 29 dB from the reference of training."""
    width, height = 256, 128
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 0.7) for frame in noise])
    size = (height, width)
    window = Window("clip", 0, indices=(0, 1), scaled=size, crop=(0, 0), size=size, flip=False, fps=24.0)
    maker, video = build_maker("given", {}), SourceVideo(Path("clip.mp4"))
    trained, _ = make_reference(list(frames), window, maker, video, [0], ReferenceScale(factor))
    settings = settings_for(reference_downscale_factor=str(factor), size=f"{width}x{height}x9")
    error = guide_pixels(frames, settings) - torch.from_numpy(trained).permute(0, 3, 1, 2) / 255
    assert 10 * math.log10(1 / max(error.square().mean().item(), 1e-12)) > 55


def test_the_workflow_of_a_plain_lora_has_neither_a_reference_nor_a_guide() -> None:
    nodes = build_workflow(settings_for(adapter_kind="lora", reference_downscale_factor="1"))
    kinds = {node.class_type for node in nodes.values()}
    assert "LoraLoaderModelOnly" in kinds
    assert not kinds & {"LTXVAddGuide", "LTXVCropGuides", "GetICLoRAParameters", "LoadVideo", "ImageScale"}
    assert nodes["clip"].inputs == {"images": Link("decode", "IMAGE"), "fps": 24.0}  # the rate of the training clips
    assert nodes["guider"].inputs["positive"] == Link("frame rate", "positive")
    for fps, expected in (("of the clips", 24.0), ("30.0", 30.0), ("9" * 5000, 24.0), ("0", 24.0)):
        metadata = {**METADATA, "adapter_kind": "lora", "fps": fps}
        assert WorkflowSettings.from_metadata(PATH, metadata).fps == expected


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"size": "960x544x49"}, "size 960x544x49 must be a multiple of 64 pixels"),
        ({"size": "960x576x50"}, "8k+1 frames"),
        ({"size": "0x0x1"}, "from 64 to 16384"),
        ({"size": "960x576x1009"}, "at most 1000"),
        ({"size": "9" * 5000 + "x576x9"}, "the size is unknown"),
        ({"reference_downscale_factor": "2.0"}, "must be a whole number from 1 to 999"),
        ({"reference_downscale_factor": "9" * 5000}, "must be a whole number from 1 to 999"),
        ({"size": "large"}, "the size is unknown"),
        ({"reference_temporal_scale_factor": "2"}, "ComfyUI's nodes do not support reference_temporal_scale_factor"),
        ({"base_model_family": "nano"}, "ComfyUI cannot run nano 2.3"),
        ({"base_model_version": "3.0"}, "ComfyUI cannot run ltx 3.0"),
        ({"target_conditions": '[{"kind": "prefix", "frames": [49, 49]}]'}, "give --size with 57 frames or more"),
    ],
)
def test_a_workflow_that_could_not_run_is_not_written(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=r"deblur\.safetensors") as caught:
        WorkflowSettings.from_metadata(PATH, {**METADATA, **metadata})
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("fps", [0.0, 500.0, float("nan")])
def test_a_frame_rate_that_createvideo_refuses_is_an_error(fps: float) -> None:
    with pytest.raises(ConfigError, match="must be between 1 and 120"):
        settings_for(fps=fps)
