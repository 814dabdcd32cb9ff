"""Nodes that give a ComfyUI workflow the references of an adapter: a chain for each, and a guide node after another.

`LTXVAddGuide` takes the factor of its reference from the parameters that are connected to it: those of the adapter
file, which has one factor, or none, which is factor 1. A reference with a third factor needs the guide node of
ComfyUI-LTXVideo, whose factor is a number of its own. Its `strength` sets the noise level and the attention of a
reference together; a reference with two strengths that differ needs a guide node of ComfyUI-LTXVideo too.
"""

from __future__ import annotations

from collections.abc import Sequence

from iclora_train.adapters.comfyui_base import BaseNodes, Link, WorkflowNode
from iclora_train.adapters.comfyui_given import Nodes, Size, latent_frames, scaled
from iclora_train.adapters.comfyui_nodes import OWN_ATTENTION_GUIDE, OWN_FACTOR_GUIDE, Value
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.config import frame_from_start
from iclora_train.config.places import frame_in_words
from iclora_train.config.references import FIRST

Layouts = Sequence[ReferenceLayout]
LARGEST_OWN_FACTOR = 10  # of the guide node of ComfyUI-LTXVideo


def title(kind: str, layout: ReferenceLayout) -> str:
    """The title of a node: `guide` for the first reference, `guide: appearance` for a further one."""
    return kind if layout.name == FIRST else f"{kind}: {layout.name}"


def is_picture(layout: ReferenceLayout) -> bool:
    """Whether a reference has one frame. From frame 0 on it may have several."""
    return bool(layout.frame)


def clip_title(layouts: Layouts) -> str | None:
    """Title of the node with frame rate and sound of the first clip, one along the whole video first; None without."""
    clips = sorted((layout for layout in layouts if not is_picture(layout)), key=lambda layout: layout.frame == 0)
    return title("frames", clips[0]) if clips else None


def guide_frames(layouts: Layouts, frames: int) -> int | None:
    """Latent frames of all guides; None where they or their noise mask are not known, so that no other mask can be set:
    a smaller reference, one of any number of frames, and one that is not clean."""
    if any(layout.downscale > 1 or layout.frame == 0 or layout.use.usual_strength < 1 for layout in layouts):
        return None
    return sum(latent_frames(frames) if layout.frame is None else 1 for layout in layouts)


def with_own_factor(layouts: Layouts) -> list[ReferenceLayout]:
    """The references whose factor is neither 1 nor that of the adapter file, which is the first reference's."""
    return [layout for layout in layouts if layout.downscale not in (1, layouts[0].downscale)]


def with_two_strengths(layouts: Layouts) -> list[ReferenceLayout]:
    """The references whose usual strength and attention strength differ."""
    return [layout for layout in layouts if len(set(layout.use.usual)) > 1]


def with_own_guide(layouts: Layouts) -> list[ReferenceLayout]:
    """The references that only the guide nodes of ComfyUI-LTXVideo can give."""
    custom = [*with_own_factor(layouts), *with_two_strengths(layouts)]
    return [layout for layout in layouts if layout in custom]


def reference_nodes(layouts: Layouts, size: Size) -> Nodes:
    """The pictures of every guide, and the factor in the adapter file.

    Training makes a reference at the video's size and averages blocks of its pixels; so does the workflow, in two
    steps. The guide node would reduce a larger picture by bilinear interpolation, which skips pixels at a factor of 4.
    """
    nodes = {"reference factor": WorkflowNode("GetICLoRAParameters", {"iclora_model": Link("adapter", "MODEL")})}
    for layout in layouts:
        nodes |= _pictures(layout, size)
    return nodes


