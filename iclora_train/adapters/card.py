"""What is written beside an adapter: a model card, and for LTX-2 bases a ComfyUI workflow."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iclora_train.adapters import comfyui_json as comfy_forms
from iclora_train.adapters.base_spec import FAMILY, VERSION
from iclora_train.adapters.comfyui_workflow import WorkflowSettings, steps
from iclora_train.adapters.file import Adapter, read
from iclora_train.config import ConfigError
from iclora_train.core.atomic_files import write_atomic

_REPOSITORY = {"2.0": "Lightricks/LTX-2", "2.3": "Lightricks/LTX-2.3", "2.5": "Lightricks/LTX-2.5"}
_DIFFUSERS = {"2.0": "Lightricks/LTX-2", "2.3": "diffusers/LTX-2.3-Diffusers", "2.5": "Lightricks/LTX-2.5-Diffusers"}
_FACTS = {  # metadata key -> row of the card
    "base_model": "base",
    "steps": "steps",
    "rank": "rank",
    "learning_rate": "learning rate",
    "batch_size": "clips per step",
    "clips": "training windows",
    "config_hash": "settings (hash)",
    "combined": "combined from (adapter:strength)",
}


def write_beside(path: Path, scores: Path | None = None) -> list[Path]:
    """Write `<adapter>.md`, and the workflow where ComfyUI can run the base; the files written.

    scores: scores.json of `eval`, whose figures go into the card. ConfigError if the adapter is not a good one.
    """
    adapter = read(path)
    measured = None if scores is None else read_scores(scores)
    recipe: WorkflowSettings | None = None
    why = None
    try:
        recipe = WorkflowSettings.of(path, adapter.metadata)
    except ConfigError as error:
        why = str(error).removeprefix(f"{path}: ")
    workflows = [] if recipe is None else write_workflow(path, recipe)
    card = path.with_suffix(".md")
    with write_atomic(card) as file:
        file.write(card_text(path.name, adapter, measured, why).encode())
    return [card, *workflows]


def read_scores(path: Path) -> dict[str, Any]:
    """scores.json of `eval`. ConfigError if it is another file."""
    try:
        scores = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable scores.json ({error})") from error
    wanted = {"primary", "cells", "strength", "clips", "seeds", "task"}
    if not isinstance(scores, dict) or not wanted <= scores.keys():
        raise ConfigError(f"{path} is not a scores.json of `python -m eval`")
    return scores


def write_workflow(path: Path, recipe: WorkflowSettings) -> list[Path]:
    """Write `<adapter>.workflow.json` for ComfyUI's page and `<adapter>.api.json` for its server."""
    written = [path.with_suffix(suffix) for suffix in (".workflow.json", ".api.json")]
    for file, form in zip(written, (comfy_forms.graph, comfy_forms.api), strict=True):
        comfy_forms.write(file, form(steps(recipe)))
    return written


