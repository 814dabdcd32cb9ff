"""Config and keys of the video VAE, official and diffusers', and the conversion between the two.

Sources: ltx-core's `video_vae/model_configurator.py` (fields of the official `vae` section), diffusers'
`scripts/convert_ltx2_to_diffusers.py` (the published configs and key names of 2.0, 2.3 and 2.5)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from iclora_train.config import ConfigError
from iclora_train.core.types import Geometry
from iclora_train.ltx2.weights.key_names import BARE_VAE_PREFIXES, STATISTICS

State = dict[str, torch.Tensor]
Section = dict[str, Any]  # the official `vae` section
VAE_REMEDY = (
    "the file is incomplete or of another version: fetch it again, or give model.vae the VAE that belongs to "
    "model.checkpoint"
)

CONVOLUTIONAL, DIFFUSION = "CausalVideoAutoencoder", "CausalDiffusionVAE"
# Official block name -> diffusers' name of the same resampling. In the encoder the official names end in `_res`.
COMPRESS = {"compress_space": "spatial", "compress_time": "temporal", "compress_all": "spatiotemporal"}
# Fields that have only these values in all published LTX-2 sections; diffusers' class does not support other values.
FIXED: dict[str, tuple[Any, ...]] = {
    "dims": (3,),
    "in_channels": (3,),
    "out_channels": (3,),
    "norm_layer": ("pixel_norm",),
    "latent_log_var": ("uniform", "constant"),
    "timestep_conditioning": (False,),
    "use_quant_conv": (False,),
}


def is_diffusion(section: Section) -> bool:
    """Whether the section describes LTX-2.5's encoder with the diffusion decoder."""
    return bool(section.get("_class_name", CONVOLUTIONAL) == DIFFUSION)


def convolutional(section: Section) -> Section:
    """The section of a convolutional encoder and decoder.

    2.5's CausalDiffusionVAE nests its encoder (`blocks`; `out_channels` is the latent width) and does not have a
    convolutional decoder. The smallest decoder that mirrors the encoder is its placeholder.
    """
    name = section.get("_class_name", CONVOLUTIONAL)
    if name not in (CONVOLUTIONAL, DIFFUSION):
        raise ConfigError(f"vae._class_name is {name!r}; only {CONVOLUTIONAL} and {DIFFUSION} are LTX-2's video VAEs")
    if name == CONVOLUTIONAL:
        return section
    encoder = section.get("encoder")
    if not isinstance(encoder, dict) or "blocks" not in encoder:
        raise ConfigError(f"vae.encoder.blocks is missing; a {DIFFUSION} section describes its encoder there")
    rest = {key: value for key, value in encoder.items() if key not in ("blocks", "out_channels", "_class_name")}
    mirror = [[kind.removesuffix("_res"), 1 if kind == "res_x" else {"multiplier": 1}] for kind, _ in encoder["blocks"]]
    latent = encoder.get("out_channels", section.get("latent_channels", 128))
    placeholder = {"decoder_blocks": mirror, "decoder_base_channels": 8}
    return rest | {"encoder_blocks": encoder["blocks"], "latent_channels": latent} | placeholder


def _split_blocks(section: Section, name: str) -> tuple[list[int], list[str], list[dict[str, Any]]]:
    """Official list [res_x, compress, ..., res_x] -> layers of each res_x, kind and settings of each compress."""
    layers, kinds, settings = [], [], []
    if not isinstance(section.get(name), list):
        raise ConfigError(f"vae.{name} is missing; the checkpoint's metadata has no LTX-2 video VAE")
    for i, (kind, value) in enumerate(section[name]):
        allowed = ("res_x",) if i % 2 == 0 else tuple(COMPRESS)
        suffix = "_res" if name == "encoder_blocks" and i % 2 else ""
        if kind not in tuple(block + suffix for block in allowed):
            choices = " or ".join(block + suffix for block in allowed)
            raise ConfigError(f"vae.{name}[{i}] is {kind!r}; it must be {choices}")
        params = {"num_layers": value} if isinstance(value, int) else value
        if i % 2 == 0:
            if params.get("inject_noise", False):
                raise ConfigError(f"vae.{name}[{i}] has inject_noise, which no LTX-2 checkpoint uses")
            layers.append(params["num_layers"])
        else:
            kinds.append(kind.removesuffix("_res"))
            settings.append(params)
    if len(layers) != len(kinds) + 1:
        raise ConfigError(
            f"vae.{name} must begin and end with res_x, got {len(layers)} res_x and {len(kinds)} compress"
        )
    return layers, kinds, settings


def _factors(kinds: list[str], patch_size: int) -> tuple[int, int]:
    """(spatial, temporal) compression factors of the blocks and the patch."""
    spatial = patch_size * 2 ** sum(kind != "compress_time" for kind in kinds)
    return spatial, 2 ** sum(kind != "compress_space" for kind in kinds)