def _pictures(layout: ReferenceLayout, size: Size) -> Nodes:
    width, height, frames = size
    source, file = title("reference", layout), "reference" if layout.name == FIRST else layout.name
    if is_picture(layout):
        nodes = {source: WorkflowNode("LoadImage", {"image": f"{file}.png"})}
        pictures = source
    else:
        clip, pictures = title("frames", layout), title("first frames", layout)
        first: dict[str, Value | Link] = {"image": Link(clip, "images"), "length": frames}
        nodes = {
            source: WorkflowNode("LoadVideo", {"file": f"{file}.mp4"}),
            clip: WorkflowNode("GetVideoComponents", {"video": Link(source, "VIDEO")}),
            pictures: WorkflowNode("ImageFromBatch", first),
        }
    resized = title("resized reference", layout)
    nodes[resized] = scaled(pictures, "lanczos", width, height)
    if layout.downscale > 1:
        small = (width // layout.downscale, height // layout.downscale)
        nodes[title("reduced reference", layout)] = scaled(resized, "area", *small)
    return nodes


def guide_nodes(layouts: Layouts, frames: int, base: BaseNodes, latent: Link) -> Nodes:
    """A guide for every reference of a video of `frames` frames, each after the one before it."""
    nodes: Nodes = {}
    before = "frame rate"
    for number, layout in enumerate(layouts):
        pictures = "resized reference" if layout.downscale == 1 else "reduced reference"
        inputs: dict[str, Value | Link] = {
            "positive": Link(before, "positive"),
            "negative": Link(before, "negative"),
            "vae": base.video_vae,
            "latent": latent,
            "image": Link(title(pictures, layout), "IMAGE"),
        }
        if layout.frame is not None:  # behind guides, versions of ComfyUI count a negative number from different ends
            frame = layout.example_frame(frames)
            assert frame is not None
            inputs["frame_idx"] = frame_from_start("frame", frame, frames) if number else frame
        kind, own_inputs = _guide_kind(layout, layouts)
        inputs |= own_inputs
        before = title("guide", layout)
        nodes[before] = WorkflowNode(kind, inputs)
        latent = Link(before, "latent")
    return nodes


def _guide_kind(layout: ReferenceLayout, layouts: Layouts) -> tuple[str, dict[str, Value | Link]]:
    """The node that gives a reference, and its inputs for the factor and the usual strengths."""
    strength, attention = layout.use.usual
    inputs: dict[str, Value | Link] = {} if strength == 1 else {"strength": strength}
    if layout in with_own_guide(layouts):
        inputs["latent_downscale_factor"] = float(layout.downscale)
        if attention == 1:
            return OWN_FACTOR_GUIDE, inputs
        return OWN_ATTENTION_GUIDE, inputs | {"attention_strength": attention}
    if layout.downscale == layouts[0].downscale:
        inputs["iclora_parameters"] = Link("reference factor", "iclora_parameters")
    return "LTXVAddGuide", inputs


def what_to_select(layouts: Layouts) -> list[str]:
    """A line for each of several references, and which custom nodes the workflow needs."""
    lines = []
    for layout in layouts:
        kind = f"a picture, which stands at frame {layout.frame}" if is_picture(layout) else "a clip"
        if layout.frame == 0:
            kind = "a picture as a clip of one frame, or a clip, from frame 0 on"
        if layout.is_drawn:
            kind = f"a picture, at {frame_in_words(layout.frame)}: set `frame_idx` of the node {title('guide', layout)}"
        if layout.is_drawn or len(layouts) > 1:
            lines.append(f"{title('reference', layout)}: {kind}.")
        if words := layout.use.in_words:
            lines.append(f"{title('guide', layout)}: in training {words}.")
    if custom := with_own_factor(layouts):
        names = ", ".join(layout.name for layout in custom)
        lines.append(
            f"This workflow needs the custom nodes of ComfyUI-LTXVideo for {names}: ComfyUI's own guide node takes the "
            f"factor 1 or that of the adapter file, {layouts[0].downscale}."
        )
    if custom := with_two_strengths(layouts):
        names = ", ".join(layout.name for layout in custom)
        lines.append(
            f"This workflow needs the custom nodes of ComfyUI-LTXVideo for {names}: ComfyUI's own guide node has one "
            "strength, which sets noise level and attention together."
        )
    return lines
