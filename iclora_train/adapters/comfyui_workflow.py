"""The ComfyUI workflow that uses an adapter, as a list of steps; `comfy_forms` writes them as ComfyUI reads them.

Load the distilled base, the adapter and the reference clip; put the first frames of the reference beside an empty
video, scaled by the factor that the adapter's loader read; sample, take the reference off, decode, save.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iclora_train.adapters.base_spec import FAMILY, VERSION
from iclora_train.adapters.comfyui_nodes import Value
from iclora_train.adapters.file import DOWNSCALE, TEMPORAL
from iclora_train.config import ConfigError
from iclora_train.diffusion.noise_schedule import DISTILLED

_CELL, _FRAMES = 32, 8  # pixels and frames of a latent cell of every published LTX-2 VAE
_GEMMA3 = "gemma_3_12B_it.safetensors"


@dataclass(frozen=True)
class Link:
    """The output of another step."""

    step: str
    output: str


@dataclass(frozen=True)
class Step:
    """A node and what its inputs are given; inputs that are not named keep their default."""

    node: str
    inputs: dict[str, Value | Link]


@dataclass(frozen=True)
class WorkflowSettings:
    """What a workflow has to know of an adapter. fps=None: the reference clip's own."""

    file: str
    version: str
    trigger: str
    width: int
    height: int
    frames: int
    fps: float | None

    @classmethod
    def of(
        cls, path: Path, metadata: Mapping[str, str], size: str | None = None, fps: float | None = None
    ) -> WorkflowSettings:
        """From an adapter's metadata; size (`width x height x frames`) and fps override it. ConfigError if ComfyUI
        cannot run it, with the reason."""
        if metadata.get(FAMILY) != "ltx" or metadata.get(VERSION) not in CHECKPOINTS:
            raise ConfigError(
                f"{path}: ComfyUI has no {metadata.get(FAMILY)} {metadata.get(VERSION)}, only LTX-2 bases"
            )
        if metadata.get(TEMPORAL, "1") != "1":
            raise ConfigError(f"{path}: ComfyUI's nodes know no {TEMPORAL}, and this adapter has {metadata[TEMPORAL]}")
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", size or metadata.get("size", ""))
        if match is None:
            raise ConfigError(f"{path}: no size known; give --size as width x height x frames, e.g. 960x544x121")
        width, height, frames = map(int, match.groups())
        step = _CELL * int(metadata[DOWNSCALE])
        if width % step or height % step or frames % _FRAMES != 1:
            raise ConfigError(
                f"{path}: size {match[0]} must be a multiple of {step} pixels ({DOWNSCALE}={metadata[DOWNSCALE]}) and "
                f"{_FRAMES}k+1 frames: give another --size"
            )
        known = metadata.get("fps", "")
        own = float(known) if re.fullmatch(r"\d+(\.\d+)?", known) else None
        trigger = metadata.get("trigger", "")
        return cls(path.name, metadata[VERSION], trigger, width, height, frames, own if fps is None else fps)


@dataclass(frozen=True)
class BaseNodes:
    """The steps that load a base, and which outputs are the two VAEs."""

    steps: dict[str, Step]
    video_vae: Link
    audio_vae: Link


def _unified(checkpoint: str) -> BaseNodes:
    """Of a base in one file (2.0, 2.3)."""
    loading = {
        "base": Step("CheckpointLoaderSimple", {"ckpt_name": checkpoint}),
        "text encoder": Step("LTXAVTextEncoderLoader", {"text_encoder": _GEMMA3, "ckpt_name": checkpoint}),
        "audio vae": Step("LTXVAudioVAELoader", {"ckpt_name": checkpoint}),
    }
    return BaseNodes(loading, Link("base", "VAE"), Link("audio vae", "Audio VAE"))


_SPLIT: dict[str, Step] = {  # of a base in one file per part (2.5)
    "base": Step("UNETLoader", {"unet_name": "ltx-2.5-22b-distilled-transformer-bf16.safetensors"}),
    "text encoder": Step("CLIPLoader", {"clip_name": "gemma4-12b-with-proj-ltx-2.5-bf16.safetensors", "type": "ltxv"}),
    "video vae": Step("VAELoader", {"vae_name": "ltx-2.5-video-vae-conv-bf16.safetensors"}),
    "audio vae": Step("VAELoader", {"vae_name": "ltx-2.5-audio-vae-bf16.safetensors"}),
}

CHECKPOINTS = {  # by version, with the names of the published distilled files
    "2.0": _unified("ltx-2-19b-distilled.safetensors"),
    "2.3": _unified("ltx-2.3-22b-distilled-1.1.safetensors"),
    "2.5": BaseNodes(_SPLIT, Link("video vae", "VAE"), Link("audio vae", "VAE")),
}


def steps(recipe: WorkflowSettings) -> dict[str, Step]:
    """Load, condition, sample, decode, save: title -> step, in the order of the computation."""
    return _loading(recipe) | _conditioning(recipe) | _audio(recipe) | _sampling() | _saving(recipe)