def _widths(base: int, settings: list[dict[str, Any]], default: int) -> tuple[int, ...]:
    """Channels after each compress block, from the pixels inwards."""
    widths = [base]
    for params in settings:
        widths.append(widths[-1] * params.get("multiplier", default))
    return tuple(widths[1:])


def _padding(section: Section) -> tuple[str, str]:
    """Spatial padding of (encoder, decoder). `spatial_padding_mode` is for both, as ltx-core has read it since 2.3
    (published value: zeros). The published 2.0 section lacks it; every version of ltx-core then uses zeros for the
    encoder and reflect for the decoder, as diffusers' 2.0 config does."""
    both = section.get("spatial_padding_mode")
    if both is not None:
        return both, both
    encoder = section.get("encoder_spatial_padding_mode", "zeros")
    return encoder, section.get("decoder_spatial_padding_mode", "reflect")


def diffusers_config(section: Section) -> dict[str, Any]:
    """Official `vae` section (block lists from the pixels inwards, widths as multipliers) -> arguments of
    AutoencoderKLLTX2Video. Defaults are the official ones. ConfigError names an unsupported field."""
    cfg = convolutional(section)
    for key, allowed in FIXED.items():
        if key in cfg and cfg[key] not in allowed:
            raise ConfigError(f"vae.{key}={cfg[key]!r} is not supported; LTX-2's video VAEs have {allowed[0]!r}")
    patch, latent = cfg.get("patch_size", 4), cfg.get("latent_channels", 128)
    layers, kinds, settings = _split_blocks(cfg, "encoder_blocks")
    up_layers, up_kinds, up_settings = _split_blocks(cfg, "decoder_blocks")
    factors = _factors(kinds, patch)
    if factors != _factors(up_kinds, patch):
        raise ConfigError(f"vae: encoder compresses by {factors}, decoder expands by {_factors(up_kinds, patch)}")
    padding = _padding(cfg)
    return {
        "latent_channels": latent,
        "block_out_channels": _widths(latent, settings, default=2),
        "down_block_types": ("LTX2VideoDownBlock3D",) * len(kinds),
        "decoder_block_out_channels": _widths(cfg.get("decoder_base_channels", 128), up_settings, default=1),
        "layers_per_block": tuple(layers),
        "decoder_layers_per_block": tuple(up_layers),
        "spatio_temporal_scaling": (True,) * len(kinds),
        "decoder_spatio_temporal_scaling": (True,) * len(up_kinds),
        "decoder_inject_noise": (False,) * len(up_layers),
        "downsample_type": tuple(COMPRESS[kind] for kind in kinds),
        # diffusers reverses all lists but this one
        "upsample_type": tuple(COMPRESS[kind] for kind in reversed(up_kinds)),
        "upsample_residual": tuple(params.get("residual", False) for params in up_settings),
        "upsample_factor": tuple(params.get("multiplier", 1) for params in up_settings),
        "patch_size": patch,
        "encoder_causal": True,
        "decoder_causal": cfg.get("causal_decoder", False),
        "encoder_spatial_padding_mode": padding[0],
        "decoder_spatial_padding_mode": padding[1],
        "spatial_compression_ratio": factors[0],
        "temporal_compression_ratio": factors[1],
    }


def geometry_of(section: Section) -> Geometry:
    """Channels and compression factors of the VAE of an official section, without building it."""
    cfg = diffusers_config(section)
    return Geometry(cfg["latent_channels"], cfg["spatial_compression_ratio"], cfg["temporal_compression_ratio"])


def _interleaved(
    layers_key: str, full: dict[str, Any], kinds: tuple[str, ...], suffix: str, params: list[dict[str, Any]]
) -> list[Any]:
    """The inverse of `_split_blocks`: layers of each res_x, kind and settings of each compress -> the official list."""
    layers, official = full[layers_key], {kind: block for block, kind in COMPRESS.items()}
    if not len(layers) - 1 == len(kinds) == len(params) or not official.keys() >= set(kinds):
        raise ConfigError(
            f"vae/config.json: {layers_key}={layers} does not fit the {len(params)} blocks {kinds}; fetch it again"
        )
    blocks: list[Any] = [["res_x", {"num_layers": layers[0]}]]
    for kind, settings, count in zip(kinds, params, layers[1:], strict=True):
        blocks += [[official[kind] + suffix, settings], ["res_x", {"num_layers": count}]]
    return blocks


