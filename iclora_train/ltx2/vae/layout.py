"""How the video VAE is written down: the official `vae` section and its keys, and diffusers' of the same modules.

Facts: ltx-core's `video_vae/model_configurator.py` (which fields a section has), diffusers'
`scripts/convert_ltx2_to_diffusers.py` (the published configs and key names of 2.0, 2.3 and 2.5)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from iclora_train.config import ConfigError
from iclora_train.core.types import Geometry
from iclora_train.ltx2.weights.key_names import BARE, STATISTICS

State = dict[str, torch.Tensor]
Section = dict[str, Any]

CONVOLUTIONAL, DIFFUSION = "CausalVideoAutoencoder", "CausalDiffusionVAE"
# Official block name -> diffusers' name of the same resampling; in the encoder the names end in `_res`.
COMPRESS = {"compress_space": "spatial", "compress_time": "temporal", "compress_all": "spatiotemporal"}
# What no published LTX-2 section says otherwise; diffusers' class can do nothing else.
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
    """The section of the convolutional halves. 2.5's CausalDiffusionVAE nests its encoder (`blocks`; `out_channels` is
    the latent width) and has no such decoder: the smallest one that mirrors the encoder stands in."""
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
    stand_in = {"decoder_blocks": mirror, "decoder_base_channels": 8}
    return rest | {"encoder_blocks": encoder["blocks"], "latent_channels": latent} | stand_in


def _split_blocks(section: Section, name: str) -> tuple[list[int], list[str], list[dict[str, Any]]]:
    """Official list [res_x, compress, ..., res_x] -> layers of every res_x, kind and settings of every compress."""
    layers, kinds, settings = [], [], []
    if not isinstance(section.get(name), list):
        raise ConfigError(f"vae.{name} is missing; the checkpoint's metadata has no LTX-2 video VAE")
    for i, (kind, given) in enumerate(section[name]):
        wanted = ("res_x",) if i % 2 == 0 else tuple(COMPRESS)
        suffix = "_res" if name == "encoder_blocks" and i % 2 else ""
        if kind not in tuple(w + suffix for w in wanted):
            choices = " or ".join(w + suffix for w in wanted)
            raise ConfigError(f"vae.{name}[{i}] is {kind!r}, this VAE needs {choices} there")
        params = {"num_layers": given} if isinstance(given, int) else given
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
    """(spatial, temporal) compression of the blocks and the patch."""
    spatial = patch_size * 2 ** sum(kind != "compress_time" for kind in kinds)
    return spatial, 2 ** sum(kind != "compress_space" for kind in kinds)


def _widths(base: int, settings: list[dict[str, Any]], default: int) -> tuple[int, ...]:
    """Channels after each compress block, seen from the pixels."""
    widths = [base]
    for params in settings:
        widths.append(widths[-1] * params.get("multiplier", default))
    return tuple(widths[1:])


def _padding(section: Section) -> tuple[str, str]:
    """Spatial padding of (encoder, decoder). `spatial_padding_mode` is for both sides, as ltx-core has read it since
    2.3 (published value: zeros). The published 2.0 section lacks it, and every ltx-core then takes zeros for the
    encoder and reflect for the decoder, which is also what diffusers' 2.0 config says."""
    both = section.get("spatial_padding_mode")
    if both is not None:
        return both, both
    encoder = section.get("encoder_spatial_padding_mode", "zeros")
    return encoder, section.get("decoder_spatial_padding_mode", "reflect")


def diffusers_config(section: Section) -> dict[str, Any]:
    """Official `vae` section (block lists from the pixels inwards, widths as multipliers) -> arguments of
    AutoencoderKLLTX2Video. Defaults are the official ones. ConfigError names the field that no LTX-2 VAE has."""
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
        "upsample_type": tuple(COMPRESS[kind] for kind in reversed(up_kinds)),  # diffusers flips every list but this
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
    """What the VAE of an official section does to sizes, without building it."""
    cfg = diffusers_config(section)
    return Geometry(cfg["latent_channels"], cfg["spatial_compression_ratio"], cfg["temporal_compression_ratio"])


def _interleaved(
    layers_key: str, full: dict[str, Any], kinds: tuple[str, ...], suffix: str, params: list[dict[str, Any]]
) -> list[Any]:
    """Layers of every res_x and kind and settings of every compress -> the official list."""
    layers, official = full[layers_key], {ours: block for block, ours in COMPRESS.items()}
    if not len(layers) - 1 == len(kinds) == len(params) or not official.keys() >= set(kinds):
        raise ConfigError(
            f"vae/config.json: {layers_key}={layers} does not go with the {len(params)} blocks {kinds}; fetch it again"
        )
    blocks: list[Any] = [["res_x", {"num_layers": layers[0]}]]
    for kind, settings, count in zip(kinds, params, layers[1:], strict=True):
        blocks += [[official[kind] + suffix, settings], ["res_x", {"num_layers": count}]]
    return blocks


def section_of_diffusers(config: dict[str, Any], defaults: dict[str, Any]) -> Section:
    """`vae/config.json` of a diffusers folder -> the official section of the same VAE. `defaults`: the arguments of
    AutoencoderKLLTX2Video, which stand for what older folders leave out. ConfigError names an odd field."""
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in defaults}
    name = config.get("_class_name", "AutoencoderKLLTX2Video")
    if name != "AutoencoderKLLTX2Video":
        raise ConfigError(f"vae/config.json is of a {name}, not of LTX-2's AutoencoderKLLTX2Video: give its vae folder")
    full = defaults | given
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
    for key, ours in (fixed | diffusers_config(section)).items():
        if key in given and given[key] is not None and given[key] != ours:
            raise ConfigError(f"vae/config.json: {key}={given[key]!r} fits no LTX-2 video VAE (expected {ours!r})")
    return section


def key_table(section: Section) -> dict[str, str]:
    """Official key prefix -> diffusers' prefix. Officially all blocks of a side lie in one flat list, resnets on even
    places and resampling on odd ones; diffusers nests them and calls the innermost `mid_block`."""
    cfg = convolutional(section)
    downs, ups = len(cfg["encoder_blocks"]) // 2, len(cfg["decoder_blocks"]) // 2
    table = {f"vae.{official}": ours for official, ours in STATISTICS.items()}
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
    """Replace prefixes; keys under no prefix keep their names."""
    found = {key: next((prefix for prefix in table if key.startswith(prefix)), "") for key in state}
    return {table.get(prefix, "") + key.removeprefix(prefix): state[key] for key, prefix in found.items()}


def with_vae_prefix(state: State) -> State:
    """Official VAE keys as a unified file has them; the split files of 2.5 leave out the leading `vae.`."""
    return {f"vae.{key}" if key.startswith(BARE) else key: tensor for key, tensor in state.items()}


def to_diffusers(state: State, section: Section) -> State:
    """Official keys (`vae.encoder.down_blocks.N...`, with or without `vae.`) -> diffusers' keys of the convolutional
    halves. Statistics that nobody reads are dropped, and so are other models' keys; odd keys of the halves stay."""
    state = with_vae_prefix(state)
    halves = ("vae.encoder.",) if is_diffusion(section) else ("vae.encoder.", "vae.decoder.")
    wanted = (*halves, *(f"vae.{key}" for key in STATISTICS))
    exact = {key: t for key, t in state.items() if key.startswith(halves) or key in wanted}
    return _rename(exact, key_table(section))


def to_official(state: State, section: Section) -> State:
    """The inverse of `to_diffusers`."""
    return _rename(state, {ours: official for official, ours in key_table(section).items()})
