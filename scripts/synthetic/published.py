"""Convert official key names to diffusers' names, and an official config to the arguments of diffusers' models.

The names are taken from diffusers' scripts/convert_ltx2_to_diffusers.py.
"""

from __future__ import annotations

from typing import Any

_ATTENTION = (("q_norm", "norm_q"), ("k_norm", "norm_k"))
TRANSFORMER = (
    ("audio_patchify_proj", "audio_proj_in"),
    ("patchify_proj", "proj_in"),
    ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
    ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
    ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
    ("scale_shift_table_a2v_ca_video", "video_a2v_cross_attn_scale_shift_table"),
    ("scale_shift_table_a2v_ca_audio", "audio_a2v_cross_attn_scale_shift_table"),
    ("audio_prompt_adaln_single", "audio_prompt_adaln"),
    ("prompt_adaln_single", "prompt_adaln"),
    ("audio_adaln_single", "audio_time_embed"),
    ("adaln_single", "time_embed"),
    *_ATTENTION,
)
CONNECTORS = (
    ("video_embeddings_connector", "video_connector"),
    ("audio_embeddings_connector", "audio_connector"),
    ("transformer_1d_blocks", "transformer_blocks"),
    ("text_embedding_projection.video_aggregate_embed", "video_text_proj_in"),
    ("text_embedding_projection.audio_aggregate_embed", "audio_text_proj_in"),
    ("text_embedding_projection.aggregate_embed", "text_proj_in"),
    *_ATTENTION,
)
VAE = (
    ("down_blocks.1.", "down_blocks.0.downsamplers.0."),
    ("down_blocks.2.", "down_blocks.1."),
    ("down_blocks.3.", "down_blocks.1.downsamplers.0."),
    ("down_blocks.4.", "down_blocks.2."),
    ("down_blocks.5.", "down_blocks.2.downsamplers.0."),
    ("down_blocks.6.", "down_blocks.3."),
    ("down_blocks.7.", "down_blocks.3.downsamplers.0."),
    ("down_blocks.8.", "mid_block."),
    ("up_blocks.0.", "mid_block."),
    ("up_blocks.1.", "up_blocks.0.upsamplers.0."),
    ("up_blocks.2.", "up_blocks.0."),
    ("up_blocks.3.", "up_blocks.1.upsamplers.0."),
    ("up_blocks.4.", "up_blocks.1."),
    ("up_blocks.5.", "up_blocks.2.upsamplers.0."),
    ("up_blocks.6.", "up_blocks.2."),
    ("up_blocks.7.", "up_blocks.3.upsamplers.0."),
    ("up_blocks.8.", "up_blocks.3."),
    ("res_blocks", "resnets"),
    ("per_channel_statistics.mean-of-means", "latents_mean"),
    ("per_channel_statistics.std-of-means", "latents_std"),
)


