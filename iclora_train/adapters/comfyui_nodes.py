"""The ComfyUI nodes that the workflow uses: inputs in the order of their widgets, types, defaults, ranges, outputs.

Read in ComfyUI's nodes.py and comfy_extras (nodes_lt, nodes_lt_audio, nodes_custom_sampler, nodes_video, nodes_images)
and in ComfyUI-LTXVideo's iclora.py and utiltily_nodes.py.
"""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | float | bool
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")  # types that are typed in; all others are wired


@dataclass(frozen=True)
class Input:
    """An input of a node. choices: of a COMBO whose values do not depend on the files of a machine."""

    name: str
    type: str
    default: Value | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    required: bool = True
    beside: str | None = None  # a widget that the page adds behind this one, which is no input of the node

    @property
    def widget(self) -> bool:
        """Whether it is typed in (it may be wired all the same)."""
        return self.type in WIDGETS


@dataclass(frozen=True)
class Node:
    """A node class: its inputs in order, and name and type of each output."""

    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]
    pack: str = "comfy-core"


def _sockets(*pairs: str) -> tuple[Input, ...]:
    """`name:TYPE` -> inputs that are wired."""
    return tuple(Input(name, of) for name, of in (pair.split(":") for pair in pairs))


_PLUGIN = "ComfyUI-LTXVideo"
_CONDITIONED = (("positive", "CONDITIONING"), ("negative", "CONDITIONING"))
_PAIR = _sockets("positive:CONDITIONING", "negative:CONDITIONING")
_SIZE = 16384  # nodes.MAX_RESOLUTION

