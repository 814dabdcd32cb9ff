"""The card of an adapter with several references: a row for each, and what every program can do with them."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from rich.console import Console

from iclora_train.adapters.card import write_card
from iclora_train.adapters.file import Adapter, save
from iclora_train.adapters.loaders import loader_limits
from iclora_train.config.references import MoreReference
from iclora_train.training import export
from tests.tiny import composed

METADATA = {"base_model_family": "ltx", "base_model_version": "2.3", "size": "768x384x49", "fps": "24.0"}
LOOK = {"name": "look", "downscale": 1, "temporal_scale": 1, "frame": 9, "p": 0.8}
DEPTH = {"name": "depth", "downscale": 2, "temporal_scale": 1, "frame": None}


def adapter_with(*more: dict[str, Any], **metadata: str) -> Adapter:
    weights = {"transformer_blocks.0.attn1.to_q": (torch.ones(2, 4096), torch.ones(4, 2))}
    entries = {"reference_downscale_factor": "2", **({"more_references": json.dumps(more)} if more else {})}
    return Adapter(weights, {**METADATA, **entries, **metadata})


def card_of(folder: Path, *more: dict[str, Any], **metadata: str) -> str:
    save(folder / "two.safetensors", adapter_with(*more, **metadata))
    return write_card(folder / "two.safetensors")[0].read_text()


def test_every_reference_has_its_rows_in_order(tmp_path: Path) -> None:
    lines = card_of(tmp_path, LOOK, {**DEPTH, "temporal_scale": 4}).splitlines()
    rows = [
        "| reference 1, first | 2 times smaller than the output clip in width and height (factor 2) |",
        "| reference 2, look | same size as the output clip; in 80% of the training clips |",
        "| frames of the reference 2, look | one, at frame 9 of the output clip |",
        "| reference 3, depth | 2 times smaller than the output clip in width and height (factor 2) |",
        "| reference 3, depth frame rate | 4 times lower than the output clip's |",
    ]
    first = lines.index(rows[0])
    assert lines[first : first + 5] == rows
    assert "The adapter takes 3 references, in the order of the table above: first, look, depth." in lines


def test_programs_that_can_use_the_references_are_given_each(tmp_path: Path) -> None:
    card = card_of(tmp_path, LOOK, DEPTH)
    command = next(line for line in card.splitlines() if line.startswith("python -m ltx_pipelines"))
    words = shlex.split(command.removesuffix("\\"))
    references = ("--video-conditioning", "reference.mp4", "1.0", "--video-conditioning", "depth.mp4", "1.0")
    assert words[-11:] == [*references, "--image", "look.png", "9", "1.0", "0"]
    assert "or later, without custom nodes: put the file" in card
    match = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert match is not None
    tree = ast.parse(match[1])
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    pipe = next(node for node in calls if ast.unparse(node.func) == "pipe")
    arguments = {word.arg: ast.unparse(word.value) for word in pipe.keywords}
    assert arguments.keys() <= inspect.signature(diffusers.LTX2InContextPipeline.__call__).parameters.keys()
    assert arguments["reference_downscale_factor"] == "2"
    assert re.findall(r"'(\w+\.\w+)'", arguments["reference_conditions"]) == ["reference.mp4", "depth.mp4"]
    assert arguments["conditions"] == "[LTX2VideoCondition(frames=load_image('look.png'), index=2, crf=0)]"
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {"LTX2VideoCondition", "LTX2ReferenceCondition", "load_image", "load_video"} <= imported


LIMITS: list[tuple[tuple[dict[str, Any], ...], dict[str, str], dict[str, str]]] = [
    (
        ({**DEPTH, "downscale": 1},),
        {},
        {
            "ltx-pipelines": "reads one factor for all references from the file, 2, and would also use it for depth",
            "diffusers": "`reference_downscale_factor` for all references, unlike first (factor 2), depth (factor 1)",
        },
    ),
    (
        ({**DEPTH, "downscale": 4},),
        {},
        {
            "ltx-pipelines": "would also use it for depth (factor 4)",
            "ComfyUI": "takes the factor 1 or that of the file, 2, unlike depth (factor 4); there the workflow has the",
            "diffusers": "first (factor 2), depth (factor 4)",
        },
    ),
    (
        ({**DEPTH, "temporal_scale": 2},),
        {},
        {
            "ltx-pipelines": "one reference_temporal_scale_factor for all references from the file, 1, and would also",
            "ComfyUI": "do not support references with fewer frames per second (depth)",
            "diffusers": "it does not support reference_temporal_scale_factor",
        },
    ),
    (
        ({**LOOK, "downscale": 2},),
        {},
        {
            "ltx-pipelines": "pictures at a frame (`--image`) have the size of the clip, unlike look (factor 2)",
            "diffusers": "pictures at a frame (`conditions`) have the size of the clip, unlike look (factor 2)",
        },
    ),
    (({**LOOK, "frame": -1},), {}, {"diffusers": "at the frames 1, 9, 17, ... only, and look begins at frame -1"}),
    (
        (),
        {"reference_downscale_factor": "1", "reference_frame": "-1"},
        {
            "ltx-pipelines": "requires a reference from frame 0 on (`--video-conditioning`), and first begins at frame",
            "diffusers": "first begins at frame -1",
        },
    ),
    ((LOOK, DEPTH), {}, {}),
    ((), {}, {}),
    ((), {"adapter_kind": "lora"}, {}),
]


@pytest.mark.parametrize(("more", "metadata", "expected"), LIMITS)
def test_a_program_that_cannot_use_the_references_is_named_with_the_reason(
    more: tuple[dict[str, Any], ...], metadata: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    lines = list(loader_limits(adapter_with(*more, **metadata)))
    assert [line.split(" cannot use")[0] for line in lines] == list(expected)
    card = card_of(tmp_path, *more, **metadata)
    for line, (program, reason) in zip(lines, expected.items(), strict=True):
        assert reason in line
        if program != "ComfyUI":
            assert f"**{program}** cannot run this adapter: {line.partition('as it is: ')[2]}." in card
    loads = "ltx-pipelines" not in expected and "adapter_kind" not in metadata
    assert ("--video-conditioning reference.mp4" in card) is loads


def test_the_card_says_where_comfyui_needs_custom_nodes_or_has_no_workflow(tmp_path: Path) -> None:
    card = card_of(tmp_path, {**DEPTH, "downscale": 4})
    assert "or later, with custom nodes (its own guide node takes the factor 1 or that of the file, 2, unlike" in card
    card = card_of(tmp_path, {**DEPTH, "temporal_scale": 2})
    assert "no workflow was written for this file: ComfyUI's nodes do not support references with fewer frames" in card


def test_the_start_of_training_prints_the_same_lines() -> None:
    ltx = ("model=ltx2_3", "model.checkpoint=ltx.safetensors", "data.clips=clips")
    config = composed("conf=canny_still", *ltx, "task.reference_downscale=2")
    config.task.more_references.append(MoreReference("depth", "control.depth"))
    base = SimpleNamespace(family="ltx", version="2.3")
    lines = export.loader_notes(config, base)  # type: ignore[arg-type]
    assert [line.split(" cannot use")[0] for line in lines] == ["note: ltx-pipelines", "note: diffusers"]
    base.family = "nano"
    assert export.loader_notes(config, base) == []  # type: ignore[arg-type]


def test_the_end_of_training_prints_which_programs_cannot_use_the_references(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    for more, printed in ((LOOK, False), ({**DEPTH, "downscale": 4}, True)):
        save(path, adapter_with(more))
        out = StringIO()
        export.finish(composed("conf=deblur"), tmp_path, path, Console(file=out, soft_wrap=True))
        assert ("note: ltx-pipelines cannot use this adapter as it is: " in out.getvalue()) is printed
        assert ("note: diffusers cannot use this adapter as it is: " in out.getvalue()) is printed