def card_text(name: str, adapter: Adapter, scores: Mapping[str, Any] | None = None, why: str | None = None) -> str:
    """The card as Hugging Face reads it: YAML, then Markdown. why: the reason that there is no ComfyUI workflow."""
    known = adapter.metadata
    parts = [
        front_matter(known),
        f"# {known.get('task', Path(name).stem)}: an IC-LoRA for {known.get(FAMILY)} {known.get(VERSION)}",
        *_use(adapter),
        *([] if scores is None else _measured(scores)),
        "## Training",
        _table([(row, known[key]) for key, row in _FACTS.items() if key in known]),
        "## How to load it",
        *_loading(name, adapter, why),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(known: Mapping[str, str]) -> str:
    """The YAML block. Values are written as JSON strings, which YAML reads as they are."""
    tags = ["lora", "ic-lora", "video", *(["ltx-2", "ltx-video"] if known.get(FAMILY) == "ltx" else [])]
    lines = [f"tags: {json.dumps(tags)}", "pipeline_tag: video-to-video"]
    if known.get(FAMILY) == "ltx" and known.get(VERSION) in _REPOSITORY:
        lines += [
            f"base_model: {_REPOSITORY[known[VERSION]]}",
            "base_model_relation: adapter",
            "library_name: diffusers",
        ]
    if known.get("trigger"):
        lines.append(f"instance_prompt: {json.dumps(known['trigger'])}")
    return "\n".join(["---", *lines, "---"])


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _use(adapter: Adapter) -> list[str]:
    """What a user sets."""
    known, factor = adapter.metadata, adapter.downscale
    rows = [
        ("trigger", f"`{known['trigger']}`, at the start of the prompt" if known.get("trigger") else "none"),
        (
            "reference",
            "as large as the clip" if factor == 1 else f"{factor} times smaller than the clip (factor {factor})",
        ),
    ]
    if adapter.temporal_scale != 1:
        rows.append(("reference frames", f"{adapter.temporal_scale} times fewer per second"))
    if "size" in known:
        rows.append(("size it was trained at", f"{known['size']} (width x height x frames)"))
    if "fps" in known:
        rows.append(("frames per second", known["fps"]))
    rows.append(("linears", f"{len(adapter.weights)}, of which {len(adapter.audio)} outside the video stream"))
    return ["## Use", _table(rows)]


def _measured(scores: Mapping[str, Any]) -> list[str]:
    """The figures of an evaluation: rows of comparison, then attention strengths."""
    primary = scores["primary"]

    def figure(found: Mapping[str, Any]) -> str:
        interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
        return f"{found['mean']:.3f}{interval}"

    head = [f"| cell | {primary} |", "|---|---|"]
    rows = [*scores["cells"].items()]
    rows += [(f"attention strength {level['s']:g}", level["metrics"]) for level in scores["strength"]]
    lines = [f"| {name} | {figure(metrics[primary])} |" for name, metrics in rows if primary in metrics]
    about = (
        f"{len(scores['clips'])} {scores['task']} windows that were never trained on, {len(scores['seeds'])} seeds, "
        f"adapter at strength 1; mean and 95 % interval over windows."
    )
    return ["## Measured", about, "\n".join([*head, *lines])]


def _loading(name: str, adapter: Adapter, why: str | None) -> list[str]:
    """Commands for the three programs, or why they cannot run the base."""
    known = adapter.metadata
    if known.get(FAMILY) != "ltx" or known.get(VERSION) not in _REPOSITORY:
        return [
            f"The base {known.get(FAMILY)} {known.get(VERSION)} is one of iclora_train; other programs do not "
            f"have it. Judge the adapter with `python -m eval conf={known.get('task')} adapter={name}`."
        ]
    stem, prompt = Path(name).stem, f"{known.get('trigger', '')} ...".strip()
    comfy = (
        f"**ComfyUI** with ComfyUI-LTXVideo: put the file into `models/loras` and open `{stem}.workflow.json` "
        f"(`{stem}.api.json` for the server); choose your base and reference clip there."
        if why is None
        else f"**ComfyUI**: there is no workflow beside this file: {why}."
    )
    return [
        comfy,
        "**ltx-pipelines** (and the path options of your base, as in its README). It has a second stage without the "
        "adapter; `--skip-stage-2` leaves it out, and the clip then has half the size asked for:",
        _ltx_pipelines(name, prompt, adapter),
        "**diffusers** (it does not read the factor from the file):",
        _diffusers(name, prompt, adapter),
    ]


def _ltx_pipelines(name: str, prompt: str, adapter: Adapter) -> str:
    width, height, frames = adapter.metadata.get("size", "960x544x121").split("x")
    size = f"--width {2 * int(width)} --height {2 * int(height)} --num-frames {frames}"
    command = f"python -m ltx_pipelines.ic_lora --lora {shlex.quote(name)} 1.0 --video-conditioning reference.mp4 1.0"
    return f"""```bash
{command} \\
    {size} --skip-stage-2 --prompt {shlex.quote(prompt)} --output-path out.mp4
```"""


def _diffusers(name: str, prompt: str, adapter: Adapter) -> str:
    width, height, frames = adapter.metadata.get("size", "960x544x121").split("x")
    version = adapter.metadata[VERSION]
    return f"""```python
import torch
from diffusers import LTX2InContextPipeline
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from diffusers.utils import load_video

pipe = LTX2InContextPipeline.from_pretrained("{_DIFFUSERS[version]}", torch_dtype=torch.bfloat16)
pipe.load_lora_weights(".", weight_name="{name}")
video, audio = pipe(
    prompt={json.dumps(prompt)},
    reference_conditions=[LTX2ReferenceCondition(frames=load_video("reference.mp4"))],
    reference_downscale_factor={adapter.downscale},
    width={width},
    height={height},
    num_frames={frames},
    return_dict=False,
)
```"""
