"""Nodes that give a ComfyUI workflow the parts of the video that the adapter was trained with (`task.conditions`).

As in training, the parts are clean in place: their latents stand in the video's latent, and the noise mask is 0 there,
so that ComfyUI gives their tokens timestep 0 and never changes them. `LTXVImgToVideoInplace` does this for a picture or
a clip with which the video begins. No node does it for an end, so its latents are cut and joined. The noise mask of an
end or of a part of the picture is a picture per latent frame, of the size of the latent; white is made anew.
`SetLatentNoiseMask` replaces the whole mask and `LTXVAddGuide` cannot read such a mask, so it follows the guide, and
the mask ends with black pictures for the guide's latent frames. The guide of a smaller reference has cells that the
model must drop, marked by negative values of the noise mask. No other node of ComfyUI writes these: then only a
beginning is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from iclora_train.adapters.comfyui_base import Link, WorkflowNode
from iclora_train.adapters.comfyui_nodes import Value
from iclora_train.config.conditions import Condition, data_mask
from iclora_train.diffusion.clean_cells import usual_latent_frames

CELL, FRAMES = 32, 8  # pixels and frames per latent cell of every published LTX-2 VAE
# share of a cell's pixels above which `ThresholdMask` makes it anew, by mode of the mask; its input has steps of 0.01
THRESHOLDS = {"any": 0.0, "half": 0.5, "all": 0.99}
Nodes = dict[str, WorkflowNode]
Size = tuple[int, int, int]  # width, height, frames of the video, in pixels


@dataclass(frozen=True)
class GivenParts:
    """Latent frames of the beginning and of the end that are given; and whether all but a part of the picture is.

    mode: share of a cell's pixels in that part from which the cell is made anew (`Condition.mode`). moves: whether the
    part could move in training.
    """

    beginning: int = 0
    end: int = 0
    mask: bool = False
    mode: str = "any"
    moves: bool = False

    @classmethod
    def usual(cls, conditions: Sequence[Condition]) -> GivenParts:
        """The parts that validation and eval give."""
        usual = {condition.kind: condition for condition in conditions if condition.usual}
        prefix, suffix = usual.get("prefix"), usual.get("suffix")
        beginning = usual_latent_frames(prefix, FRAMES) if prefix else int("first_frame" in usual)
        parts = cls(beginning, usual_latent_frames(suffix, FRAMES) if suffix else 0, "mask" in usual)
        mask = data_mask(list(usual.values()))
        return parts if mask is None else replace(parts, mode=str(mask.mode), moves=True)

    @property
    def needs_mask(self) -> bool:
        """Whether `noise_mask` has to be set by `SetLatentNoiseMask`."""
        return self.mask or self.end > 0

    @property
    def clip(self) -> str | None:
        """Title of the node with frame rate and sound of the clip that is given; None without one, or for a picture."""
        if self.mask:
            return "source frames"
        return "beginning frames" if self.beginning > 1 else "end frames" if self.end else None

    def without_mask(self) -> GivenParts:
        """Only the beginning, which needs no `SetLatentNoiseMask`."""
        return replace(self, end=0, mask=False, mode="any", moves=False)

    def notes(self) -> list[str]:
        """What the user has to select in the workflow, and which frames of it are taken."""
        begin, end = FRAMES * (self.beginning - 1) + 1, FRAMES * self.end
        lines = []
        if self.mask:
            lines.append(
                "source: the clip to change, at least as long as the video. mask: a picture of its size; what is white "
                "is made anew."
            )
            if self.moves:
                lines.append("The mask stands still here; those of training could move.")
            if self.beginning or self.end:
                parts = [f"the first {begin}"] * (self.beginning > 0) + [f"the last {end}"] * (self.end > 0)
                lines.append(f"Of the source, {' and '.join(parts)} frames stay as a whole.")
        elif self.beginning == 1:
            lines.append("first frame: the picture with which the video begins.")
        elif self.beginning:
            lines.append(
                f"beginning: the clip with which the video begins. Its first {begin} frames are taken: trim it so that "
                "they are the ones to go on from."
            )
        if self.end and not self.mask:
            lines.append(f"end: the clip with which the video ends. Its frames 1 to {end} become the last {end}.")
        return lines


NOTHING = GivenParts()


def scaled(source: str, method: str, width: int, height: int) -> WorkflowNode:
    """The pictures of a node, cropped at the centre to the aspect ratio of width x height and scaled to it."""
    size = {"width": width, "height": height}
    return WorkflowNode(
        "ImageScale", {"image": Link(source, "IMAGE"), "upscale_method": method, **size, "crop": "center"}
    )


def given_latent(given: GivenParts, size: Size, vae: Link) -> tuple[Nodes, Link]:
    """The latent of the video with the given parts in it, before a guide."""
    width, height, frames = size
    if given.mask:
        nodes = _clip("source", frames, size)
        nodes["source latent"] = _encoded("resized source", vae)
        return nodes, Link("source latent", "LATENT")
    empty = WorkflowNode("EmptyLTXVLatentVideo", {"width": width, "height": height, "length": frames})
    nodes, latent = {"empty video": empty}, Link("empty video", "LATENT")
    if given.beginning:
        nodes |= _beginning(given.beginning, size)
        inputs: dict[str, Value | Link] = {"vae": vae, "image": Link("resized beginning", "IMAGE"), "latent": latent}
        nodes["given beginning"] = WorkflowNode("LTXVImgToVideoInplace", inputs)
        latent = Link("given beginning", "latent")
    if given.end:
        nodes |= _clip("end", FRAMES * given.end + 1, size)
        nodes["end latent"] = _encoded("resized end", vae)
        nodes["end without its first frame"] = _cut(Link("end latent", "LATENT"), 1, given.end)
        nodes["video before its end"] = _cut(latent, 0, latent_frames(frames) - given.end)
        parts = {"samples1": "video before its end", "samples2": "end without its first frame"}
        links = {name: Link(title, "LATENT") for name, title in parts.items()}
        nodes["given end"] = WorkflowNode("LatentConcat", {**links, "dim": "t"})
        latent = Link("given end", "LATENT")
    return nodes, latent


def noise_mask(given: GivenParts, size: Size, guide_frames: int, latent: Link) -> tuple[Nodes, Link]:
    """The latent with the noise mask of the given parts. guide_frames: latent frames that a guide has appended."""
    if not given.needs_mask:
        return {}, latent
    width, height, frames = size
    cells = (width // CELL, height // CELL)
    nodes = _new_cells(cells, THRESHOLDS[given.mode]) if given.mask else {"new cells": _solid(1.0, cells)}
    mask = Link("new cells", "MASK")
    after = given.end + guide_frames
    if given.beginning or after:
        nodes |= _repeated("new", latent_frames(frames) - given.beginning - given.end)
        nodes["kept cells"] = _solid(0.0, cells)
        last = "new pictures"
        if given.beginning:
            nodes |= _repeated("kept", given.beginning, "before")
            nodes["from the beginning"] = _joined("kept pictures before", last)
            last = "from the beginning"
        if after:
            nodes |= _repeated("kept", after, "after")
            nodes["to the end"] = _joined(last, "kept pictures after")
            last = "to the end"
        nodes["mask by latent frame"] = _to_mask(last)
        mask = Link("mask by latent frame", "MASK")
    nodes["given parts"] = WorkflowNode("SetLatentNoiseMask", {"samples": latent, "mask": mask})
    return nodes, Link("given parts", "LATENT")


def latent_frames(frames: int) -> int:
    """Latent frames of a clip: the first holds one frame."""
    return (frames - 1) // FRAMES + 1


def _clip(name: str, length: int, size: Size) -> Nodes:
    """The first `length` frames of a video file, at the video's size."""
    return {
        name: WorkflowNode("LoadVideo", {"file": f"{name}.mp4"}),
        f"{name} frames": WorkflowNode("GetVideoComponents", {"video": Link(name, "VIDEO")}),
        f"first frames of {name}": WorkflowNode(
            "ImageFromBatch", {"image": Link(f"{name} frames", "images"), "length": length}
        ),
        f"resized {name}": scaled(f"first frames of {name}", "lanczos", *size[:2]),
    }


