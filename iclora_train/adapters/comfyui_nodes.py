"""The ComfyUI node classes that the workflow uses: inputs in widget order, types, defaults, ranges, outputs.

They are part of ComfyUI: nodes.py and comfy_extras (nodes_lt, nodes_lt_audio, nodes_custom_sampler, nodes_video,
nodes_images, nodes_latent, nodes_mask). The oldest version that has them all is OLDEST_COMFYUI. Only OWN_FACTOR_GUIDE
and OWN_ATTENTION_GUIDE are custom nodes. Inputs that a newer version adds are not listed: they keep their default.
"""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | float | bool
COMFYUI = "comfy-core"  # name of ComfyUI's own nodes among the packages of nodes
OWN_FACTOR_GUIDE = "LTXAddVideoICLoRAGuide"  # of ComfyUI-LTXVideo: a guide whose factor is an input
OWN_ATTENTION_GUIDE = "LTXAddVideoICLoRAGuideAdvanced"  # likewise, and an attention strength beside the strength
OLDEST_COMFYUI = "0.29"  # LTXVEmptyLatentAudio takes a FLOAT frame rate; LTXVAddGuide reads the factor since 0.22
# Types of inputs with a widget; all other inputs are links. "FLOAT,INT" accepts links of both types.
WIDGETS = ("INT", "FLOAT", "FLOAT,INT", "STRING", "BOOLEAN", "COMBO")


@dataclass(frozen=True)
class NodeInput:
    """An input of a node class.

    choices: the values of a COMBO, if they do not depend on the installed files. after_generate: value of the widget
    `control_after_generate`, which ComfyUI's page adds after a seed; it is not an input.
    """

    name: str
    type: str
    default: Value | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    required: bool = True
    after_generate: str | None = None

    @property
    def widget(self) -> bool:
        """Whether it has a widget (a link may replace the widget)."""
        return self.type in WIDGETS


@dataclass(frozen=True)
class NodeClass:
    """A node class: its inputs in order, name and type of each output, and the package that it is part of."""

    inputs: tuple[NodeInput, ...]
    outputs: tuple[tuple[str, str], ...]
    package: str = COMFYUI


def _sockets(*pairs: str) -> tuple[NodeInput, ...]:
    """`name:TYPE` -> inputs without a widget."""
    return tuple(NodeInput(name, kind) for name, kind in (pair.split(":") for pair in pairs))


_CONDITIONED = (("positive", "CONDITIONING"), ("negative", "CONDITIONING"))
_PAIR = _sockets("positive:CONDITIONING", "negative:CONDITIONING")
_OWN_GUIDE = (
    *_PAIR,
    *_sockets("vae:VAE", "latent:LATENT", "image:IMAGE"),
    NodeInput("frame_idx", "INT", 0, -9999, 9999),
    NodeInput("strength", "FLOAT", 1.0, 0, 1),
    NodeInput("latent_downscale_factor", "FLOAT", 1.0, 1, 10),
    NodeInput("crop", "COMBO", "disabled", choices=("disabled", "center")),
    NodeInput("use_tiled_encode", "BOOLEAN", False),
    NodeInput("tile_size", "INT", 256, 64, 512),
    NodeInput("tile_overlap", "INT", 64, 16, 256),
)
_SIZE = 16384  # nodes.MAX_RESOLUTION
_WEIGHT_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")

