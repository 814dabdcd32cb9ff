"""The ComfyUI workflow gives the parts of the video that the adapter was trained with, in place and at their cells.

The nodes that make the video's latent and noise mask are computed here, each by what it does in ComfyUI 0.33, with a
VAE that averages the pixels of every cell.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from iclora_train.adapters.card import write_card
from iclora_train.adapters.comfyui_base import Link, WorkflowNode
from iclora_train.adapters.comfyui_json import NOTE
from iclora_train.adapters.comfyui_settings import WorkflowSettings
from iclora_train.adapters.comfyui_workflow import build_workflow
from iclora_train.adapters.conditions import conditions_metadata
from iclora_train.adapters.file import Adapter, save
from iclora_train.adapters.references import MORE
from iclora_train.config import ConfigError
from iclora_train.config.conditions import Condition, check_conditions
from iclora_train.diffusion.clean_cells import CleanCells

WIDTH, HEIGHT, FRAMES, TEMPORAL = 256, 128, 49, 8
LATENT = (7, 4, 8)  # frames, rows, columns
BASE = {"base_model_family": "ltx", "base_model_version": "2.3", "size": f"{WIDTH}x{HEIGHT}x{FRAMES}", "fps": "24.0"}
PLAIN = {"adapter_kind": "lora"}
SAME, SMALLER = {"reference_downscale_factor": "1"}, {"reference_downscale_factor": "2"}
LOOK = {"name": "look", "frame": -1}  # a second reference: a picture
TWO = {**SAME, MORE: json.dumps([LOOK])}
SMALLER_TWO = {**SMALLER, MORE: json.dumps([LOOK, {"name": "depth", "downscale": 2}])}
PICTURE, BEGINNING = {**SAME, "reference_frame": "-1"}, {**SAME, "reference_frame": "0"}
FIRST, PREFIX = {"kind": "first_frame"}, {"kind": "prefix", "frames": [9, 33]}
SUFFIX = {"kind": "suffix", "frames": [8, 16]}
MASK = {"kind": "mask", "shapes": ["box"], "cover": [0.1, 0.5]}


def checked(*entries: dict[str, Any]) -> list[Condition]:
    conditions = [Condition(**entry) for entry in entries]
    check_conditions(conditions)
    return conditions


def settings_for(conditions: list[Condition], kind: dict[str, str]) -> WorkflowSettings:
    return WorkflowSettings.from_metadata(Path("a.safetensors"), {**BASE, **kind, **conditions_metadata(conditions)})


def encode(pictures: Tensor) -> Tensor:
    """Pictures (F,H,W,3) -> latents (1,1,f,h,w): the first frame alone, then 8 frames each."""
    grey = pictures.mean(-1)
    groups = [grey[:1], *grey[1:].split(TEMPORAL)]
    means = torch.stack([group.mean(0) for group in groups if group is groups[0] or len(group) == TEMPORAL])
    return interpolate(means[None], scale_factor=1 / 32, mode="area")[None]


def random_pictures(count: int) -> Tensor:
    return torch.rand(count, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(count))


WHITE = torch.zeros(1, HEIGHT, WIDTH, 3)
WHITE[:, 40:90, 70:160] = 1
FILES = {
    **{"reference.mp4": random_pictures(60), "beginning.mp4": random_pictures(61), "end.mp4": random_pictures(62)},
    **{"source.mp4": random_pictures(63), "first.png": random_pictures(1), "reference.png": random_pictures(1)},
    **{"mask.png": WHITE, "look.png": random_pictures(1), "depth.mp4": random_pictures(59)},
}


def resized(image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> Tensor:
    """ImageScale of pictures that have the aspect ratio already."""
    mode = "bilinear" if upscale_method == "lanczos" else upscale_method
    return interpolate(image.movedim(-1, 1), size=(height, width), mode=mode).movedim(1, -1)


def in_place(vae: None, image: Tensor, latent: dict[str, Tensor], **rest: Any) -> dict[str, Tensor]:
    """LTXVImgToVideoInplace: the mask has a value per latent frame."""
    samples, given = latent["samples"].clone(), encode(image)
    mask = latent.get("noise_mask", torch.ones(1, 1, samples.shape[2], 1, 1)).clone()
    samples[:, :, : given.shape[2]], mask[:, :, : given.shape[2]] = given, 0
    return {"samples": samples, "noise_mask": mask}


def guided(latent: dict[str, Tensor], image: Tensor, iclora_parameters: int = 1, **rest: Any) -> dict[str, Tensor]:
    """LTXVAddGuide at strength 1: latents at the end. Of a smaller reference, the noise mask of dropped cells is -2."""
    samples = latent["samples"]
    mask = latent.get("noise_mask", torch.ones(1, 1, samples.shape[2], 1, 1))
    assert mask.ndim == 5  # the node indexes the columns of the mask
    image = image[: (len(image) - 1) // TEMPORAL * TEMPORAL + 1]
    count = (len(image) - 1) // TEMPORAL + 1
    appended = torch.zeros(1, 1, count, *mask.shape[3:])
    if iclora_parameters > 1:
        mask = mask.expand(-1, -1, -1, *LATENT[1:])
        appended = torch.full((1, 1, count, *LATENT[1:]), -2.0)
        appended[..., ::iclora_parameters, ::iclora_parameters] = 0
    samples = torch.cat([samples, torch.zeros(1, 1, count, *LATENT[1:])], 2)
    return {"samples": samples, "noise_mask": torch.cat([mask, appended], 2)}


def cut(samples: dict[str, Tensor], dim: str, index: int, amount: int) -> dict[str, Tensor]:
    assert dim == "t"
    return {**samples, "samples": samples["samples"].narrow(2, index, amount)}


def joined(samples1: dict[str, Tensor], samples2: dict[str, Tensor], dim: str) -> dict[str, Tensor]:
    assert dim == "t"
    return {**samples1, "samples": torch.cat([samples1["samples"], samples2["samples"]], 2)}


RULES: dict[str, Callable[..., Any]] = {
    "LoadVideo": lambda file: FILES[file],
    "LoadImage": lambda image: FILES[image],
    "GetVideoComponents": lambda video: video,
    "ImageFromBatch": lambda image, length: image[:length],
    "ImageScale": resized,
    "ImageBatch": lambda image1, image2: torch.cat([image1, image2]),
    "RepeatImageBatch": lambda image, amount: image.repeat(amount, 1, 1, 1),
    "SolidMask": lambda value, width, height: torch.full((1, height, width), value),
    "ThresholdMask": lambda mask, value: (mask > value).float(),
    "MaskToImage": lambda mask: mask[..., None].expand(-1, -1, -1, 3),
    "ImageToMask": lambda image, channel: image[..., 0],
    "EmptyLTXVLatentVideo": lambda width, height, length: {"samples": torch.zeros(1, 1, *LATENT)},
    "VAEEncode": lambda pixels, vae: {"samples": encode(pixels)},
    "LTXVImgToVideoInplace": in_place,
    "LatentCut": cut,
    "LatentConcat": joined,
    "LTXVAddGuide": guided,
    "SetLatentNoiseMask": lambda samples, mask: {**samples, "noise_mask": mask[:, None]},
}


def video_latent(settings: WorkflowSettings) -> tuple[Tensor, Tensor]:
    """What the sampler gets: latents and noise mask (f,h,w), as far as the video goes."""
    nodes = build_workflow(settings)
    results: dict[str, Any] = {"reference factor": next((layout.downscale for layout in settings.references), 1)}

    def value(entry: object) -> Any:
        return results.get(entry.node) if isinstance(entry, Link) else entry

    for title, node in nodes.items():
        assert all(link.node in nodes for link in node.inputs.values() if isinstance(link, Link))
        if node.class_type in RULES:
            results[title] = RULES[node.class_type](**{name: value(entry) for name, entry in node.inputs.items()})
    latent = value(nodes["video and audio"].inputs["video_latent"])
    mask = latent.get("noise_mask", torch.ones(1, 1, *LATENT))
    if mask.ndim == 4:  # of SetLatentNoiseMask: the sampler takes its pictures as latent frames
        mask = mask[:, 0][None, None]
    mask = interpolate(mask, size=latent["samples"].shape[2:], mode="trilinear")
    count = LATENT[0]
    assert (mask[0, 0, count:] <= 0).all()  # nothing of the guide is made anew
    return latent["samples"][0, 0, :count], mask[0, 0, :count]


@pytest.mark.parametrize("kind", [PLAIN, SAME, SMALLER, PICTURE, BEGINNING, TWO, SMALLER_TWO])
@pytest.mark.parametrize("entry", [FIRST, PREFIX])
def test_a_beginning_is_given_at_the_cells_of_training(entry: dict[str, Any], kind: dict[str, str]) -> None:
    conditions = checked(entry)
    samples, mask = video_latent(settings_for(conditions, kind))
    usual = CleanCells(conditions, TEMPORAL).usual(1, LATENT)
    assert usual is not None
    assert torch.equal(mask == 0, usual[0])
    assert torch.equal(mask == 1, ~usual[0])
    expected = FILES["first.png"] if entry is FIRST else FILES["beginning.mp4"][:25]
    count = len(encode(expected)[0, 0])
    assert torch.allclose(samples[:count], encode(expected)[0, 0], atol=1e-6)
    assert samples[count:].count_nonzero() == 0


@pytest.mark.parametrize("kind", [PLAIN, SAME, PICTURE, TWO])
@pytest.mark.parametrize("before", [[], [FIRST], [PREFIX]])
def test_an_end_is_given_at_the_cells_of_training(before: list[dict[str, Any]], kind: dict[str, str]) -> None:
    conditions = checked(*before, SUFFIX)
    samples, mask = video_latent(settings_for(conditions, kind))
    usual = CleanCells(conditions, TEMPORAL).usual(1, LATENT)
    assert usual is not None
    assert torch.equal(mask == 0, usual[0])
    assert torch.equal(mask == 1, ~usual[0])
    end = encode(FILES["end.mp4"][:17])[0, 0, 1:]  # two latent frames, without the one that holds a single frame
    assert torch.allclose(samples[-2:], end, atol=1e-6)


@pytest.mark.parametrize("kind", [PLAIN, SAME, PICTURE, TWO])
@pytest.mark.parametrize("others", [[], [FIRST], [SUFFIX], [PREFIX, SUFFIX]])
def test_all_but_the_white_part_of_a_source_is_given(others: list[dict[str, Any]], kind: dict[str, str]) -> None:
    samples, mask = video_latent(settings_for(checked(MASK, *others), kind))
    white = max_pool2d(WHITE[..., 0], 32)[0] > 0  # a cell with any white pixel
    kept = (~white).expand(LATENT).clone()
    usual = CleanCells(checked(*others), TEMPORAL).usual(1, LATENT)
    if usual is not None:
        kept |= usual[0]
    assert torch.equal(mask == 0, kept)
    assert torch.equal(mask == 1, ~kept)
    assert torch.allclose(samples, encode(FILES["source.mp4"][:FRAMES])[0, 0], atol=1e-6)


@pytest.mark.parametrize("kind", [SMALLER, BEGINNING, SMALLER_TWO])
@pytest.mark.parametrize(("entries", "missing"), [([SUFFIX], "the end"), ([PREFIX, MASK], "all but a part")])
def test_what_no_node_can_give_is_said(entries: list[dict[str, Any]], missing: str, kind: dict[str, str]) -> None:
    settings = settings_for(checked(*entries), kind)
    assert any(f"not complete: the adapter was also trained with {missing} of the video" in n for n in settings.notes())
    classes = {node.class_type for node in build_workflow(settings).values()}
    assert "SetLatentNoiseMask" not in classes
    assert ("LTXVImgToVideoInplace" in classes) is (PREFIX in entries)


def test_a_part_that_is_seldom_given_is_left_out() -> None:
    settings = settings_for(checked({**FIRST, "p": 0.2}), SAME)
    assert settings.notes() == []
    assert build_workflow(settings) == build_workflow(settings_for([], SAME))


def test_the_rate_and_the_sound_are_those_of_the_clip_that_is_changed() -> None:
    nodes = build_workflow(settings_for(checked(MASK), PLAIN))
    assert nodes["clip"].inputs["fps"] == Link("source frames", "fps")
    assert nodes["clip"].inputs["audio"] == Link("source frames", "audio")
    nodes = build_workflow(settings_for(checked(PREFIX), PLAIN))
    assert nodes["frame rate"].inputs["frame_rate"] == Link("beginning frames", "fps")
    assert "audio" not in nodes["clip"].inputs  # it is shorter than the video
    assert build_workflow(settings_for(checked(FIRST), PLAIN))["clip"].inputs["fps"] == 24.0


def test_a_clip_that_its_given_parts_would_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fill 7 latent frames, and the clip has 7: give --size with 57 frames"):
        settings_for(checked({"kind": "suffix", "frames": [56, 56]}), PLAIN)


def test_a_reference_clip_from_frame_0_is_taken_as_long_as_it_is() -> None:
    nodes = build_workflow(settings_for([], BEGINNING))
    assert nodes["reference"] == WorkflowNode("LoadVideo", {"file": "reference.mp4"})
    assert nodes["first frames"].inputs["length"] == FRAMES  # at most
    assert nodes["guide"].inputs["frame_idx"] == 0


def card_of(folder: Path, kind: dict[str, str], *entries: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """The card, and the note of the workflow."""
    path = folder / "a.safetensors"
    weights = {"transformer_blocks.0.attn1.to_q": (torch.ones(2, 4), torch.ones(4, 2))}
    save(path, Adapter(weights, {**BASE, **kind, **conditions_metadata(checked(*entries))}))
    card = write_card(path)[0].read_text()
    graph = json.loads(path.with_suffix(".workflow.json").read_text())
    return card, next((node for node in graph["nodes"] if node["type"] == NOTE), None)


def test_the_card_and_a_note_of_the_workflow_say_what_to_give(tmp_path: Path) -> None:
    card, note = card_of(tmp_path, PICTURE, FIRST)
    assert note is not None
    assert "first frame: the picture with which the video begins." in note["widgets_values"][0]
    assert "- first frame: the picture with which the video begins." in card.splitlines()
    assert "`--image first.png 0 1.0 0`" in card
    assert "| frames of the reference | one, at frame -1 of the output clip |" in card.splitlines()
    card, note = card_of(tmp_path, SMALLER, SUFFIX)
    assert note is not None
    assert "not complete" in note["widgets_values"][0]
    assert "not complete" in card
    assert "cannot give the end of the clip in place of noise" in card
    card, _ = card_of(tmp_path, PLAIN, MASK)
    assert "- source: the clip to change" in card
    card, _ = card_of(tmp_path, PLAIN, PREFIX)
    assert 'LTX2VideoCondition(frames=load_video("beginning.mp4"))' in card
    card, note = card_of(tmp_path, BEGINNING)
    assert note is None
    assert "Given parts" not in card
    assert "| frames of the reference | one or several, from frame 0 of the output clip |" in card.splitlines()
