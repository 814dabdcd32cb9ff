"""Key names of published checkpoints: the component and the official name of each key.

Official files (LTX-2 and 2.3: one file with everything; 2.5: one file per component) and diffusers folders are read.
The transformer is two components, so that the video stream can be read alone: `transformer_audio` is its audio half,
the audio stream and the attention between the streams.
Sources: Lightricks' ltx-core and diffusers' convert_ltx2_to_diffusers.py.
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
MODEL_PREFIX, VAE_PREFIX, TEXT_PREFIX = "model.diffusion_model.", "vae.", "text_encoder."
PROJECTION_PREFIX = "text_embedding_projection."
BARE_VAE_PREFIXES = ("encoder.", "decoder.", "per_channel_statistics.")  # in a file that holds only the VAE
COMPONENTS = ("transformer", "vae", "connectors", "text")  # text: nano's own text encoder
AUDIO_COMPONENTS = ("audio_vae", "vocoder")  # in one file; only sound needs them
AUDIO_HALF = "transformer_audio"  # the component beside `transformer`
SETTINGS = {
    "transformer": "model.checkpoint",
    "vae": "model.vae",
    "connectors": "model.connectors",
    "audio_vae": "model.audio_vae",
    "vocoder": "model.audio_vae",
}
DIFFUSERS_CLASSES = {  # component -> classes that its config.json may name
    "transformer": ("LTX2VideoTransformer3DModel",),
    "vae": ("AutoencoderKLLTX2Video",),
    "connectors": ("LTX2TextConnectors",),
    "audio_vae": ("AutoencoderKLLTX2Audio",),
    "vocoder": ("LTX2VocoderWithBWE", "LTX2Vocoder"),
}

_CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")
_BARE_VAE_MARKS = ("encoder.conv_in.conv.weight", "per_channel_statistics.mean-of-means")
_STATISTICS_PREFIX = "vae.per_channel_statistics."
_READ_STATISTICS = tuple(VAE_PREFIX + key for key in STATISTICS)  # older files have three more
_AUDIO = re.compile(r"(^|\.)(audio_|av_ca_|video_to_audio_|scale_shift_table_a2v_ca)")
_DIFFUSERS_TOP = {
    "proj_in": "patchify_proj",
    "time_embed": "adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_proj_in": "audio_patchify_proj",
    "audio_time_embed": "audio_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}
_DIFFUSERS_PARTS = {
    "norm_q": "q_norm",
    "norm_k": "k_norm",
    "video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video",
    "audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio",
}
_DIFFUSERS_CONFIG = {  # official key -> diffusers' key, and diffusers' default where older folders lack the key
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
    "audio_num_attention_heads": ("audio_num_attention_heads", 32),
    "audio_attention_head_dim": ("audio_attention_head_dim", 64),
    "audio_in_channels": ("audio_in_channels", 128),
    "audio_out_channels": ("audio_out_channels", 128),
    "audio_cross_attention_dim": ("audio_cross_attention_dim", 2048),
    "audio_ff_bias": ("audio_ff_bias", True),
    "av_ca_timestep_scale_multiplier": ("cross_attn_timestep_scale_multiplier", 1000),
}


def is_vae_file(keys: Container[str]) -> bool:
    """Whether a file holds only the video VAE, under keys without the prefix `vae.` (LTX-2.5's split files)."""
    return all(mark in keys for mark in _BARE_VAE_MARKS)


def classify_key(key: str, bare_vae: bool = False) -> tuple[str, str] | None:
    """(component, name) of a key of an official file; None if this code does not read it.

    Of the prefixes, only `vae.` stays in the name.
    """
    for component in AUDIO_COMPONENTS:
        if key.startswith(f"{component}."):
            return component, key.removeprefix(f"{component}.")
    if key.startswith(MODEL_PREFIX):
        name = key.removeprefix(MODEL_PREFIX)
        if name.startswith(_CONNECTORS):
            return "connectors", name
        return AUDIO_HALF if is_audio(name) else "transformer", name
    if bare_vae and key.startswith(BARE_VAE_PREFIXES):
        key = VAE_PREFIX + key
    if key.startswith(VAE_PREFIX):
        return None if key.startswith(_STATISTICS_PREFIX) and key not in _READ_STATISTICS else ("vae", key)
    if key.startswith(PROJECTION_PREFIX):
        return "connectors", key
    return ("text", key.removeprefix(TEXT_PREFIX)) if key.startswith(TEXT_PREFIX) else None


def is_audio(name: str) -> bool:
    """Whether a tensor or module of the transformer, by its official name, belongs to its audio half."""
    return not name.startswith(_CONNECTORS) and _AUDIO.search(name) is not None


def official_from_diffusers(key: str) -> str:
    """The official name of a key of a diffusers transformer."""
    top, _, rest = key.partition(".")
    names = [_DIFFUSERS_PARTS.get(name, name) for name in rest.split(".")]
    return ".".join([_DIFFUSERS_TOP.get(top, top), *names]) if rest else key


def transformer_section(config: dict[str, Any], source: str) -> dict[str, Any]:
    """transformer/config.json of a diffusers folder -> the official `transformer` section of the same model."""
    missing = [key for key, default in _DIFFUSERS_CONFIG.values() if default is None and key not in config]
    if missing:
        raise ConfigError(
            f"{source} lacks {', '.join(missing)}: it is not the config of a {DIFFUSERS_CLASSES['transformer'][0]}"
        )
    section = {official: config.get(key, default) for official, (key, default) in _DIFFUSERS_CONFIG.items()}
    section["caption_proj_before_connector"] = not config.get("use_prompt_embeddings", True)
    section["positional_embedding_max_pos"] = [
        config.get("pos_embed_max_pos", 20),
        config.get("base_height", 2048),
        config.get("base_width", 2048),
    ]
    section["audio_positional_embedding_max_pos"] = [config.get("audio_pos_embed_max_pos", 20)]
    for stream in ("", "audio_"):
        section[f"{stream}out_channels"] = section[f"{stream}out_channels"] or section[f"{stream}in_channels"]
    return section
