"""The ComfyUI workflow that uses an adapter, as a graph of nodes; `comfyui_json` writes it in ComfyUI's formats.

The workflow loads the distilled base, the adapter and the reference clip. The first frames of the reference are cropped
and scaled to the trained size, then averaged over blocks of factor x factor pixels, as in training. They become a guide
of an empty video; a node reads the factor from the adapter file. After sampling, the guide is removed, and the clip is
decoded and saved. For an adapter that takes no reference there is neither a reference nor a guide. All nodes are part
of ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iclora_train.adapters.comfyui_base import BaseNodes, Link, WorkflowNode, load_base
from iclora_train.adapters.comfyui_nodes import Value
from iclora_train.adapters.metadata import (
    DOWNSCALE,
    FAMILY,
    KIND,
    MAX_FPS,
    PLAIN,
    TEMPORAL,
    VERSION,
    factor,
    metadata_findings,
    reference_frame,
    shown,
    trained_fps,
)
from iclora_train.config import ConfigError
from iclora_train.data.prompts import example_prompt
from iclora_train.diffusion.noise_schedule import DISTILLED
from iclora_train.ltx2.weights.versions import VERSIONS

_CELL, _FRAMES = 32, 8  # pixels and frames per latent cell of every published LTX-2 VAE
_PLAIN_FPS = 24.0  # of a clip without a reference whose adapter does not name the rate of its clips
_MAX_SIDE, _MAX_FRAMES = 16384, 1000  # of ComfyUI's nodes: MAX_RESOLUTION, empty audio


@dataclass(frozen=True)
class WorkflowSettings:
    """The settings of a workflow. file: name of the adapter file. fps: None for the reference clip's frame rate.

    prompt: an example. downscale: factor by which the reference is smaller than the video, in height and width.
    reference: whether the adapter takes one.
    reference_frame: the frame at which a reference of one frame stands, negative from the end; None: it has all frames.
    """

    file: str
    version: str
    prompt: str
    width: int
    height: int
    frames: int
    downscale: int
    fps: float | None = None
    reference: bool = True
    reference_frame: int | None = None

    @classmethod
    def from_metadata(
        cls, path: Path, metadata: Mapping[str, str], size: str | None = None, fps: float | None = None
    ) -> WorkflowSettings:
        """The settings from an adapter's metadata; size (`width x height x frames`) overrides it.

        As in `iclora_train.generate`, the frame rate is the reference clip's unless fps is given; without a reference
        that of the training clips. ConfigError with the reason if ComfyUI cannot run the adapter.
        """
        if metadata.get(FAMILY) != "ltx" or metadata.get(VERSION) not in VERSIONS:
            raise ConfigError(
                f"{path}: ComfyUI cannot run {shown(metadata.get(FAMILY)) or 'an undeclared base'} "
                f"{shown(metadata.get(VERSION))}, only the published LTX models"
            )
        if metadata.get(TEMPORAL, "1") != "1":
            raise ConfigError(
                f"{path}: ComfyUI's nodes do not support {TEMPORAL}, which is {metadata[TEMPORAL]} for this adapter"
            )
        for finding in metadata_findings(metadata):
            raise ConfigError(f"{path}: {finding}")
        downscale = factor(metadata, DOWNSCALE)
        if fps is not None and not 1 <= fps <= MAX_FPS:
            raise ConfigError(f"--fps {fps:g} must be between 1 and {MAX_FPS}, the limits of ComfyUI's CreateVideo")
        width, height, frames = _clip_size(path, size or metadata.get("size", ""), downscale)
        prompt = example_prompt(metadata, "describe the clip here")
        reference = metadata.get(KIND) != PLAIN
        fps = fps if reference or fps is not None else trained_fps(metadata) or _PLAIN_FPS
        place = reference_frame(metadata)
        return cls(path.name, metadata[VERSION], prompt, width, height, frames, downscale, fps, reference, place)


def _clip_size(path: Path, size: str, downscale: int) -> tuple[int, int, int]:
    """Width, height and frames from `width x height x frames`. ConfigError if the VAE or ComfyUI cannot make them."""
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})", size)
    if match is None:
        raise ConfigError(f"{path}: the size is unknown; give --size as width x height x frames, e.g. 960x544x121")
    width, height, frames = map(int, match.groups())
    step = _CELL * downscale
    sides_fit = all(side % step == 0 and 2 * _CELL <= side <= _MAX_SIDE for side in (width, height))
    if not sides_fit or frames % _FRAMES != 1 or frames > _MAX_FRAMES:
        raise ConfigError(
            f"{path}: size {size} must be a multiple of {step} pixels ({DOWNSCALE}={downscale}), from {2 * _CELL} to "
            f"{_MAX_SIDE}, and {_FRAMES}k+1 frames, at most {_MAX_FRAMES}: give another --size"
        )
    return width, height, frames


def build_workflow(settings: WorkflowSettings) -> dict[str, WorkflowNode]:
    """All nodes by title, in the order of the computation: load, condition, sample, decode, save."""
    base = load_base(VERSIONS[settings.version].comfyui)
    return (
        base.nodes
        | _adapter(settings)
        | (_reference(settings) if settings.reference else {})
        | _conditioning(settings, base)
        | (_guide(settings, base) if settings.reference else {})
        | _audio(settings, base)
        | _sampling(settings)
        | _saving(settings, base)
    )


def _link(text: str) -> Link:
    """`node.output` -> link."""
    return Link(*text.split("."))


def _fps(settings: WorkflowSettings) -> Value | Link:
    return _link("frames.fps") if settings.fps is None else settings.fps


def _conditioned(settings: WorkflowSettings, output: str) -> Link:
    """`positive` or `negative` of the last node that changes the conditioning."""
    return Link("guide" if settings.reference else "frame rate", output)


def _adapter(settings: WorkflowSettings) -> dict[str, WorkflowNode]:
    inputs: dict[str, Value | Link] = {"model": _link("base.MODEL"), "lora_name": settings.file}
    return {"adapter": WorkflowNode("LoraLoaderModelOnly", inputs)}


def _reference(settings: WorkflowSettings) -> dict[str, WorkflowNode]:
    """The pictures of the guide.

    Training makes the reference at the video's size and averages blocks of its pixels; so does the workflow, in two
    steps. The guide node would reduce a larger picture by bilinear interpolation, which skips pixels at a factor of 4.
    """
    width, height = settings.width, settings.height
    length = settings.frames if settings.reference_frame is None else 1
    nodes = {
        "reference factor": WorkflowNode("GetICLoRAParameters", {"iclora_model": _link("adapter.MODEL")}),
        "reference": WorkflowNode("LoadVideo", {"file": "reference.mp4"}),
        "frames": WorkflowNode("GetVideoComponents", {"video": _link("reference.VIDEO")}),
        "first frames": WorkflowNode("ImageFromBatch", {"image": _link("frames.images"), "length": length}),
        "resized reference": _scaled("first frames", "lanczos", width, height),
    }
    if settings.downscale > 1:
        small = (width // settings.downscale, height // settings.downscale)
        nodes["reduced reference"] = _scaled("resized reference", "area", *small)
    return nodes


def _scaled(source: str, method: str, width: int, height: int) -> WorkflowNode:
    """The pictures of a node, cropped at the centre to the aspect ratio of width x height and scaled to it."""
    size = {"width": width, "height": height}
    return WorkflowNode(
        "ImageScale", {"image": Link(source, "IMAGE"), "upscale_method": method, **size, "crop": "center"}
    )


def _conditioning(settings: WorkflowSettings, base: BaseNodes) -> dict[str, WorkflowNode]:
    clip = _link("text encoder.CLIP")
    return {
        "prompt": WorkflowNode("CLIPTextEncode", {"text": settings.prompt, "clip": clip}),
        "empty negative prompt": WorkflowNode("CLIPTextEncode", {"text": "", "clip": clip}),
        "frame rate": WorkflowNode(
            "LTXVConditioning",
            {
                "positive": _link("prompt.CONDITIONING"),
                "negative": _link("empty negative prompt.CONDITIONING"),
                "frame_rate": _fps(settings),
            },
        ),
        "empty video": WorkflowNode(
            "EmptyLTXVLatentVideo", {"width": settings.width, "height": settings.height, "length": settings.frames}
        ),
    }


def _guide(settings: WorkflowSettings, base: BaseNodes) -> dict[str, WorkflowNode]:
    return {
        "guide": WorkflowNode(
            "LTXVAddGuide",
            {
                "positive": _link("frame rate.positive"),
                "negative": _link("frame rate.negative"),
                "vae": base.video_vae,
                "latent": _link("empty video.LATENT"),
                "image": Link("resized reference" if settings.downscale == 1 else "reduced reference", "IMAGE"),
                "iclora_parameters": _link("reference factor.iclora_parameters"),
                **({} if settings.reference_frame is None else {"frame_idx": settings.reference_frame}),
            },
        ),
    }


def _audio(settings: WorkflowSettings, base: BaseNodes) -> dict[str, WorkflowNode]:
    """The model computes video and audio together. Its audio is discarded; a reference's is used."""
    latent = _link("guide.latent" if settings.reference else "empty video.LATENT")
    return {
        "empty audio": WorkflowNode(
            "LTXVEmptyLatentAudio",
            {"frames_number": settings.frames, "frame_rate": _fps(settings), "audio_vae": base.audio_vae},
        ),
        "video and audio": WorkflowNode(
            "LTXVConcatAVLatent",
            {"video_latent": latent, "audio_latent": _link("empty audio.Latent")},
        ),
    }


