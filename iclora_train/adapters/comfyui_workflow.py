"""The ComfyUI workflow that uses an adapter, as a graph of nodes; `comfyui_json` writes it in ComfyUI's formats.

The workflow loads the distilled base, the adapter and its references. The first frames of a reference are cropped and
scaled to the trained size, then averaged over blocks of factor x factor pixels, as in training. They become a guide of
the video; a node reads the factor from the adapter file (`comfyui_references`). After sampling, the guides are removed,
and the clip is decoded and saved. For an adapter that takes no reference there is neither a reference nor a guide. The
video is empty apart from the parts that the adapter was trained with (`comfyui_given`). All nodes are part of ComfyUI,
except for references of several factors.
"""

from __future__ import annotations

from pathlib import Path

from iclora_train.adapters.comfyui_base import BaseNodes, Link, WorkflowNode, load_base
from iclora_train.adapters.comfyui_given import Nodes, given_latent, noise_mask
from iclora_train.adapters.comfyui_nodes import Value
from iclora_train.adapters.comfyui_references import clip_title, guide_nodes, reference_nodes, title
from iclora_train.adapters.comfyui_settings import WorkflowSettings
from iclora_train.diffusion.noise_schedule import DISTILLED
from iclora_train.ltx2.weights.versions import VERSIONS


def build_workflow(settings: WorkflowSettings) -> Nodes:
    """All nodes by title, in the order of the computation: load, condition, sample, decode, save."""
    base = load_base(VERSIONS[settings.version].comfyui)
    given, size = settings.possible, settings.size
    video, latent = given_latent(given, size, base.video_vae)
    layouts = settings.references
    guides = guide_nodes(layouts, settings.frames, base, latent)
    latent = Link(title("guide", layouts[-1]), "latent") if layouts else latent
    masked, latent = noise_mask(given, size, settings.guide_frames or 0, latent)
    return (
        base.nodes
        | _adapter(settings)
        | (reference_nodes(layouts, size) if layouts else {})
        | video
        | _conditioning(settings)
        | guides
        | masked
        | _audio(settings, base, latent)
        | _sampling(settings)
        | _saving(settings, base)
    )


def _link(text: str) -> Link:
    """`node.output` -> link."""
    return Link(*text.split("."))


def _fps(settings: WorkflowSettings) -> Value | Link:
    """Without a rate that is set, the reference's, else that of the clip that is given."""
    if settings.fps is not None:
        return settings.fps
    assert settings.clip is not None
    return Link(settings.clip, "fps")


def _conditioned(settings: WorkflowSettings, output: str) -> Link:
    """`positive` or `negative` of the last node that changes the conditioning."""
    return Link(title("guide", settings.references[-1]) if settings.references else "frame rate", output)


def _adapter(settings: WorkflowSettings) -> Nodes:
    inputs: dict[str, Value | Link] = {"model": _link("base.MODEL"), "lora_name": settings.file}
    return {"adapter": WorkflowNode("LoraLoaderModelOnly", inputs)}


def _conditioning(settings: WorkflowSettings) -> Nodes:
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
    }


def _audio(settings: WorkflowSettings, base: BaseNodes, latent: Link) -> Nodes:
    """The model computes video and audio together. Its audio is discarded; a reference's or a source's is used."""
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


def _sampling(settings: WorkflowSettings) -> Nodes:
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


def _saving(settings: WorkflowSettings, base: BaseNodes) -> Nodes:
    sampled = _link("video only.video_latent")
    without_guide = WorkflowNode(
        "LTXVCropGuides",
        {**{name: _conditioned(settings, name) for name in ("positive", "negative")}, "latent": sampled},
    )
    video = _link("remove guide.latent") if settings.references else sampled
    whole = settings.clip in (clip_title(settings.references), "source frames")  # a clip as long as the video
    audio: dict[str, Value | Link] = {"audio": Link(settings.clip, "audio")} if settings.clip and whole else {}
    clip: dict[str, Value | Link] = {"images": _link("decode.IMAGE"), "fps": _fps(settings), **audio}
    return {
        "video only": WorkflowNode("LTXVSeparateAVLatent", {"av_latent": _link("sample.output")}),
        **({"remove guide": without_guide} if settings.references else {}),
        "decode": WorkflowNode("VAEDecodeTiled", {"samples": video, "vae": base.video_vae}),
        "clip": WorkflowNode("CreateVideo", clip),
        "save": WorkflowNode("SaveVideo", {"video": _link("clip.VIDEO"), "filename_prefix": Path(settings.file).stem}),
    }