def section_of_diffusers(config: dict[str, Any], defaults: dict[str, Any]) -> Section:
    """`vae/config.json` of a diffusers folder -> the official section of the same VAE. defaults: default arguments of
    AutoencoderKLLTX2Video, for fields that older folders lack. ConfigError names an unsupported field."""
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in defaults}
    name = config.get("_class_name", "AutoencoderKLLTX2Video")
    if name != "AutoencoderKLLTX2Video":
        raise ConfigError(
            f"vae/config.json is the config of a {name}, not of LTX-2's AutoencoderKLLTX2Video: give LTX-2's vae folder"
        )
    full = defaults | fields
    widths = (full["latent_channels"], *full["block_out_channels"])
    down = [{"multiplier": out // width} for width, out in pairwise(widths)]
    ups = zip(full["upsample_factor"], full["upsample_residual"], strict=False)
    up = [{"multiplier": factor, "residual": residual} for factor, residual in ups]
    up_kinds = tuple(reversed(full["upsample_type"]))
    section = {
        "encoder_blocks": _interleaved("layers_per_block", full, full["downsample_type"], "_res", down),
        "decoder_blocks": _interleaved("decoder_layers_per_block", full, up_kinds, "", up),
        "decoder_base_channels": full["decoder_block_out_channels"][0] // full["upsample_factor"][0],
        "causal_decoder": full["decoder_causal"],
    }
    section |= {key: full[key] for key in ("latent_channels", "patch_size", "in_channels", "out_channels")}
    section |= {f"{s}_spatial_padding_mode": full[f"{s}_spatial_padding_mode"] for s in ("encoder", "decoder")}
    fixed = {"timestep_conditioning": False, "patch_size_t": 1, "scaling_factor": 1.0, "resnet_norm_eps": 1e-6}
    for key, expected in (fixed | diffusers_config(section)).items():
        if key in fields and fields[key] is not None and fields[key] != expected:
            raise ConfigError(f"vae/config.json: {key}={fields[key]!r} fits no LTX-2 video VAE (expected {expected!r})")
    return section


def key_table(section: Section) -> dict[str, str]:
    """Official key prefix -> diffusers' prefix. Official files have all blocks of the encoder (or decoder) in one flat
    list, resnets at even and resampling at odd indices; diffusers nests them and calls the innermost `mid_block`."""
    cfg = convolutional(section)
    downs, ups = len(cfg["encoder_blocks"]) // 2, len(cfg["decoder_blocks"]) // 2
    table = {f"vae.{official}": name for official, name in STATISTICS.items()}
    table[f"vae.encoder.down_blocks.{2 * downs}.res_blocks."] = "encoder.mid_block.resnets."
    for i in range(downs):
        table[f"vae.encoder.down_blocks.{2 * i}.res_blocks."] = f"encoder.down_blocks.{i}.resnets."
        table[f"vae.encoder.down_blocks.{2 * i + 1}."] = f"encoder.down_blocks.{i}.downsamplers.0."
    sides = ["encoder"]
    if not is_diffusion(section):
        sides.append("decoder")
        table["vae.decoder.up_blocks.0.res_blocks."] = "decoder.mid_block.resnets."
        for i in range(ups):
            table[f"vae.decoder.up_blocks.{2 * i + 1}."] = f"decoder.up_blocks.{i}.upsamplers.0."
            table[f"vae.decoder.up_blocks.{2 * i + 2}.res_blocks."] = f"decoder.up_blocks.{i}.resnets."
    return table | {f"vae.{side}.{end}.": f"{side}.{end}." for side in sides for end in ("conv_in", "conv_out")}


def _rename(state: State, table: dict[str, str]) -> State:
    """Replace prefixes; keys with none of the prefixes keep their names."""
    prefixes = {key: next((prefix for prefix in table if key.startswith(prefix)), "") for key in state}
    return {table.get(prefix, "") + key.removeprefix(prefix): state[key] for key, prefix in prefixes.items()}


def with_vae_prefix(state: State) -> State:
    """Official VAE keys with the leading `vae.`, which unified files have and the split files of 2.5 lack."""
    return {f"vae.{key}" if key.startswith(BARE_VAE_PREFIXES) else key: tensor for key, tensor in state.items()}


def to_diffusers(state: State, section: Section) -> State:
    """Official keys (`vae.encoder.down_blocks.N...`, with or without `vae.`) -> diffusers' keys of the convolutional
    encoder and decoder. Unused statistics and other models' keys are dropped; unknown keys of the two stay."""
    state = with_vae_prefix(state)
    convolutional_keys = ("vae.encoder.",) if is_diffusion(section) else ("vae.encoder.", "vae.decoder.")
    statistics = tuple(f"vae.{key}" for key in STATISTICS)
    vae = {key: t for key, t in state.items() if key.startswith(convolutional_keys) or key in statistics}
    return _rename(vae, key_table(section))


def to_official(state: State, section: Section) -> State:
    """The inverse of `to_diffusers`."""
    return _rename(state, {name: official for official, name in key_table(section).items()})
