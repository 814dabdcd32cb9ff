"""How ltx-pipelines and diffusers use an adapter: the command and the code on its card."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence

from iclora_train.adapters.comfyui_given import NOTHING, GivenParts
from iclora_train.adapters.conditions import conditions_of
from iclora_train.adapters.file import Adapter
from iclora_train.adapters.loaders import (
    EXAMPLE_SIZE,
    diffusers_limit,
    frame_number,
    latent_index,
    ltx_pipelines_limit,
    split,
)
from iclora_train.adapters.metadata import clip_size, shown
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.config.references import FIRST
from iclora_train.ltx2.weights.versions import Version

LONGEST = 500  # characters of a value on the card
_CONDITION_MODULE = "diffusers.pipelines.ltx2.pipeline_ltx2_condition"


def string_literal(value: str) -> str:
    """A value as a string literal in double quotes, valid in Python and YAML."""
    return json.dumps(shown(value, LONGEST), ensure_ascii=False)


def reference_size(adapter: Adapter) -> list[str]:
    """How ltx-pipelines and diffusers treat references of the clip's size, for an adapter with a factor."""
    limits = (ltx_pipelines_limit(adapter), diffusers_limit(adapter))
    programs = [name for name, limit in zip(("ltx-pipelines", "diffusers"), limits, strict=True) if limit is None]
    small = [layout.name for layout in adapter.references if layout.downscale != 1]
    if not small or not programs:
        return []
    reference = "a reference" if len(adapter.references) == 1 else f"references ({', '.join(small)})"
    return [
        f"Give {' and '.join(programs)} {reference} {'that is' if len(small) == 1 else 'that are'} {adapter.downscale} "
        "times smaller than the clip in width and height, each pixel the mean of a block. ltx-pipelines would reduce a "
        "larger reference by bilinear interpolation without a filter, diffusers by Lanczos."
    ]


def diffusers_section(name: str, prompt: str, adapter: Adapter, version: Version) -> list[str]:
    """Code for diffusers, and where diffusers 0.42 differs from the other programs."""
    limit = diffusers_limit(adapter)
    if limit is not None:
        return [f"**diffusers** cannot run this adapter: {limit}."]
    notes = [
        "diffusers does not read the reference factor from the file. Leave the strength of a reference and "
        "`conditioning_attention_strength` at 1. An attention strength below 1 acts as 0, and a reference strength "
        "between 0 and 1 gives other results than in ComfyUI and ltx-pipelines."
    ]
    if version.switches.get("use_keyframes_abs_pos_embedding"):
        notes.append(
            "Results differ from the other programs, which mark the tokens of the first latent frame for "
            f"LTX-{version.name}, as training does. The pipeline passes no `video_keyframes_mask`."
        )
    return ["**diffusers**:", _diffusers(name, prompt, adapter, version), " ".join(notes)]


def ltx_pipelines(name: str, prompt: str, adapter: Adapter) -> list[str]:
    """The command of ltx-pipelines, which samples at half of the requested size."""
    limit = ltx_pipelines_limit(adapter)
    if limit is not None:
        return [f"**ltx-pipelines** cannot run this adapter: {limit}."]
    width, height, frames = clip_size(adapter.metadata) or EXAMPLE_SIZE
    size = f"--width {2 * width} --height {2 * height} --num-frames {frames}"
    along, pictures = split(adapter.references)
    references = [f"--video-conditioning {_file(layout, 'mp4')} {layout.use.usual_strength}" for layout in along]
    references += [
        f"--image {_file(layout, 'png')} {frame_number(adapter, layout)} {layout.use.usual_strength} 0"
        for layout in pictures
    ]
    attention = along[0].use.usual_attention
    references += [] if attention == 1 else [f"--conditioning-attention-mask white.mp4 {attention}"]
    command = f"python -m ltx_pipelines.ic_lora --lora {shlex.quote(name)} 1.0 {' '.join(references)}"
    return [
        "**ltx-pipelines** (add the path options of your base model, see its README). Its second stage does not use "
        "the adapter. `--skip-stage-2` omits that stage; the clip then has half the requested size, so request twice "
        f"the size{'' if attention == 1 else '. `white.mp4` is a white video, the mask of the attention strength'}:",
        f"""```bash
{command} \\
    {size} --skip-stage-2 --prompt {shlex.quote(prompt)} --output-path out.mp4
```""",
    ]


