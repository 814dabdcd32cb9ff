"""Which strengths and attention strengths of training (`ReferenceUse`) the published programs can give each reference.

Read in their code in August 2026. ltx-pipelines has a strength for each `--video-conditioning` and `--image`, but one
attention strength and one mask for all references, and none for pictures (`--conditioning-attention-mask`). diffusers
adds (1 - w) * -10000 to the logits for an attention weight w, so that 0.99 acts as 0, and for a strength between 0 and
1 its clean estimate is another one (docs/adapters.md). ComfyUI's own guide node has one number for both strengths; the
guide nodes of ComfyUI-LTXVideo have one for each, and a mask.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from iclora_train.adapters.comfyui_references import with_two_strengths
from iclora_train.adapters.references import ReferenceLayout

Layouts = Sequence[ReferenceLayout]
_TWO_NUMBERS = "its own guide node has one strength, which sets noise level and attention together"


def ltx_pipelines_strengths(along: Layouts, pictures: Layouts) -> str | None:
    """Why ltx-pipelines cannot give references along the video, and pictures at a frame, their usual strengths."""
    weak = [layout for layout in pictures if layout.use.usual_attention < 1]
    if weak:
        return f"its pictures at a frame (`--image`) have no attention strength, unlike {_with_attention(weak)}"
    if len({layout.use.usual_attention for layout in along}) > 1:
        return f"its IC-LoRA pipeline has one attention strength for all references, unlike {_with_attention(along)}"
    return None


def diffusers_strengths(layouts: Layouts) -> str | None:
    """Why diffusers cannot give references their usual strengths."""
    weak = [layout for layout in layouts if layout.use.usual_attention < 1]
    if weak:
        return f"an attention strength between 0 and 1 acts as 0, unlike {_with_attention(weak)}"
    noisy = [layout for layout in layouts if layout.use.usual_strength < 1]
    if noisy:
        names = ", ".join(f"{layout.name} (strength {layout.use.usual_strength:g})" for layout in noisy)
        return f"with a reference strength between 0 and 1 it samples in another way than it was trained for: {names}"
    return None


def comfyui_strengths(layouts: Layouts) -> str | None:
    """Why ComfyUI's own nodes cannot give references their usual strengths."""
    custom = with_two_strengths(layouts)
    if not custom:
        return None
    of_both = ((layout.name, *layout.use.usual) for layout in custom)
    names = ", ".join(f"{name} (strength {of:g}, attention strength {weight:g})" for name, of, weight in of_both)
    return f"{_TWO_NUMBERS}, unlike {names}; there the workflow has a guide node of ComfyUI-LTXVideo"


def varied_limits(layouts: Layouts, named: Container[str] = ()) -> Iterator[str]:
    """A line for each program that cannot give every reference each of the strengths and masks that training drew.

    named: programs of which the reader knows that they cannot use the adapter as it is.
    """
    varied = [layout.name for layout in layouts if _is_varied(layout)]
    if not varied:
        return
    attention = [layout for layout in layouts if _varies_attention(layout)]
    reasons = {"ComfyUI": f"{_TWO_NUMBERS}; those of ComfyUI-LTXVideo have both, and a mask"}
    if attention and len(layouts) > 1:
        reasons["ltx-pipelines"] = "it has one attention strength and one attention mask for all references"
    reasons["diffusers"] = (
        "attention strengths and masks between 0 and 1 act as 0"
        if attention
        else "strengths between 0 and 1 give other results"
    )
    for program, reason in reasons.items():
        if program not in named:
            names = ", ".join(varied)
            yield f"{program} cannot use all of the strengths and masks that {names} had in training: {reason}"


def _varies_attention(layout: ReferenceLayout) -> bool:
    attention, mask = layout.use.drawn_attention, layout.use.region_mask_p
    return bool(mask) or (attention is not None and attention.p > 0 and attention.low < layout.use.usual_attention)


def _is_varied(layout: ReferenceLayout) -> bool:
    strength = layout.use.drawn_strength
    return _varies_attention(layout) or (strength is not None and strength.low < strength.high)


def _with_attention(layouts: Layouts) -> str:
    return ", ".join(f"{layout.name} (attention strength {layout.use.usual_attention:g})" for layout in layouts)