def _wire(text: str) -> Link:
    """`step.output` as a wire."""
    return Link(*text.split("."))


def _fps(recipe: WorkflowSettings) -> Value | Link:
    return _wire("frames.fps") if recipe.fps is None else recipe.fps


def _loading(recipe: WorkflowSettings) -> dict[str, Step]:
    scaled: dict[str, Value | Link] = {"upscale_method": "lanczos", "crop": "center"}
    return {
        **CHECKPOINTS[recipe.version].steps,
        "adapter": Step("LTXICLoRALoaderModelOnly", {"model": _wire("base.MODEL"), "lora_name": recipe.file}),
        "reference": Step("LoadVideo", {"file": "reference.mp4"}),
        "frames": Step("GetVideoComponents", {"video": _wire("reference.VIDEO")}),
        "first frames": Step("ImageFromBatch", {"image": _wire("frames.images"), "length": recipe.frames}),
        "reference in size": Step(
            "ImageScale",
            {"image": _wire("first frames.IMAGE"), "width": recipe.width, "height": recipe.height, **scaled},
        ),
    }


def _conditioning(recipe: WorkflowSettings) -> dict[str, Step]:
    prompt = f"{recipe.trigger} describe the clip here".strip()
    clip = _wire("text encoder.CLIP")
    return {
        "prompt": Step("CLIPTextEncode", {"text": prompt, "clip": clip}),
        "no negative prompt": Step("CLIPTextEncode", {"text": "", "clip": clip}),
        "frame rate": Step(
            "LTXVConditioning",
            {
                "positive": _wire("prompt.CONDITIONING"),
                "negative": _wire("no negative prompt.CONDITIONING"),
                "frame_rate": _fps(recipe),
            },
        ),
        "empty video": Step(
            "EmptyLTXVLatentVideo", {"width": recipe.width, "height": recipe.height, "length": recipe.frames}
        ),
        "guide": Step(
            "LTXAddVideoICLoRAGuide",
            {
                "positive": _wire("frame rate.positive"),
                "negative": _wire("frame rate.negative"),
                "vae": CHECKPOINTS[recipe.version].video_vae,
                "latent": _wire("empty video.LATENT"),
                "image": _wire("reference in size.IMAGE"),
                "latent_downscale_factor": _wire("adapter.latent_downscale_factor"),
            },
        ),
    }


def _audio(recipe: WorkflowSettings) -> dict[str, Step]:
    """The model computes video and audio together; this audio is thrown away, the reference's is kept."""
    whole = {} if recipe.fps is not None else {"whole fps": Step("LTXFloatToInt", {"a": _wire("frames.fps")})}
    rate: Value | Link = _wire("whole fps.INT") if recipe.fps is None else round(recipe.fps)
    return {
        **whole,
        "empty audio": Step(
            "LTXVEmptyLatentAudio",
            {"frames_number": recipe.frames, "frame_rate": rate, "audio_vae": CHECKPOINTS[recipe.version].audio_vae},
        ),
        "video and audio": Step(
            "LTXVConcatAVLatent",
            {"video_latent": _wire("guide.latent"), "audio_latent": _wire("empty audio.Latent")},
        ),
    }


def _sampling() -> dict[str, Step]:
    return {
        "noise": Step("RandomNoise", {"noise_seed": 0}),
        "sampler": Step("KSamplerSelect", {"sampler_name": "euler"}),
        "sigmas": Step("ManualSigmas", {"sigmas": ", ".join(map(str, DISTILLED))}),
        "guider": Step(
            "CFGGuider",
            {
                "model": _wire("adapter.model"),
                "positive": _wire("guide.positive"),
                "negative": _wire("guide.negative"),
                "cfg": 1.0,
            },
        ),
        "sample": Step(
            "SamplerCustomAdvanced",
            {
                "noise": _wire("noise.NOISE"),
                "guider": _wire("guider.GUIDER"),
                "sampler": _wire("sampler.SAMPLER"),
                "sigmas": _wire("sigmas.SIGMAS"),
                "latent_image": _wire("video and audio.latent"),
            },
        ),
    }


def _saving(recipe: WorkflowSettings) -> dict[str, Step]:
    return {
        "video alone": Step("LTXVSeparateAVLatent", {"av_latent": _wire("sample.output")}),
        "without guide": Step(
            "LTXVCropGuides",
            {
                "positive": _wire("guide.positive"),
                "negative": _wire("guide.negative"),
                "latent": _wire("video alone.video_latent"),
            },
        ),
        "decode": Step(
            "VAEDecodeTiled", {"samples": _wire("without guide.latent"), "vae": CHECKPOINTS[recipe.version].video_vae}
        ),
        "clip": Step(
            "CreateVideo",
            {"images": _wire("decode.IMAGE"), "fps": _fps(recipe), "audio": _wire("frames.audio")},
        ),
        "save": Step("SaveVideo", {"video": _wire("clip.VIDEO"), "filename_prefix": Path(recipe.file).stem}),
    }
