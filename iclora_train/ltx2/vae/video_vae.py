"""The video VAE of the LTX-2 family: one class for the real checkpoints (2.0, 2.3, 2.5) and for nano.

The config is the official `vae` section of the checkpoint's metadata, or config.json of a diffusers folder. Pixels are
(B, 3, F, H, W) in [-1, 1]. Latents (B, C, f, h, w) have mean 0 and std 1 per channel; f = (F - 1) / temporal + 1,
h = H / spatial, w = W / spatial.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLLTX2Video
from torch import Tensor, nn

from iclora_train.core.types import Geometry
from iclora_train.ltx2.vae.causal_encoder import CausalEncoder, split_frames
from iclora_train.ltx2.vae.fused_encoder import FusedEncoder
from iclora_train.ltx2.vae.layout import (
    VAE_REMEDY,
    Section,
    State,
    diffusers_config,
    geometry_of,
    is_diffusion,
    section_of_diffusers,
    to_diffusers,
    to_official,
)
from iclora_train.ltx2.vae.tiling import Tiling, decode_tiled, encode_tiled
from iclora_train.ltx2.weights.assign import load_state
from iclora_train.ltx2.weights.key_names import STATISTICS

if TYPE_CHECKING:
    from iclora_train.ltx2.vae.diffusion_decoder import DiffusionDecoder

# Default for the pixels (frames x height x width) of a tile: 960x544x49 is one tile. It does not depend on the machine,
# so that a clip has the same pixels everywhere.
MAX_PIXELS = 1 << 25


def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(AutoencoderKLLTX2Video.__init__).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def geometry_of_diffusers(config: dict[str, Any]) -> Geometry:
    """Channels and compression factors of the VAE of a diffusers folder (`vae/config.json`), without building it."""
    return geometry_of(section_of_diffusers(config, _defaults()))


class VideoVAE(nn.Module):
    """Deterministic encode and decode around diffusers' AutoencoderKLLTX2Video, with normalised latents.

    With 2.5's CausalDiffusionVAE only the encoder is convolutional; `decode` calls DiffusionDecoder with a fixed seed.
    """

    def __init__(self, cfg: Section):
        super().__init__()
        self.cfg = cfg
        model = AutoencoderKLLTX2Video(**diffusers_config(cfg))
        self.model: Any = model  # Any: diffusers is not typed
        self.geometry = geometry_of(cfg)
        self.channels: int = self.geometry.channels
        self.spatial: int = self.geometry.spatial
        self.temporal: int = self.geometry.temporal
        self.max_pixels = MAX_PIXELS
        self.diffusion: DiffusionDecoder | None = None
        if is_diffusion(cfg):
            from iclora_train.ltx2.vae.diffusion_decoder import DiffusionDecoder  # noqa: PLC0415 (only 2.5 needs it)

            delattr(model, "decoder")
            self.diffusion = DiffusionDecoder(cfg)

    @classmethod
    def from_config(
        cls,
        cfg: Section,
        state: State | None = None,
        dtype: torch.dtype = torch.float32,
        source: object = "state_dict",
    ) -> VideoVAE:
        """Build from the official `vae` section. state: official keys, with or without the leading `vae.`; tensors that
        have `dtype` are used without a copy. source: the file, for messages. ConfigError as in `check_keys`.

        bfloat16 halves memory. With nano's weights it changes latents of real clips by 0.010 to 0.014 rms (their std is
        0.77 to 0.91) and decoded pixels by 0.0010 to 0.0012 rms (range 2)."""
        if state is None:
            return cls(cfg).eval()
        with torch.device("meta"):
            vae = cls(cfg)
        converted = {key: tensor.to(dtype) for key, tensor in to_diffusers(state, cfg).items()}
        load_state(vae.model, converted, source, "video VAE", VAE_REMEDY)
        if vae.diffusion is not None:
            vae.diffusion.load(state, dtype, source)
        return vae.eval()

    @classmethod
    def from_diffusers(
        cls, config: dict[str, Any], state: State, dtype: torch.dtype = torch.float32, source: object = "state_dict"
    ) -> VideoVAE:
        """Build from a diffusers folder: `vae/config.json` and the tensors of its safetensors files."""
        cfg = section_of_diffusers(config, _defaults())
        with torch.device("meta"):
            vae = cls(cfg)
        converted = {key: tensor.to(dtype) for key, tensor in state.items()}
        load_state(vae.model, converted, source, "video VAE", VAE_REMEDY)
        return vae.eval()

    def official_state(self) -> State:
        """The weights and statistics under their official names."""
        official = to_official(self.model.state_dict(), self.cfg)
        return official if self.diffusion is None else official | self.diffusion.official_state()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Per-channel mean and std, each (C, 1, 1, 1), fp32."""
        mean, std = (getattr(self.model, name).float().view(-1, 1, 1, 1) for name in STATISTICS.values())
        return mean, std

    def _encode(self, video: Tensor, cells: int) -> Tensor:
        """Encode the frames of `cells` latent frames at a time."""
        fused = FusedEncoder.supports(self.model.encoder)
        encoder = FusedEncoder(self.model.encoder) if fused else CausalEncoder(self.model.encoder)
        chunks = (chunk.to(self.model.device, self.model.dtype) for chunk in split_frames(video, self.temporal, cells))
        latent = torch.cat([latent[:, : self.channels] for latent in encoder.encode(chunks)], dim=2).float()
        mean, std = self.statistics()
        return (latent - mean) / std

    def _decode(self, latent: Tensor) -> Tensor:
        mean, std = self.statistics()
        latent = latent.to(self.model.device).float() * std + mean
        return self.model.decode(latent.to(self.model.dtype)).sample.float()

    def encode(self, video: Tensor) -> Tensor:
        """Pixels (B, 3, F, H, W) in [-1, 1] -> normalised latents (B, C, f, h, w) in fp32: the mean, never a sample.

        The pixels may be on another device than the weights. At most `max_pixels` are encoded at once, as consecutive
        chunks of frames, which does not change the latents. Only pictures of which `temporal` frames are larger are
        tiled. ValueError for a clip whose size the VAE's factors do not divide."""
        _, h, w = self.geometry.latent_size(*video.shape[2:])
        if len(video) > 1 and video[:, 0].numel() > self.max_pixels:
            return torch.cat([self.encode(clip[None]) for clip in video])
        frames_of_a_cell = self.temporal * len(video)
        tiling = Tiling.auto(self.geometry, (1, h, w), max(self.max_pixels // frames_of_a_cell, 1))
        tile = min(tiling.height, h) * min(tiling.width, w) * self.spatial**2
        cells = max(self.max_pixels // (frames_of_a_cell * tile), 1)
        return encode_tiled(lambda pixels: self._encode(pixels, cells), video, self.geometry, tiling)

    def decode(self, latent: Tensor, tiling: Tiling | None = None) -> Tensor:
        """Normalised latents (B, C, f, h, w) -> pixels (B, 3, F, H, W) in fp32, clamped to [-1, 1]."""
        if latent.ndim != 5 or latent.shape[1] != self.channels:
            raise ValueError(f"the VAE takes latents (B, {self.channels}, f, h, w), got {tuple(latent.shape)}")
        if self.diffusion is not None:
            return self.diffusion.decode(latent, torch.Generator().manual_seed(0), tiling=tiling).clamp(-1, 1)
        f, h, w = latent.shape[2:]
        pixels = ((f - 1) * self.temporal + 1) * h * w * self.spatial**2
        if tiling is None and len(latent) > 1 and len(latent) * pixels > self.max_pixels:
            return torch.cat([self.decode(clip[None]) for clip in latent])
        tiling = tiling or Tiling.auto(self.geometry, (f, h, w), max(self.max_pixels // len(latent), 1))
        return decode_tiled(self._decode, latent, self.geometry, tiling).clamp(-1, 1)