def _file(layout: ReferenceLayout, extension: str) -> str:
    """The file of a reference in an example."""
    return f"{'reference' if layout.name == FIRST else layout.name}.{extension}"


def given_parts(metadata: Mapping[str, str], notes: Sequence[str]) -> list[str]:
    """How the programs are given the parts of the clip that the adapter was trained with; empty if there are none.

    notes: what the ComfyUI workflow says beside its nodes; empty if there is no workflow. A part at the beginning is
    clean in place in all three programs. An end would be appended as keyframes by the other two.
    """
    given = GivenParts.usual(conditions_of(metadata))
    if given == NOTHING:
        return []
    sections = ["## Given parts of the clip", "Without them the adapter is not used as it was trained."]
    if notes:
        sections += ["**ComfyUI**: select in the workflow", "\n".join(f"- {note}" for note in notes)]
    if given.needs_mask:
        sections.append(
            "**ltx-pipelines** and **diffusers** cannot give "
            f"{'all but a part of the picture' if given.mask else 'the end of the clip'} in place of noise. Use "
            "`python -m iclora_train.generate`."
        )
    elif given.beginning == 1:
        sections.append(
            "**ltx-pipelines**: add `--image first.png 0 1.0 0`. **diffusers**: add `conditions=[LTX2VideoCondition("
            f'frames=load_image("first.png"), crf=0)]`, from `{_CONDITION_MODULE}`. The last 0 keeps the picture from '
            "being compressed, as in training."
        )
    else:
        sections.append(
            "**diffusers**: add `conditions=[LTX2VideoCondition(frames="
            f'load_video("beginning.mp4"))]`, from `{_CONDITION_MODULE}`. **ltx-pipelines** has no option for a clip.'
        )
    return sections


def _diffusers(name: str, prompt: str, adapter: Adapter, version: Version) -> str:
    width, height, frames = clip_size(adapter.metadata) or EXAMPLE_SIZE
    fps = adapter.metadata.get("fps", "")
    frame_rate = f"\n    frame_rate={fps}," if re.fullmatch(r"\d{1,3}(\.\d{1,6})?", fps) else ""
    imports, references = _diffusers_references(adapter)
    return f"""```python
import torch
from diffusers import {version.diffusers_pipeline}
{imports}

pipe = {version.diffusers_pipeline}.from_pretrained("{version.diffusers_repository}", torch_dtype=torch.bfloat16)
pipe.load_lora_weights(".", weight_name={json.dumps(name, ensure_ascii=False)})
video, audio = pipe(
    prompt={string_literal(prompt)},
{references}
    width={width},
    height={height},
    num_frames={frames},{frame_rate}
    return_dict=False,
)
```"""


def _diffusers_references(adapter: Adapter) -> tuple[str, str]:
    """The imports and the arguments of the references, for the code of diffusers."""
    along, pictures = split(adapter.references)
    imports, arguments, loaders = [], [], []
    if pictures:
        conditions = [
            f'LTX2VideoCondition(frames=load_image("{_file(layout, "png")}"), '
            f"index={latent_index(frame_number(adapter, layout))}, crf=0)"
            for layout in pictures
        ]
        imports.append(f"from {_CONDITION_MODULE} import LTX2VideoCondition")
        loaders.append("load_image")
        arguments.append(f"    conditions=[{', '.join(conditions)}],")
    if along:
        conditions = [f'LTX2ReferenceCondition(frames=load_video("{_file(layout, "mp4")}"))' for layout in along]
        imports.append("from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition")
        loaders.append("load_video")
        arguments.append(f"    reference_conditions=[{', '.join(conditions)}],")
        arguments.append(f"    reference_downscale_factor={along[0].downscale},")
    imports.append(f"from diffusers.utils import {', '.join(loaders)}")
    return "\n".join(imports), "\n".join(arguments)