def _beginning(count: int, size: Size) -> Nodes:
    """`count` latent frames with which the video begins: a clip, or a picture for one."""
    if count > 1:
        return _clip("beginning", FRAMES * (count - 1) + 1, size)
    return {
        "first frame": WorkflowNode("LoadImage", {"image": "first.png"}),
        "resized beginning": scaled("first frame", "lanczos", *size[:2]),
    }


def _new_cells(cells: tuple[int, int], share: float) -> Nodes:
    """The cells of a mask that are made anew: more than a share of their pixels are more white than black, as in
    `generate`."""
    return {
        "mask": WorkflowNode("LoadImage", {"image": "mask.png"}),
        "brightness of the mask": _to_mask("mask"),
        "white pixels": _threshold("brightness of the mask", 0.5),
        "picture of white pixels": _to_picture("white pixels"),
        "share of white pixels": scaled("picture of white pixels", "area", *cells),
        "share of a cell": _to_mask("share of white pixels"),
        "new cells": _threshold("share of a cell", share),
    }


def _repeated(kind: str, count: int, where: str = "") -> Nodes:
    """Pictures of `kind` cells (new or kept) for `count` latent frames."""
    title = f"{kind} pictures {where}".strip()
    return {
        f"picture for {title}": _to_picture(f"{kind} cells"),
        title: WorkflowNode("RepeatImageBatch", {"image": Link(f"picture for {title}", "IMAGE"), "amount": count}),
    }


def _encoded(pictures: str, vae: Link) -> WorkflowNode:
    return WorkflowNode("VAEEncode", {"pixels": Link(pictures, "IMAGE"), "vae": vae})


def _cut(latent: Link, first: int, count: int) -> WorkflowNode:
    return WorkflowNode("LatentCut", {"samples": latent, "dim": "t", "index": first, "amount": count})


def _solid(value: float, cells: tuple[int, int]) -> WorkflowNode:
    return WorkflowNode("SolidMask", {"value": value, "width": cells[0], "height": cells[1]})


def _threshold(mask: str, value: float) -> WorkflowNode:
    return WorkflowNode("ThresholdMask", {"mask": Link(mask, "MASK"), "value": value})


def _to_picture(mask: str) -> WorkflowNode:
    return WorkflowNode("MaskToImage", {"mask": Link(mask, "MASK")})


def _to_mask(pictures: str) -> WorkflowNode:
    return WorkflowNode("ImageToMask", {"image": Link(pictures, "IMAGE"), "channel": "red"})


def _joined(first: str, second: str) -> WorkflowNode:
    return WorkflowNode("ImageBatch", {"image1": Link(first, "IMAGE"), "image2": Link(second, "IMAGE")})