_SAME = (  # keys with the same name in the official section and in diffusers
    *("in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "cross_attention_dim"),
    *("num_layers", "norm_eps", "caption_channels", "timestep_scale_multiplier", "rope_type"),
    *("audio_out_channels", "audio_num_attention_heads", "audio_attention_head_dim", "audio_cross_attention_dim"),
)


def renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """diffusers' name of an official name without the component's prefix."""
    for old, new in table:
        name = name.replace(old, new)
    return name


def transformer_arguments(section: dict[str, Any]) -> dict[str, Any]:
    """Arguments of LTX2VideoTransformer3DModel for an official `transformer` section."""
    gated, cross = section.get("apply_gated_attention", False), section.get("cross_attention_adaln", False)
    seconds, height, width = section["positional_embedding_max_pos"]
    return {key: section[key] for key in _SAME} | {
        "audio_in_channels": section.get("audio_in_channels", 128),
        "pos_embed_max_pos": seconds,
        "base_height": height,
        "base_width": width,
        "rope_theta": section["positional_embedding_theta"],
        "rope_double_precision": section["frequencies_precision"] == "float64",
        "cross_attn_timestep_scale_multiplier": int(section["av_ca_timestep_scale_multiplier"]),
        "vae_scale_factors": [8, 32, 32],
        "gated_attn": gated,
        "audio_gated_attn": gated,
        "cross_attn_mod": cross,
        "audio_cross_attn_mod": cross,
        "perturbed_attn": cross,
        "use_prompt_embeddings": not section.get("caption_proj_before_connector", False),
        "ff_bias": section.get("ff_bias", True),
        "use_keyframes_abs_pos_embedding": section.get("use_keyframes_abs_pos_embedding", False),
    }


def connector_arguments(section: dict[str, Any], gemma_layers: int) -> dict[str, Any]:
    """Arguments of LTX2TextConnectors for an official `transformer` section."""
    heads, width = section["connector_num_attention_heads"], section["connector_attention_head_dim"]
    gated, layers = section.get("connector_apply_gated_attention", False), section["connector_num_layers"]
    registers, since_2_3 = section["connector_num_learnable_registers"], "caption_proj_before_connector" in section
    return {
        "caption_channels": section["caption_channels"],
        "text_proj_in_factor": gemma_layers + 1,
        "video_connector_num_attention_heads": heads,
        "video_connector_attention_head_dim": width,
        "video_connector_num_layers": layers,
        "video_connector_num_learnable_registers": registers,
        "video_gated_attn": gated,
        "audio_connector_num_attention_heads": section.get("audio_connector_num_attention_heads", heads),
        "audio_connector_attention_head_dim": section.get("audio_connector_attention_head_dim", width),
        "audio_connector_num_layers": layers,
        "audio_connector_num_learnable_registers": registers,
        "audio_gated_attn": gated,
        "connector_rope_base_seq_len": section["connector_positional_embedding_max_pos"][0],
        "rope_theta": section["positional_embedding_theta"],
        "rope_double_precision": section["frequencies_precision"] == "float64",
        "rope_type": section["rope_type"],
        "per_modality_projections": since_2_3,
        "video_hidden_dim": section["num_attention_heads"] * section["attention_head_dim"],
        "audio_hidden_dim": section["audio_num_attention_heads"] * section["audio_attention_head_dim"],
        "proj_bias": since_2_3,
    }


def vae_arguments(section: dict[str, Any]) -> dict[str, Any]:
    """Arguments of AutoencoderKLLTX2Video for an official `vae` section (32 x 32 pixels and 8 frames to a cell)."""
    down, up = section["encoder_blocks"], section["decoder_blocks"]
    kinds = {"compress_space": "spatial", "compress_time": "temporal", "compress_all": "spatiotemporal"}
    widths, up_widths = [section["latent_channels"]], [section["decoder_base_channels"]]
    for _, params in down[1::2]:
        widths.append(widths[-1] * params["multiplier"])
    for _, params in up[1::2]:
        up_widths.append(up_widths[-1] * params["multiplier"])
    return {
        "latent_channels": section["latent_channels"],
        "block_out_channels": widths[1:],
        "down_block_types": ["LTX2VideoDownBlock3D"] * (len(widths) - 1),
        "decoder_block_out_channels": up_widths[1:],
        "layers_per_block": [params["num_layers"] for _, params in down[::2]],
        "decoder_layers_per_block": [params["num_layers"] for _, params in up[::2]],
        "spatio_temporal_scaling": [True] * (len(widths) - 1),
        "decoder_spatio_temporal_scaling": [True] * (len(up_widths) - 1),
        "decoder_inject_noise": [False] * len(up_widths),
        "downsample_type": [kinds[kind.removesuffix("_res")] for kind, _ in down[1::2]],
        "upsample_type": [kinds[kind] for kind, _ in up[::-1][1::2]],  # the only list that runs from the latents
        "upsample_residual": [params.get("residual", False) for _, params in up[1::2]],
        "upsample_factor": [params["multiplier"] for _, params in up[1::2]],
        "timestep_conditioning": section["timestep_conditioning"],
        "patch_size": section["patch_size"],
        "encoder_causal": True,
        "decoder_causal": section["causal_decoder"],
        "encoder_spatial_padding_mode": "zeros",
        "decoder_spatial_padding_mode": section.get("spatial_padding_mode", "reflect"),
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }
