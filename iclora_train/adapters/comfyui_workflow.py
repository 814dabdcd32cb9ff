"""The ComfyUI workflow that uses an adapter, as a graph of nodes; `comfyui_json` writes it in ComfyUI's formats.

The workflow loads the distilled base, the adapter and the reference clip. The first frames of the reference are cropped
and scaled to the trained size, then averaged over blocks of factor x factor pixels, as in training. They become a guide
of the video; a node reads the factor from the adapter file. After sampling, the guide is removed, and the clip is
decoded and saved. For an adapter that takes no reference there is neither a reference nor a guide. The video is empty
apart from the parts that the adapter was trained with (`comfyui_given`). All nodes are part of ComfyUI.
"""

from __future__ import annotations

from pathlib import Path

from iclora_train.adapters.comfyui_base import BaseNodes, Link, WorkflowNode, load_base
from iclora_train.adapters.comfyui_given import Nodes, given_latent, noise_mask, scaled
from iclora_train.adapters.comfyui_nodes import Value
from iclora_train.adapters.comfyui_settings import WorkflowSettings
from iclora_train.diffusion.noise_schedule import DISTILLED
from iclora_train.ltx2.weights.versions import VERSIONS


def build_workflow(settings: WorkflowSettings) -> Nodes:
    """All nodes by title, in the order of the computation: load, condition, sample, decode, save."""
    base = load_base(VERSIONS[settings.version].comfyui)
    given, size = settings.possible, settings.size
    video, latent = given_latent(given, size, base.video_vae)
    guide = _guide(settings, base, latent) if settings.reference else {}
    masked, latent = noise_mask(given, size, settings.guide_frames or 0, _link("guide.latent") if guide else latent)
    return (
        base.nodes
        | _adapter(settings)
        | (_reference(settings) if settings.reference else {})
        | video
        | _conditioning(settings)
        | guide
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
    return Link("guide" if settings.reference else "frame rate", output)


def _adapter(settings: WorkflowSettings) -> Nodes:
    inputs: dict[str, Value | Link] = {"model": _link("base.MODEL"), "lora_name": settings.file}
    return {"adapter": WorkflowNode("LoraLoaderModelOnly", inputs)}


def _reference(settings: WorkflowSettings) -> Nodes:
    """The pictures of the guide.

    Training makes the reference at the video's size and averages blocks of its pixels; so does the workflow, in two
    steps. The guide node would reduce a larger picture by bilinear interpolation, which skips pixels at a factor of 4.
    """
    width, height = settings.width, settings.height
    nodes = {"reference factor": WorkflowNode("GetICLoRAParameters", {"iclora_model": _link("adapter.MODEL")})}
    if settings.picture:
        nodes["reference"] = WorkflowNode("LoadImage", {"image": "reference.png"})
    else:
        first: dict[str, Value | Link] = {"image": _link("frames.images"), "length": settings.frames}
        nodes |= {
            "reference": WorkflowNode("LoadVideo", {"file": "reference.mp4"}),
            "frames": WorkflowNode("GetVideoComponents", {"video": _link("reference.VIDEO")}),
            "first frames": WorkflowNode("ImageFromBatch", first),
        }
    pictures = "reference" if settings.picture else "first frames"
    nodes["resized reference"] = scaled(pictures, "lanczos", width, height)
    if settings.downscale > 1:
        small = (width // settings.downscale, height // settings.downscale)
        nodes["reduced reference"] = scaled("resized reference", "area", *small)
    return nodes


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


def _guide(settings: WorkflowSettings, base: BaseNodes, latent: Link) -> Nodes:
    return {
        "guide": WorkflowNode(
            "LTXVAddGuide",
            {
                "positive": _link("frame rate.positive"),
                "negative": _link("frame rate.negative"),
                "vae": base.video_vae,
                "latent": latent,
                "image": Link("resized reference" if settings.downscale == 1 else "reduced reference", "IMAGE"),
                "iclora_parameters": _link("reference factor.iclora_parameters"),
                **({} if settings.reference_frame is None else {"frame_idx": settings.reference_frame}),
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
        {"positive": _link("guide.positive"), "negative": _link("guide.negative"), "latent": sampled},
    )
    video = _link("remove guide.latent") if settings.reference else sampled
    whole = settings.clip in ("frames", "source frames")  # a clip as long as the video
    audio: dict[str, Value | Link] = {"audio": Link(settings.clip, "audio")} if settings.clip and whole else {}
    clip: dict[str, Value | Link] = {"images": _link("decode.IMAGE"), "fps": _fps(settings), **audio}
    return {
        "video only": WorkflowNode("LTXVSeparateAVLatent", {"av_latent": _link("sample.output")}),
        **({"remove guide": without_guide} if settings.reference else {}),
        "decode": WorkflowNode("VAEDecodeTiled", {"samples": video, "vae": base.video_vae}),
        "clip": WorkflowNode("CreateVideo", clip),
        "save": WorkflowNode("SaveVideo", {"video": _link("clip.VIDEO"), "filename_prefix": Path(settings.file).stem}),
    }
