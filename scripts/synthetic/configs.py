"""Metadata of the official checkpoints: `config`, `model_version` and the other fields of each version's files.

The full size has the values of the published files (ltx-2-19b, ltx-2.3-22b, ltx-2.5-22b). The tiny size has the same
switches and smaller sizes. The size `comfyui` is the tiny one with the latents of the full one, in video and sound:
ComfyUI's classes have their channels as constants. diffusers' video VAE cannot load it: there, the first layer must be
as wide as the latents.
"""

from __future__ import annotations

import json
from typing import Any

from iclora_train.ltx2.weights import versions

VERSIONS = tuple(versions.VERSIONS)  # from the oldest to the newest
SIZES = ("tiny", "comfyui", "full")
MODEL_VERSION = {version: f"{version}.0" for version in VERSIONS}
GEMMA = {"tiny": (24, 2), "comfyui": (24, 2), "full": (3840, 48)}  # hidden size and layers of the text encoder
GEMMA_VERSION = "gemma4-12b-ltx-v1"  # since 2.5 the metadata names the text encoder of the training

_TRANSFORMER: dict[str, Any] = {
    "_class_name": "AVTransformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_type": "default",
    "dropout": 0.0,
    "norm_eps": 1e-6,
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "cross_attention_norm": True,
    "only_cross_attention": False,
    "double_self_attention": False,
    "share_ff": False,
    "use_linear_projection": False,
    "upcast_attention": False,
    "num_embeds_ada_norm": 1000,
    "num_vector_embeds": None,
    "positional_embedding_type": "rope",
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "audio_positional_embedding_max_pos": [20],
    "causal_temporal_positioning": True,
    "use_middle_indices_grid": True,
    "rope_type": "split",
    "frequencies_precision": "float64",
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "use_audio_video_cross_attention": True,
    "av_cross_ada_norm": True,
    "use_embeddings_connector": True,
    "connector_norm_output": True,
    "connector_positional_embedding_max_pos": [4096],
}
_SINCE_2_3: dict[str, Any] = {
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "caption_proj_input_norm": False,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "connector_apply_gated_attention": True,
    "connector_learnable_registers_std": 1,
    "text_encoder_norm_type": "per_token_rms",
}
_SINCE_2_5 = {"ff_bias": False, "use_keyframes_abs_pos_embedding": True, "text_encoder_norm_type": "PER_TOKEN_RMS"}


def since(first: str, version: str) -> bool:
    """Whether a version is `first` or newer."""
    return VERSIONS.index(version) >= VERSIONS.index(first)


def _sizes(size: str, version: str, hidden: int) -> dict[str, Any]:
    """Sizes of the two streams of the transformer and of the connectors, for a text encoder of width `hidden`."""
    heads, width, audio, layers = (32, 128, 64, 48) if size == "full" else (2, 16, 8, 2)
    channels = 8 if size == "tiny" else 128
    sizes = {
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": width,
        "in_channels": channels,
        "out_channels": channels,
        "cross_attention_dim": heads * width,
        "audio_num_attention_heads": heads,
        "audio_attention_head_dim": audio,
        "audio_out_channels": channels,
        "audio_cross_attention_dim": heads * audio,
        "caption_channels": hidden,
        "connector_num_learnable_registers": 128,
    }
    if size == "tiny":
        sizes["audio_in_channels"] = channels  # the published files leave it at its default, 128
    if not since("2.3", version):  # the connectors have the text encoder's width
        each = width if size == "full" else hidden // 2
        connector = {"connector_num_attention_heads": hidden // each, "connector_attention_head_dim": each}
        return sizes | connector | {"connector_num_layers": 2}
    return sizes | {
        "connector_num_attention_heads": heads,
        "connector_attention_head_dim": width,
        "connector_num_layers": 8 if size == "full" else 2,
        "audio_connector_num_attention_heads": heads,
        "audio_connector_attention_head_dim": audio,
    }


def _vae(size: str, version: str) -> dict[str, Any]:
    """The `vae` section; block lists run from the pixels inwards."""
    if not since("2.3", version):
        layers, narrow = (4, 6, 6, 2, 2), 2
        up: list[tuple[str, dict[str, Any]]] = [("compress_all", {"residual": True, "multiplier": 2})] * 3
        up_layers: tuple[int, ...] = (5, 5, 5, 5)
    else:
        layers, narrow = (4, 6, 4, 2, 2), 1
        kinds = (("compress_space", 2), ("compress_time", 2), ("compress_all", 1), ("compress_all", 2))
        up = [(kind, {"multiplier": multiplier}) for kind, multiplier in kinds]
        up_layers = layers
    down: list[tuple[str, dict[str, Any]]] = [
        ("compress_space_res", {"multiplier": 2}),
        ("compress_time_res", {"multiplier": 2}),
        ("compress_all_res", {"multiplier": 2}),
        ("compress_all_res", {"multiplier": narrow}),
    ]
    noise = {} if since("2.3", version) else {"inject_noise": False}
    section = {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8 if size == "tiny" else 128,
        "encoder_blocks": _interleave(layers, down, size, {}),
        "decoder_blocks": _interleave(up_layers, up, size, noise),
        "scaling_factor": 1.0,
        "norm_layer": "pixel_norm",
        "patch_size": 4,
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": False,
        "timestep_conditioning": False,
        "normalize_latent_channels": False,
        "encoder_base_channels": 128 if size == "full" else 8,
        "decoder_base_channels": 128 if size == "full" else 8,
    }
    return section | {"spatial_padding_mode": "zeros"} if since("2.3", version) else section


def _interleave(
    layers: tuple[int, ...], resampling: list[tuple[str, dict[str, Any]]], size: str, extra: dict[str, Any]
) -> list[Any]:
    """[res_x, resampling, res_x, ..., res_x]."""
    blocks: list[Any] = []
    for i, count in enumerate(layers):
        blocks.append(["res_x", {"num_layers": count if size == "full" else 1, **extra}])
        if i < len(resampling):
            blocks.append([resampling[i][0], dict(resampling[i][1])])
    return blocks


def official_config(version: str, size: str, hidden: int) -> dict[str, Any]:
    """The whole `config` of a checkpoint's metadata, for a text encoder of width `hidden`."""
    transformer = _TRANSFORMER | _sizes(size, version, hidden)
    transformer |= _SINCE_2_3 if since("2.3", version) else {}
    transformer |= _SINCE_2_5 if since("2.5", version) else {}
    scheduler = {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000, "sampler": "LinearQuadratic"}
    return {"transformer": transformer, "vae": _vae(size, version), "scheduler": scheduler}


def metadata(version: str, config: dict[str, Any], sections: tuple[str, ...] | None = None) -> dict[str, str]:
    """Metadata of a file (all values are strings). A split file has only its own `sections` of the config."""
    part = config if sections is None else {key: config[key] for key in sections}
    fields = {"config": json.dumps(part), "model_version": MODEL_VERSION[version]}
    if since("2.5", version):
        source = {"ltx_version": MODEL_VERSION[version], "gemma_version": GEMMA_VERSION}
        fields["gemma_source_checkpoint"] = json.dumps(source)
    return fields
