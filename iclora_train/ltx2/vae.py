"""The video VAE of the LTX-2 family: one class for the real checkpoints (2.0, 2.3) and for nano, read from the
official `vae` section of the checkpoint's metadata. Pixels are (B, 3, F, H, W) in [-1, 1]; latents (B, C, f, h, w)
have mean 0 and std 1 per channel, f = (F - 1) / temporal + 1, h = H / spatial, w = W / spatial."""

from typing import Any

import torch
from diffusers import AutoencoderKLLTX2Video
from torch import nn

from iclora_train.pair import Geometry

State = dict[str, torch.Tensor]

# Official block name -> diffusers' name of the same resampling; in the encoder the names end in `_res`.
COMPRESS = {"compress_space": "spatial", "compress_time": "temporal", "compress_all": "spatiotemporal"}
STATISTICS = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}


def _split_blocks(blocks: list, name: str) -> tuple[list[int], list[str], list[dict]]:
    """Official list [res_x, compress, ..., res_x] -> layers of every res_x, kind and settings of every compress."""
    layers, kinds, settings = [], [], []
    for i, (kind, params) in enumerate(blocks):
        wanted = ("res_x",) if i % 2 == 0 else tuple(COMPRESS)
        if kind.removesuffix("_res") not in wanted:
            raise ValueError(f"vae.{name}[{i}] is {kind!r}, this VAE needs {' or '.join(wanted)} there")
        if i % 2 == 0:
            layers.append(params if isinstance(params, int) else params["num_layers"])
        else:
            kinds.append(kind.removesuffix("_res"))
            settings.append(params)
    if len(layers) != len(kinds) + 1:
        raise ValueError(f"vae.{name} must begin and end with res_x, got {len(layers)} res_x and {len(kinds)} compress")
    return layers, kinds, settings


def _factors(kinds: list[str], patch_size: int) -> tuple[int, int]:
    """(spatial, temporal) compression of the blocks and the patch."""
    spatial = patch_size * 2 ** sum(kind != "compress_time" for kind in kinds)
    return spatial, 2 ** sum(kind != "compress_space" for kind in kinds)


def diffusers_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """Official `vae` section (block lists from the pixels inwards, widths as multipliers) -> arguments of
    AutoencoderKLLTX2Video. Defaults are the official ones."""
    if cfg.get("_class_name", "CausalVideoAutoencoder") != "CausalVideoAutoencoder":
        raise ValueError(f"vae._class_name is {cfg['_class_name']!r}; only CausalVideoAutoencoder can be decoded here")
    if cfg.get("timestep_conditioning", False):
        raise ValueError("vae.timestep_conditioning=true is not supported; no LTX-2 checkpoint uses it")
    patch, latent = cfg.get("patch_size", 4), cfg.get("latent_channels", 128)
    layers, kinds, settings = _split_blocks(cfg["encoder_blocks"], "encoder_blocks")
    up_layers, up_kinds, up_settings = _split_blocks(cfg["decoder_blocks"], "decoder_blocks")
    factors = _factors(kinds, patch)
    if factors != _factors(up_kinds, patch):
        raise ValueError(f"vae: encoder compresses by {factors}, decoder expands by {_factors(up_kinds, patch)}")
    widths, width = [], latent
    for params in settings:
        width *= params.get("multiplier", 2)
        widths.append(width)
    up_widths, width = [], cfg.get("decoder_base_channels", 128)
    for params in up_settings:
        width *= params.get("multiplier", 1)
        up_widths.append(width)
    return {
        "latent_channels": latent,
        "block_out_channels": tuple(widths),
        "down_block_types": ("LTX2VideoDownBlock3D",) * len(kinds),
        "decoder_block_out_channels": tuple(up_widths),
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
        "encoder_spatial_padding_mode": cfg.get("encoder_spatial_padding_mode", "zeros"),
        "decoder_spatial_padding_mode": cfg.get("spatial_padding_mode", "reflect"),
        "spatial_compression_ratio": factors[0],
        "temporal_compression_ratio": factors[1],
    }