NODE_CLASSES: dict[str, NodeClass] = {
    "CheckpointLoaderSimple": NodeClass(
        (NodeInput("ckpt_name", "COMBO"),), (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE"))
    ),
    "UNETLoader": NodeClass(
        (
            NodeInput("unet_name", "COMBO"),
            NodeInput("weight_dtype", "COMBO", "default", choices=_WEIGHT_DTYPES),
        ),
        (("MODEL", "MODEL"),),
    ),
    "VAELoader": NodeClass((NodeInput("vae_name", "COMBO"),), (("VAE", "VAE"),)),
    "CLIPLoader": NodeClass(
        (
            NodeInput("clip_name", "COMBO"),
            NodeInput("type", "COMBO", choices=("ltxv",)),  # the node has many more choices
            NodeInput("device", "COMBO", "default", choices=("default", "cpu"), required=False),
        ),
        (("CLIP", "CLIP"),),
    ),
    "LTXAVTextEncoderLoader": NodeClass(
        (
            NodeInput("text_encoder", "COMBO"),
            NodeInput("ckpt_name", "COMBO"),
            NodeInput("device", "COMBO", "default", choices=("default", "cpu")),
        ),
        (("CLIP", "CLIP"),),
    ),
    "LTXVAudioVAELoader": NodeClass((NodeInput("ckpt_name", "COMBO"),), (("Audio VAE", "VAE"),)),
    "LoraLoaderModelOnly": NodeClass(
        (
            *_sockets("model:MODEL"),
            NodeInput("lora_name", "COMBO"),
            NodeInput("strength_model", "FLOAT", 1.0, -100, 100),
        ),
        (("MODEL", "MODEL"),),
    ),
    "GetICLoRAParameters": NodeClass(_sockets("iclora_model:MODEL"), (("iclora_parameters", "IC_LORA_PARAMETERS"),)),
    "LoadVideo": NodeClass((NodeInput("file", "COMBO"),), (("VIDEO", "VIDEO"),)),
    "GetVideoComponents": NodeClass(
        _sockets("video:VIDEO"), (("images", "IMAGE"), ("audio", "AUDIO"), ("fps", "FLOAT"))
    ),
    "ImageFromBatch": NodeClass(
        (*_sockets("image:IMAGE"), NodeInput("batch_index", "INT", 0, 0, 4095), NodeInput("length", "INT", 1, 1, 4096)),
        (("IMAGE", "IMAGE"),),
    ),
    "ImageScale": NodeClass(
        (
            *_sockets("image:IMAGE"),
            NodeInput("upscale_method", "COMBO", choices=("nearest-exact", "bilinear", "area", "bicubic", "lanczos")),
            NodeInput("width", "INT", 512, 0, _SIZE),
            NodeInput("height", "INT", 512, 0, _SIZE),
            NodeInput("crop", "COMBO", choices=("disabled", "center")),
        ),
        (("IMAGE", "IMAGE"),),
    ),
    "LoadImage": NodeClass((NodeInput("image", "COMBO"),), (("IMAGE", "IMAGE"), ("MASK", "MASK"))),
    "ImageBatch": NodeClass(_sockets("image1:IMAGE", "image2:IMAGE"), (("IMAGE", "IMAGE"),)),  # hidden from the search
    "RepeatImageBatch": NodeClass(
        (*_sockets("image:IMAGE"), NodeInput("amount", "INT", 1, 1, 4096)), (("IMAGE", "IMAGE"),)
    ),
    "SolidMask": NodeClass(
        (
            NodeInput("value", "FLOAT", 1.0, 0, 1),
            NodeInput("width", "INT", 512, 1, _SIZE),
            NodeInput("height", "INT", 512, 1, _SIZE),
        ),
        (("MASK", "MASK"),),
    ),
    "ThresholdMask": NodeClass((*_sockets("mask:MASK"), NodeInput("value", "FLOAT", 0.5, 0, 1)), (("MASK", "MASK"),)),
    "MaskToImage": NodeClass(_sockets("mask:MASK"), (("IMAGE", "IMAGE"),)),
    "ImageToMask": NodeClass(
        (*_sockets("image:IMAGE"), NodeInput("channel", "COMBO", choices=("red", "green", "blue", "alpha"))),
        (("MASK", "MASK"),),
    ),
    "VAEEncode": NodeClass(_sockets("pixels:IMAGE", "vae:VAE"), (("LATENT", "LATENT"),)),
    "LatentCut": NodeClass(
        (
            *_sockets("samples:LATENT"),
            NodeInput("dim", "COMBO", choices=("x", "y", "t")),
            NodeInput("index", "INT", 0, -_SIZE, _SIZE),
            NodeInput("amount", "INT", 1, 1, _SIZE),
        ),
        (("LATENT", "LATENT"),),
    ),
    "LatentConcat": NodeClass(
        (
            *_sockets("samples1:LATENT", "samples2:LATENT"),
            NodeInput("dim", "COMBO", choices=("x", "-x", "y", "-y", "t", "-t")),
        ),
        (("LATENT", "LATENT"),),
    ),
    "SetLatentNoiseMask": NodeClass(_sockets("samples:LATENT", "mask:MASK"), (("LATENT", "LATENT"),)),
    "CLIPTextEncode": NodeClass(
        (NodeInput("text", "STRING"), *_sockets("clip:CLIP")), (("CONDITIONING", "CONDITIONING"),)
    ),
    "LTXVConditioning": NodeClass((*_PAIR, NodeInput("frame_rate", "FLOAT", 25.0, 0, 1000)), _CONDITIONED),
    "EmptyLTXVLatentVideo": NodeClass(
        (
            NodeInput("width", "INT", 768, 64, _SIZE),
            NodeInput("height", "INT", 512, 64, _SIZE),
            NodeInput("length", "INT", 97, 1, _SIZE),
            NodeInput("batch_size", "INT", 1, 1, 4096),
        ),
        (("LATENT", "LATENT"),),
    ),
    "LTXVAddGuide": NodeClass(
        (
            *_PAIR,
            *_sockets("vae:VAE", "latent:LATENT", "image:IMAGE"),
            NodeInput("frame_idx", "INT", 0, -9999, 9999),
            NodeInput("strength", "FLOAT", 1.0, 0, 10),
            NodeInput("iclora_parameters", "IC_LORA_PARAMETERS", required=False),
        ),
        (*_CONDITIONED, ("latent", "LATENT")),
    ),
    OWN_FACTOR_GUIDE: NodeClass(_OWN_GUIDE, (*_CONDITIONED, ("latent", "LATENT")), "ComfyUI-LTXVideo"),
    OWN_ATTENTION_GUIDE: NodeClass(
        (
            *_OWN_GUIDE,
            NodeInput("attention_strength", "FLOAT", 1.0, 0, 1),
            NodeInput("attention_mask", "MASK", required=False),
        ),
        (*_CONDITIONED, ("latent", "LATENT")),
        "ComfyUI-LTXVideo",
    ),
    "LTXVImgToVideoInplace": NodeClass(
        (
            *_sockets("vae:VAE", "image:IMAGE", "latent:LATENT"),
            NodeInput("strength", "FLOAT", 1.0, 0, 1),
            NodeInput("bypass", "BOOLEAN", False),
        ),
        (("latent", "LATENT"),),
    ),
    "LTXVEmptyLatentAudio": NodeClass(
        (
            NodeInput("frames_number", "INT", 97, 1, 1000),
            NodeInput("frame_rate", "FLOAT,INT", 25.0, 1, 1000),
            NodeInput("batch_size", "INT", 1, 1, 4096),
            *_sockets("audio_vae:VAE"),
        ),
        (("Latent", "LATENT"),),
    ),
    "LTXVConcatAVLatent": NodeClass(_sockets("video_latent:LATENT", "audio_latent:LATENT"), (("latent", "LATENT"),)),
    "LTXVSeparateAVLatent": NodeClass(
        _sockets("av_latent:LATENT"), (("video_latent", "LATENT"), ("audio_latent", "LATENT"))
    ),
    "RandomNoise": NodeClass(
        (NodeInput("noise_seed", "INT", 0, 0, 2**64 - 1, after_generate="fixed"),), (("NOISE", "NOISE"),)
    ),
    "KSamplerSelect": NodeClass((NodeInput("sampler_name", "COMBO"),), (("SAMPLER", "SAMPLER"),)),
    "ManualSigmas": NodeClass((NodeInput("sigmas", "STRING", "1, 0.5"),), (("SIGMAS", "SIGMAS"),)),
    "CFGGuider": NodeClass(
        (*_sockets("model:MODEL"), *_PAIR, NodeInput("cfg", "FLOAT", 8.0, 0, 100)), (("GUIDER", "GUIDER"),)
    ),
    "SamplerCustomAdvanced": NodeClass(
        _sockets("noise:NOISE", "guider:GUIDER", "sampler:SAMPLER", "sigmas:SIGMAS", "latent_image:LATENT"),
        (("output", "LATENT"), ("denoised_output", "LATENT")),
    ),
    "LTXVCropGuides": NodeClass((*_PAIR, *_sockets("latent:LATENT")), (*_CONDITIONED, ("latent", "LATENT"))),
    "VAEDecodeTiled": NodeClass(
        (
            *_sockets("samples:LATENT", "vae:VAE"),
            NodeInput("tile_size", "INT", 512, 64, 4096),
            NodeInput("overlap", "INT", 64, 0, 4096),
            NodeInput("temporal_size", "INT", 64, 8, 4096),
            NodeInput("temporal_overlap", "INT", 8, 4, 4096),
        ),
        (("IMAGE", "IMAGE"),),
    ),
    "CreateVideo": NodeClass(
        (
            *_sockets("images:IMAGE"),
            NodeInput("fps", "FLOAT", 30.0, 1, 120),
            NodeInput("audio", "AUDIO", required=False),
        ),
        (("VIDEO", "VIDEO"),),
    ),
    "SaveVideo": NodeClass(
        (
            *_sockets("video:VIDEO"),
            NodeInput("filename_prefix", "STRING", "video/ComfyUI"),
            NodeInput("format", "COMBO", "auto"),
            NodeInput("codec", "COMBO", "auto"),
        ),
        (),
    ),
}