NODES: dict[str, Node] = {
    "CheckpointLoaderSimple": Node(
        (Input("ckpt_name", "COMBO"),), (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE"))
    ),
    "UNETLoader": Node(
        (
            Input("unet_name", "COMBO"),
            Input("weight_dtype", "COMBO", "default", choices=("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")),
        ),
        (("MODEL", "MODEL"),),
    ),
    "VAELoader": Node((Input("vae_name", "COMBO"),), (("VAE", "VAE"),)),
    "CLIPLoader": Node(
        (
            Input("clip_name", "COMBO"),
            Input("type", "COMBO", choices=("ltxv",)),  # among those of other models
            Input("device", "COMBO", "default", choices=("default", "cpu"), required=False),
        ),
        (("CLIP", "CLIP"),),
    ),
    "LTXAVTextEncoderLoader": Node(
        (
            Input("text_encoder", "COMBO"),
            Input("ckpt_name", "COMBO"),
            Input("device", "COMBO", "default", choices=("default", "cpu")),
        ),
        (("CLIP", "CLIP"),),
    ),
    "LTXVAudioVAELoader": Node((Input("ckpt_name", "COMBO"),), (("Audio VAE", "VAE"),)),
    "LTXICLoRALoaderModelOnly": Node(
        (
            *_sockets("model:MODEL"),
            Input("lora_name", "COMBO"),
            Input("strength_model", "FLOAT", 1.0, -100, 100),
        ),
        (("model", "MODEL"), ("latent_downscale_factor", "FLOAT")),
        _PLUGIN,
    ),
    "LoadVideo": Node((Input("file", "COMBO", beside="image"),), (("VIDEO", "VIDEO"),)),
    "GetVideoComponents": Node(_sockets("video:VIDEO"), (("images", "IMAGE"), ("audio", "AUDIO"), ("fps", "FLOAT"))),
    "ImageFromBatch": Node(
        (*_sockets("image:IMAGE"), Input("batch_index", "INT", 0, 0, 4095), Input("length", "INT", 1, 1, 4096)),
        (("IMAGE", "IMAGE"),),
    ),
    "ImageScale": Node(
        (
            *_sockets("image:IMAGE"),
            Input("upscale_method", "COMBO", choices=("nearest-exact", "bilinear", "area", "bicubic", "lanczos")),
            Input("width", "INT", 512, 0, _SIZE),
            Input("height", "INT", 512, 0, _SIZE),
            Input("crop", "COMBO", choices=("disabled", "center")),
        ),
        (("IMAGE", "IMAGE"),),
    ),
    "CLIPTextEncode": Node((Input("text", "STRING"), *_sockets("clip:CLIP")), (("CONDITIONING", "CONDITIONING"),)),
    "LTXVConditioning": Node((*_PAIR, Input("frame_rate", "FLOAT", 25.0, 0, 1000)), _CONDITIONED),
    "EmptyLTXVLatentVideo": Node(
        (
            Input("width", "INT", 768, 64, _SIZE),
            Input("height", "INT", 512, 64, _SIZE),
            Input("length", "INT", 97, 1, _SIZE),
            Input("batch_size", "INT", 1, 1, 4096),
        ),
        (("LATENT", "LATENT"),),
    ),
    "LTXAddVideoICLoRAGuide": Node(
        (
            *_PAIR,
            *_sockets("vae:VAE", "latent:LATENT", "image:IMAGE"),
            Input("frame_idx", "INT", 0, -9999, 9999),
            Input("strength", "FLOAT", 1.0, 0, 1),
            Input("latent_downscale_factor", "FLOAT", 1.0, 1, 10),
            Input("crop", "COMBO", "disabled", choices=("disabled", "center")),
            Input("use_tiled_encode", "BOOLEAN", False),
            Input("tile_size", "INT", 256, 64, 512),
            Input("tile_overlap", "INT", 64, 16, 256),
        ),
        (*_CONDITIONED, ("latent", "LATENT")),
        _PLUGIN,
    ),
    "LTXFloatToInt": Node((Input("a", "FLOAT", 0.0),), (("INT", "INT"),), _PLUGIN),
    "LTXVEmptyLatentAudio": Node(
        (
            Input("frames_number", "INT", 97, 1, 1000),
            Input("frame_rate", "INT", 25, 1, 1000),
            Input("batch_size", "INT", 1, 1, 4096),
            *_sockets("audio_vae:VAE"),
        ),
        (("Latent", "LATENT"),),
    ),
    "LTXVConcatAVLatent": Node(_sockets("video_latent:LATENT", "audio_latent:LATENT"), (("latent", "LATENT"),)),
    "LTXVSeparateAVLatent": Node(
        _sockets("av_latent:LATENT"), (("video_latent", "LATENT"), ("audio_latent", "LATENT"))
    ),
    "RandomNoise": Node((Input("noise_seed", "INT", 0, 0, 2**64 - 1, beside="fixed"),), (("NOISE", "NOISE"),)),
    "KSamplerSelect": Node((Input("sampler_name", "COMBO"),), (("SAMPLER", "SAMPLER"),)),
    "ManualSigmas": Node((Input("sigmas", "STRING", "1, 0.5"),), (("SIGMAS", "SIGMAS"),)),
    "CFGGuider": Node((*_sockets("model:MODEL"), *_PAIR, Input("cfg", "FLOAT", 8.0, 0, 100)), (("GUIDER", "GUIDER"),)),
    "SamplerCustomAdvanced": Node(
        _sockets("noise:NOISE", "guider:GUIDER", "sampler:SAMPLER", "sigmas:SIGMAS", "latent_image:LATENT"),
        (("output", "LATENT"), ("denoised_output", "LATENT")),
    ),
    "LTXVCropGuides": Node((*_PAIR, *_sockets("latent:LATENT")), (*_CONDITIONED, ("latent", "LATENT"))),
    "VAEDecodeTiled": Node(
        (
            *_sockets("samples:LATENT", "vae:VAE"),
            Input("tile_size", "INT", 512, 64, 4096),
            Input("overlap", "INT", 64, 0, 4096),
            Input("temporal_size", "INT", 64, 8, 4096),
            Input("temporal_overlap", "INT", 8, 4, 4096),
        ),
        (("IMAGE", "IMAGE"),),
    ),
    "CreateVideo": Node(
        (
            *_sockets("images:IMAGE"),
            Input("fps", "FLOAT", 30.0, 1, 120),
            Input("audio", "AUDIO", required=False),
        ),
        (("VIDEO", "VIDEO"),),
    ),
    "SaveVideo": Node(
        (
            *_sockets("video:VIDEO"),
            Input("filename_prefix", "STRING", "video/ComfyUI"),
            Input("format", "COMBO", "auto"),
            Input("codec", "COMBO", "auto"),
        ),
        (),
    ),
}
