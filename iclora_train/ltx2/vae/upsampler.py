"""The latent upsampler: twice the height and width of a clip's latents, for the second stage of sampling.

The model is diffusers' class. The published files (`ltx-2-spatial-upscaler-x2-1.0.safetensors` and the files of 2.3 and
2.5) use the tensor names of this class, and have the config in the metadata, where ltx-core reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from torch import Tensor, nn

from iclora_train.config import ConfigError, require
from iclora_train.config.paths import user_path
from iclora_train.core.safetensors_header import parse_object
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.ltx2.weights.assign import check_keys, shapes_of
from iclora_train.ltx2.weights.safetensors_header import Component, Header, read_header

_DEFAULTS: dict[str, Any] = {  # as in ltx-core's configurator
    "in_channels": 128,
    "mid_channels": 512,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
    "spatial_scale": 2.0,
    "rational_resampler": False,
}
_RENAMED: dict[str, str] = {"spatial_scale": "rational_spatial_scale", "rational_resampler": "use_rational_resampler"}


class LatentUpsampler(nn.Module):
    """Normalised latents (B,C,f,h,w) -> normalised latents (B,C,f,2h,2w); fp32 in and out.

    The model itself works on latents without the VAE's normalisation (`upsample_video` of ltx-core).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)  # (C,1,1,1)
        self.register_buffer("std", std)

    @classmethod
    def open(
        cls, path: Path | str, vae: VideoVAE, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> LatentUpsampler:
        """The upsampler of an official file, in evaluation mode, for the latents of `vae`.

        ConfigError for another kind of file, another scale, or the upsampler of another VAE.
        """
        header = read_header(user_path(str(path)))
        arguments = _arguments(header, vae.channels)
        with torch.device("meta"):
            model = LTX2LatentUpsamplerModel(**arguments)
        component = Component("latent upsampler", arguments, header.tensors, header.file)
        check_keys(component.where, component.name, component.shapes, shapes_of(model.state_dict()))
        model.load_state_dict({name: tensor.to(dtype) for name, tensor in component.read(device)}, assign=True)
        return cls(model, *vae.statistics()).requires_grad_(False).to(device).eval()

    @torch.no_grad()
    def forward(self, latent: Tensor) -> Tensor:
        """Latents (B,C,f,h,w) -> (B,C,f,2h,2w)."""
        raw = (latent.float() * self.std + self.mean).to(next(self.model.parameters()).dtype)
        return (self.model(raw).float() - self.mean) / self.std


def _arguments(header: Header, channels: int) -> dict[str, Any]:
    """Constructor arguments of diffusers' model. ConfigError unless the file upsamples latents with `channels` by 2."""
    try:
        config = parse_object(header.metadata.get("config", "{}"))
    except ValueError as error:
        raise ConfigError(f"{header.file}: config in its metadata is not JSON ({error}); fetch it again") from error
    require(
        "post_upsample_res_blocks.0.conv1.weight" in header.tensors,
        f"{header.file} is not a latent upsampler; give e.g. ltx-2-spatial-upscaler-x2-1.0.safetensors",
    )
    official: dict[str, Any] = _DEFAULTS | {key: config[key] for key in _DEFAULTS.keys() & config.keys()}
    scales = (official["spatial_upsample"], official["temporal_upsample"], float(official["spatial_scale"]))
    if scales != (True, False, 2.0):
        raise ConfigError(
            f"{header.file} has spatial_upsample, temporal_upsample, spatial_scale = {scales} in its config; stage 2 "
            "needs a spatial upscaler x2"
        )
    require(
        official["in_channels"] == channels,
        f"{header.file} upsamples latents of {official['in_channels']} channels, the VAE of the base has {channels}; "
        "give the upsampler of the base's version",
    )
    return {_RENAMED.get(key, key): value for key, value in official.items()}