def _sampling(settings: WorkflowSettings) -> dict[str, WorkflowNode]:
    return {
        "noise": WorkflowNode("RandomNoise", {"noise_seed": 0}),
        "sampler": WorkflowNode("KSamplerSelect", {"sampler_name": "euler"}),
        "sigmas": WorkflowNode("ManualSigmas", {"sigmas": ", ".join(map(str, DISTILLED))}),
        "guider": WorkflowNode(
            "CFGGuider",
            {
                "model": _link("adapter.MODEL"),
                "positive": _conditioned(settings, "positive"),
                "negative": _conditioned(settings, "negative"),
                "cfg": 1.0,
            },
        ),
        "sample": WorkflowNode(
            "SamplerCustomAdvanced",
            {
                "noise": _link("noise.NOISE"),
                "guider": _link("guider.GUIDER"),
                "sampler": _link("sampler.SAMPLER"),
                "sigmas": _link("sigmas.SIGMAS"),
                "latent_image": _link("video and audio.latent"),
            },
        ),
    }


def _saving(settings: WorkflowSettings, base: BaseNodes) -> dict[str, WorkflowNode]:
    sampled = _link("video only.video_latent")
    without_guide = WorkflowNode(
        "LTXVCropGuides",
        {"positive": _link("guide.positive"), "negative": _link("guide.negative"), "latent": sampled},
    )
    video = _link("remove guide.latent") if settings.reference else sampled
    audio: dict[str, Value | Link] = {"audio": _link("frames.audio")} if settings.reference else {}
    clip: dict[str, Value | Link] = {"images": _link("decode.IMAGE"), "fps": _fps(settings), **audio}
    return {
        "video only": WorkflowNode("LTXVSeparateAVLatent", {"av_latent": _link("sample.output")}),
        **({"remove guide": without_guide} if settings.reference else {}),
        "decode": WorkflowNode("VAEDecodeTiled", {"samples": video, "vae": base.video_vae}),
        "clip": WorkflowNode("CreateVideo", clip),
        "save": WorkflowNode("SaveVideo", {"video": _link("clip.VIDEO"), "filename_prefix": Path(settings.file).stem}),
    }