def key_table(cfg: dict[str, Any]) -> dict[str, str]:
    """Official key prefix -> diffusers' prefix. Officially all blocks of a side lie in one flat list, resnets on even
    places and resampling on odd ones; diffusers nests them and calls the innermost `mid_block`."""
    downs, ups = len(cfg["encoder_blocks"]) // 2, len(cfg["decoder_blocks"]) // 2
    table = {f"vae.{official}": ours for official, ours in STATISTICS.items()}
    table[f"vae.encoder.down_blocks.{2 * downs}.res_blocks."] = "encoder.mid_block.resnets."
    table["vae.decoder.up_blocks.0.res_blocks."] = "decoder.mid_block.resnets."
    for i in range(downs):
        table[f"vae.encoder.down_blocks.{2 * i}.res_blocks."] = f"encoder.down_blocks.{i}.resnets."
        table[f"vae.encoder.down_blocks.{2 * i + 1}."] = f"encoder.down_blocks.{i}.downsamplers.0."
    for i in range(ups):
        table[f"vae.decoder.up_blocks.{2 * i + 1}."] = f"decoder.up_blocks.{i}.upsamplers.0."
        table[f"vae.decoder.up_blocks.{2 * i + 2}.res_blocks."] = f"decoder.up_blocks.{i}.resnets."
    for end in ("encoder.conv_in.", "encoder.conv_out.", "decoder.conv_in.", "decoder.conv_out."):
        table[f"vae.{end}"] = end
    return table


def _rename(state: State, table: dict[str, str]) -> State:
    """Replace prefixes; keys under no prefix (other models, statistics that nobody reads) are dropped."""
    found = {key: prefix for key in state for prefix in table if key.startswith(prefix)}
    return {table[prefix] + key.removeprefix(prefix): state[key] for key, prefix in found.items()}


def to_diffusers(state: State, cfg: dict[str, Any]) -> State:
    """Official checkpoint keys (`vae.encoder.down_blocks.N...`, `vae.per_channel_statistics.*`) -> diffusers' keys."""
    return _rename(state, key_table(cfg))


def to_official(state: State, cfg: dict[str, Any]) -> State:
    """The inverse of `to_diffusers`."""
    return _rename(state, {ours: official for official, ours in key_table(cfg).items()})


class VideoVAE(nn.Module):
    """Deterministic encode and decode around diffusers' AutoencoderKLLTX2Video, with normalised latents."""

    def __init__(self, cfg: dict[str, Any]):
        super().__init__()
        self.cfg = cfg
        settings = diffusers_config(cfg)
        self.model: Any = AutoencoderKLLTX2Video(**settings)  # Any: diffusers is not typed
        self.channels: int = settings["latent_channels"]
        self.spatial: int = settings["spatial_compression_ratio"]
        self.temporal: int = settings["temporal_compression_ratio"]
        self.geometry = Geometry(self.channels, self.spatial, self.temporal)

    @classmethod
    def from_config(cls, cfg: dict[str, Any], state: State | None = None) -> "VideoVAE":
        """Build from the official `vae` section; `state` holds official keys (missing or odd ones are an error)."""
        vae = cls(cfg)
        if state is not None:
            vae.model.load_state_dict(to_diffusers(state, cfg))
        return vae.eval()

    def official_state(self) -> State:
        """The weights and statistics under their official names."""
        return to_official(self.model.state_dict(), self.cfg)

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-channel mean and std, each (C, 1, 1, 1)."""
        mean, std = self.model.latents_mean, self.model.latents_std
        return mean.to(like).view(-1, 1, 1, 1), std.to(like).view(-1, 1, 1, 1)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> normalised latents (B, C, f, h, w): the mean, never a sample."""
        self.geometry.latent_size(*video.shape[2:])  # raises when the clip does not fit
        latent = self.model.encode(video.to(self.model.dtype)).latent_dist.mode()  # (B, C, f, h, w)
        mean, std = self._statistics(latent)
        return (latent - mean) / std

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Normalised latents (B, C, f, h, w) -> (B, 3, F, H, W) clamped to [-1, 1]."""
        if latent.shape[1] != self.channels:
            raise ValueError(f"the VAE takes latents of {self.channels} channels, got {latent.shape[1]}")
        mean, std = self._statistics(latent)
        return self.model.decode((latent * std + mean).to(self.model.dtype)).sample.clamp(-1, 1)  # (B, 3, F, H, W)
