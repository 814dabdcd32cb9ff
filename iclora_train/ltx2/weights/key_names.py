"""What the keys of published checkpoints mean: which part each belongs to, under which official name, and which version
a checkpoint is of. Facts from Lightricks' ltx-core and from diffusers' convert_ltx2_to_diffusers.py.

Official files (LTX-2, 2.3: all in one file; 2.5: one file per component) and diffusers folders are read. Of the
transformer only the video stream is; audio, cross-attention to audio and vocoder keys have no name here.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

from iclora_train.config import ConfigError

STATISTICS = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}
BARE = ("encoder.", "decoder.", "per_channel_statistics.")  # how keys begin in a VAE file of its own
MODEL, VAE, TEXT, PROJECTION = "model.diffusion_model.", "vae.", "text_encoder.", "text_embedding_projection."
PARTS = ("transformer", "vae", "connectors", "text")  # text: the little encoder of an embedded base
SETTING = {"transformer": "model.checkpoint", "vae": "model.vae", "connectors": "model.connectors"}
CLASSES = {
    "transformer": "LTX2VideoTransformer3DModel",
    "vae": "AutoencoderKLLTX2Video",
    "connectors": "LTX2TextConnectors",
}
VERSIONS = ("2.0", "2.3", "2.5")

_CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")
_BARE_VAE_MARKS = ("encoder.conv_in.conv.weight", "per_channel_statistics.mean-of-means")
_STATISTICS = "vae.per_channel_statistics."
_READ_STATISTICS = tuple(VAE + key for key in STATISTICS)  # older files have three more
_AUDIO = re.compile(r"(^|\.)(audio_|av_ca_|av_cross_attn_|video_to_audio_|video_a2v_|scale_shift_table_a2v_ca)")
_DIFFUSERS_TOP = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "prompt_adaln": "prompt_adaln_single"}
_DIFFUSERS_NORM = {"norm_q": "q_norm", "norm_k": "k_norm"}
_DIFFUSERS_CONFIG = {  # official key -> diffusers' key, and diffusers' default where old folders lack the key
    "num_attention_heads": ("num_attention_heads", None),
    "attention_head_dim": ("attention_head_dim", None),
    "in_channels": ("in_channels", None),
    "out_channels": ("out_channels", None),
    "num_layers": ("num_layers", None),
    "cross_attention_dim": ("cross_attention_dim", None),
    "norm_eps": ("norm_eps", None),
    "caption_channels": ("caption_channels", None),
    "positional_embedding_theta": ("rope_theta", None),
    "timestep_scale_multiplier": ("timestep_scale_multiplier", None),
    "rope_type": ("rope_type", "interleaved"),
    "apply_gated_attention": ("gated_attn", False),
    "cross_attention_adaln": ("cross_attn_mod", False),
    "use_prompt_adaln_single": ("use_prompt_adaln_single", True),
    "ff_bias": ("ff_bias", True),
    "use_keyframes_abs_pos_embedding": ("use_keyframes_abs_pos_embedding", False),
}


def is_vae_file(keys: Container[str]) -> bool:
    """Whether a file is a video VAE of its own, whose keys have no prefix (LTX-2.5's split files)."""
    return all(mark in keys for mark in _BARE_VAE_MARKS)


def official(key: str, bare_vae: bool = False) -> tuple[str, str] | None:
    """(part, name) of a key of an official file; None if nobody here reads it. Names keep no prefix but `vae.`."""
    if key.startswith(MODEL):
        name = key.removeprefix(MODEL)
        if name.startswith(_CONNECTORS):
            return "connectors", name
        return None if _AUDIO.search(name) else ("transformer", name)
    if bare_vae and key.startswith(BARE):
        key = VAE + key
    if key.startswith(VAE):
        return None if key.startswith(_STATISTICS) and key not in _READ_STATISTICS else ("vae", key)
    if key.startswith(PROJECTION):
        return "connectors", key
    return ("text", key.removeprefix(TEXT)) if key.startswith(TEXT) else None


def from_diffusers(key: str) -> str | None:
    """The official name of a key of a diffusers transformer; None if it is not of the video stream."""
    if _AUDIO.search(key):
        return None
    top, _, rest = key.partition(".")
    parts = [_DIFFUSERS_NORM.get(part, part) for part in rest.split(".")]
    return ".".join([_DIFFUSERS_TOP.get(top, top), *parts]) if rest else key


def official_section(config: dict[str, Any], source: str) -> dict[str, Any]:
    """The official `transformer` section that says what a diffusers transformer/config.json says."""
    missing = [theirs for theirs, default in _DIFFUSERS_CONFIG.values() if default is None and theirs not in config]
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(missing)}: it is not the config of a {CLASSES['transformer']}")
    section = {ours: config.get(theirs, default) for ours, (theirs, default) in _DIFFUSERS_CONFIG.items()}
    section["caption_proj_before_connector"] = not config.get("use_prompt_embeddings", True)
    section["positional_embedding_max_pos"] = [
        config.get("pos_embed_max_pos", 20),
        config.get("base_height", 2048),
        config.get("base_width", 2048),
    ]
    section["out_channels"] = section["out_channels"] or section["in_channels"]
    return section


def detect_version(declared: str | None, section: dict[str, Any], source: str) -> str:
    """2.0, 2.3 or 2.5: from `model_version` (as in 2.3.0 or 2.3-rc1), or from the switches where none is declared."""
    if not declared:
        if not section.get("ff_bias", True) or section.get("use_keyframes_abs_pos_embedding", False):
            return "2.5"
        return "2.3" if section.get("cross_attention_adaln", False) else "2.0"
    number = re.match(r"\d+(\.\d+)?", declared)
    version = number.group() if number else declared
    version = "2.0" if version == "2" else version
    if version not in VERSIONS:
        raise ConfigError(
            f"{source}: model_version={declared!r} is unknown; LTX {', '.join(VERSIONS)} can be trained here. Give "
            "model.checkpoint a checkpoint of one of these"
        )
    return version
