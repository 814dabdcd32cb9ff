"""Which references of an adapter the published programs can place as they were trained, and which they cannot.

Read in their code in August 2026. ltx-pipelines' IC-LoRA pipeline reads one factor in space and one in time from the
file, for every `--video-conditioning`; each of these begins at frame 0. An `--image` after frame 0 is appended as a
picture at its frame, in the size of the video. diffusers' `LTX2InContextPipeline` has one factor for all
`reference_conditions`, which begin at frame 0, and places `conditions` at latent frames, in the size of the video.
ComfyUI has a guide node for each reference (`comfyui_references`).

None of them reads learned slots (`slots`), and all load the rest of such a file as ever. ComfyUI 0.33 logs
`lora key not loaded: reference_slots`. diffusers 0.42 drops a key that does not begin with `diffusion_model.` without a
message; one that does and is not of a LoRA makes it refuse the file. ltx-core looks up only lora_A and lora_B of the
model's linears.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iclora_train.adapters.comfyui_references import LARGEST_OWN_FACTOR, with_own_factor, with_own_guide
from iclora_train.adapters.conditions import conditions_of
from iclora_train.adapters.file import Adapter
from iclora_train.adapters.metadata import TEMPORAL, clip_size
from iclora_train.adapters.references import LATENT_FRAME, ReferenceLayout
from iclora_train.adapters.slots import LIMIT
from iclora_train.adapters.sound_context import sound_limits
from iclora_train.adapters.strength_limits import (
    comfyui_strengths,
    diffusers_strengths,
    ltx_pipelines_strengths,
    varied_limits,
)
from iclora_train.config.conditions import data_mask
from iclora_train.config.places import frame_in_words

EXAMPLE_SIZE = (960, 544, 121)  # width, height, frames in the examples of a card without a size
Layouts = Sequence[ReferenceLayout]


def split(layouts: Layouts) -> tuple[list[ReferenceLayout], list[ReferenceLayout]]:
    """The references that begin at frame 0 or run along the video, and the pictures at a later frame."""
    pictures = [layout for layout in layouts if layout.frame]
    return [layout for layout in layouts if not layout.frame], pictures


def frame_number(adapter: Adapter, layout: ReferenceLayout) -> int:
    """The frame of a picture from the start of a video of the trained length; of a drawn one an example."""
    frames = (clip_size(adapter.metadata) or EXAMPLE_SIZE)[2]
    frame = layout.example_frame(frames)
    assert frame is not None
    return frame if frame >= 0 else frames + frame


def ltx_pipelines_limit(adapter: Adapter) -> str | None:
    """Why ltx-pipelines cannot use the adapter as it was trained; None if it can."""
    along, pictures = split(adapter.references)
    file = adapter.references[0]
    wrong = [layout for layout in along if layout.downscale != file.downscale]
    if wrong:
        return (
            "its IC-LoRA pipeline reads one factor for all references from the file, "
            f"{file.downscale}, and would also use it for {_with_factors(wrong)}"
        )
    slow = [layout for layout in along if layout.temporal_scale != file.temporal_scale]
    if slow:
        rates = ", ".join(f"{layout.name} ({layout.temporal_scale})" for layout in slow)
        return (
            f"its IC-LoRA pipeline reads one {TEMPORAL} for all references from the file, {file.temporal_scale}, and "
            f"would also use it for {rates}"
        )
    small = [layout for layout in pictures if layout.downscale > 1]
    if small:
        return f"its pictures at a frame (`--image`) have the size of the clip, unlike {_with_factors(small)}"
    if not along:
        return (
            "its IC-LoRA command requires a reference from frame 0 on (`--video-conditioning`), and "
            f"{_with_frames(pictures)}. From Python, `ICLoraPipeline` takes such a picture among its `images`, with "
            "`video_conditioning=[]`"
        )
    return ltx_pipelines_strengths(along, pictures)


def diffusers_limit(adapter: Adapter) -> str | None:
    """Why diffusers cannot use the adapter as it was trained; None if it can."""
    along, pictures = split(adapter.references)
    if any(layout.temporal_scale != 1 for layout in along):
        return f"it does not support {TEMPORAL}"
    if len({layout.downscale for layout in along}) > 1:
        return f"its pipeline has one `reference_downscale_factor` for all references, unlike {_with_factors(along)}"
    small = [layout for layout in pictures if layout.downscale > 1]
    if small:
        return f"its pictures at a frame (`conditions`) have the size of the clip, unlike {_with_factors(small)}"
    between = [layout for layout in pictures if frame_number(adapter, layout) % LATENT_FRAME != 1]
    if between:
        return f"it places pictures at the frames 1, 9, 17, ... only, and {_with_frames(between)}"
    return diffusers_strengths(adapter.references)


def comfyui_limit(adapter: Adapter) -> str | None:
    """Why ComfyUI cannot use the adapter as it was trained, or needs custom nodes; None if its own nodes can."""
    slow = [layout for layout in adapter.references if layout.temporal_scale != 1]
    if slow:
        return f"its nodes do not support references with fewer frames per second ({slow[0].name})"
    others = with_own_factor(adapter.references)
    too_large = [layout for layout in with_own_guide(adapter.references) if layout.downscale > LARGEST_OWN_FACTOR]
    if too_large:
        return f"no guide node takes the factor of {_with_factors(too_large)}"
    if others:
        return (
            f"its own guide node takes the factor 1 or that of the file, {adapter.downscale}, unlike "
            f"{_with_factors(others)}; there the workflow has the guide node of ComfyUI-LTXVideo, whose factor is an "
            "input"
        )
    return comfyui_strengths(adapter.references)


def loader_limits(adapter: Adapter) -> Iterator[str]:
    """A line for each published program that cannot use the references, their strengths, the given parts that come from
    the data, or the audio reference, as they were trained with its own means, and one if none of them reads the learned
    slots."""
    if adapter.slots is not None:
        yield LIMIT
    named: list[str] = []
    limits = (("ltx-pipelines", ltx_pipelines_limit), ("ComfyUI", comfyui_limit), ("diffusers", diffusers_limit))
    for program, limit in limits if adapter.references else ():
        reason = limit(adapter)
        if reason is not None:
            named.append(program)
            yield f"{program} cannot use this adapter as it is: {reason}"
    yield from varied_limits(adapter.references, named)
    mask = data_mask(conditions_of(adapter.metadata))
    if mask is not None and mask.usual:
        for program, reason in mask_limits(str(mask.mode)):
            yield f"{program} cannot give the mask of this adapter as it was trained: {reason}"
    yield from sound_limits(adapter.metadata)


def mask_limits(mode: str) -> Iterator[tuple[str, str]]:
    """The published programs that cannot give a mask with frames of its own, and why. mode: of the mask's cells."""
    for program in ("ltx-pipelines", "diffusers"):
        yield program, "it has no option for clean tokens by mask; use `python -m iclora_train.generate`"
    cells = {
        "any": "",
        "half": ", and keeps a cell of which exactly half of the pixels are white",
        "all": ", and makes a cell anew from 99 % of white pixels on",
    }[mode]
    yield "ComfyUI", f"the workflow takes one picture for all frames{cells}"


def latent_index(frame: int) -> int:
    """The latent frame that begins at a frame 1, 9, 17, ... of the video."""
    return (frame - 1) // LATENT_FRAME + 1


def _with_factors(layouts: Layouts) -> str:
    return ", ".join(f"{layout.name} (factor {layout.downscale})" for layout in layouts)


def _with_frames(layouts: Layouts) -> str:
    verb = "begins" if len(layouts) == 1 else "begin"
    names = ", ".join(layout.name for layout in layouts)
    return f"{names} {verb} at {', '.join(frame_in_words(layout.frame) for layout in layouts)}"
