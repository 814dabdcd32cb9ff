"""LTX-2.5's diffusion video decoder: the latents of the convolutional encoder -> pixels, by denoising them.

Around diffusers' LTX2VideoDiffusionDecoderModel. The official section is `vae` with `_class_name` CausalDiffusionVAE:
sizes under `decoder`, `model_output_type` beside it (ltx-core's `video_vae/model_configurator.py`); the keys are
`vae.decoder.*` (renaming as in diffusers' `scripts/convert_ltx2_to_diffusers.py`). It ships as one step from pure noise
that predicts the pixels (x0)."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from diffusers import LTX2VideoDiffusionDecoderModel
from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoVaeNeighborhoodAttention
from torch import Tensor, nn
from torch.nn import functional

from iclora_train.config import ConfigError
from iclora_train.core.types import Geometry
from iclora_train.ltx2.vae.layout import Section, State, geometry_of, is_diffusion, with_vae_prefix
from iclora_train.ltx2.vae.neighborhood_attention import NeighborhoodProcessor
from iclora_train.ltx2.vae.tiling import Tiling, blend_tiles
from iclora_train.ltx2.weights.key_names import STATISTICS

# Pixels of a tile by default: at the published widths its hidden states take 14 GiB in fp32 and 9 GiB in bf16.
MAX_PIXELS = 1 << 24
SHARED_FRAMES, SHARED = 3, 4  # latent cells that tiles share: 24 frames and 128 pixels

RENAMED = {
    "t_embedder.mlp.0.": "t_embedder.timestep_embedder.linear_1.",
    "t_embedder.mlp.2.": "t_embedder.timestep_embedder.linear_2.",
    ".attn.proj.": ".attn.to_out.0.",
    ".attn.q_norm.": ".attn.norm_q.",
    ".attn.k_norm.": ".attn.norm_k.",
}
GATED = {".attn.proj.": "gate_msa", ".mlp.w_down.": "gate_mlp", ".context_proj.": "gate_ctx"}
UNUSED = re.compile(r"(^|\.)coarse_|^type_emb$|\.gate_(msa|mlp|ctx)$")  # preview heads; gates are folded


def decoder_config(section: Section) -> dict[str, Any]:
    """Official CausalDiffusionVAE section -> arguments of LTX2VideoDiffusionDecoderModel. ConfigError names a field
    that is missing or that this decoder cannot have. Defaults are ltx-core's."""
    decoder = section.get("decoder")
    if not is_diffusion(section) or not isinstance(decoder, dict):
        raise ConfigError("vae has no diffusion decoder: that needs _class_name CausalDiffusionVAE and vae.decoder")
    needed = ("stage_channels", "stage_depths", "stage_kernels", "upsamples", "stage5_kernel")
    missing = [f"vae.decoder.{key}" for key in needed if key not in decoder]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing from the metadata; fetch the VAE file of LTX-2.5 again")
    channels = tuple(decoder["stage_channels"])
    fixed = {"spatial_padding_mode": "zeros", "resampler_kind": "linear", "stage5_channels": channels[-1]}
    for key, value in fixed.items():
        if decoder.get(key, value) != value:
            raise ConfigError(f"vae.decoder.{key}={decoder[key]!r} is not supported; LTX-2.5's decoder has {value!r}")
    geometry, strides = geometry_of(section), [tuple(stride) for stride, _ in decoder["upsamples"]]
    return {
        "out_channels": decoder.get("out_channels", 3),
        "latent_channels": decoder.get("in_channels", geometry.channels),
        "patch_size": decoder.get("patch_size", 4),
        "decoder_head_dim": decoder.get("head_dim", decoder.get("na_head_dim", 64)),
        "decoder_stage_channels": channels,
        "decoder_stage_depths": tuple(decoder["stage_depths"]),
        "decoder_stage_kernels": tuple(tuple(kernel) for kernel in decoder["stage_kernels"][: len(strides)]),
        "decoder_upsample_strides": tuple(strides),
        "decoder_upsample_channel_reductions": tuple(reduction for _, reduction in decoder["upsamples"]),
        "decoder_stage5_kernel": tuple(decoder["stage5_kernel"]),
        "decoder_t_emb_dim": decoder.get("t_emb_dim", 384),
        "decoder_timestep_scale_multiplier": decoder.get("timestep_scale_multiplier", 1.0),
        "decoder_model_output_type": section.get("model_output_type", "v"),
        "decoder_num_inference_steps": decoder.get("default_num_inference_steps", 2),
        "spatial_compression_ratio": geometry.spatial,
        "temporal_compression_ratio": geometry.temporal,
    }


def to_diffusers(state: State) -> State:
    """Official keys (`vae.decoder.*`, with or without `vae.`, and the statistics) -> diffusers'. A fused qkv becomes
    three projections; a static gate, where a file has them, is multiplied into the linear that it gates."""
    state = with_vae_prefix(state)
    out = {ours: state[f"vae.{key}"] for key, ours in STATISTICS.items() if f"vae.{key}" in state}
    own = {key.removeprefix("vae.decoder."): t for key, t in state.items() if key.startswith("vae.decoder.")}
    for key, raw in own.items():
        if UNUSED.search(key):
            continue
        gates = [own.get(f"{key.partition(leaf)[0]}.{gate}") for leaf, gate in GATED.items() if leaf in key]
        tensor = _gated(raw, gates[0]) if gates and gates[0] is not None else raw
        name = key
        for official, ours in RENAMED.items():
            name = name.replace(official, ours)
        if ".attn.qkv." in name:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            out |= {"decoder." + name.replace(".qkv.", f".to_{part}."): piece for part, piece in parts}
        else:
            out["decoder." + name] = tensor
    return out


def _gated(tensor: Tensor, gate: Tensor) -> Tensor:
    """A linear's weight or bias with each output multiplied by its gate (out)."""
    return (tensor.float() * gate.float().view(-1, *[1] * (tensor.ndim - 1))).to(tensor.dtype)


def to_official(state: State) -> State:
    """The inverse of `to_diffusers`, without statistics: no gates, fused qkv."""
    out: State = {}
    for key, tensor in state.items():
        name = key.replace("decoder.", "vae.decoder.", 1)
        for official, ours in RENAMED.items():
            name = name.replace(ours, official)
        if ".attn.to_q." in name:
            others = [state[key.replace(".to_q.", f".to_{part}.")] for part in "kv"]
            out[name.replace(".to_q.", ".qkv.")] = torch.cat([tensor, *others])
        elif key.startswith("decoder.") and not re.search(r"\.attn\.to_[kv]\.", name):
            out[name] = tensor
    return out


class DiffusionDecoder(nn.Module):
    """Normalised latents -> pixels with 2.5's diffusion decoder, in tiles."""

    def __init__(self, section: Section):
        super().__init__()
        self.geometry: Geometry = geometry_of(section)
        config = decoder_config(section)
        try:
            self.model: Any = LTX2VideoDiffusionDecoderModel(**config)  # Any: diffusers is not typed
        except ValueError as error:  # widths and reductions that contradict each other
            raise ConfigError(f"vae.decoder: {error}") from error
        processor: Any = NeighborhoodProcessor()
        for module in self.modules():
            if isinstance(module, LTX2VideoVaeNeighborhoodAttention):
                module.set_processor(processor)
        self.max_pixels = MAX_PIXELS
        self.kernels = [*config["decoder_stage_kernels"], config["decoder_stage5_kernel"]]
        self.strides: list[tuple[int, ...]] = list(config["decoder_upsample_strides"])

    @classmethod
    def from_config(cls, section: Section, state: State, dtype: torch.dtype = torch.float32) -> DiffusionDecoder:
        """Build from the official `vae` section and official keys, with or without the leading `vae.`; other models'
        keys are ignored. ConfigError names missing, odd and misshapen keys."""
        with torch.device("meta"):
            decoder = cls(section)
        decoder.load(state, dtype)
        return decoder.eval()

    def load(self, state: State, dtype: torch.dtype) -> None:
        """Take the weights from official keys."""
        from iclora_train.ltx2.weights.assign import load_state  # noqa: PLC0415 (vae.py imports this module)

        state = {key: tensor.to(dtype) for key, tensor in to_diffusers(state).items()}
        load_state(self.model, state, "diffusion decoder")

    def official_state(self) -> State:
        """The weights under their official names, without the statistics."""
        return to_official(self.model.state_dict())

    def _floor(self) -> tuple[int, int, int]:
        """The smallest latent grid on which every stage's window fits."""
        floor = [1, 1, 1]
        for stage, kernel in enumerate(self.kernels):
            for axis in range(3):
                factor = math.prod(stride[axis] for stride in self.strides[:stage])
                least = -(-kernel[axis] // factor)
                if axis == 0:  # (f - 1) factor + 1 frames, of more than f but for the last stage
                    ghosts = self.model.decoder.trailing_pad_latent_frames if stage < len(self.strides) else 0
                    least = -(-(kernel[0] - 1) // factor) + 1 - ghosts
                floor[axis] = max(floor[axis], least)
        return floor[0], floor[1], floor[2]

    def _padded(self, latent: Tensor) -> tuple[Tensor, int, int]:
        """Repeat border cells of a small clip until all windows fit: at the end of time, on both sides in space."""
        f, h, w = (max(0, least - size) for least, size in zip(self._floor(), latent.shape[2:], strict=True))
        padding = (w // 2, w - w // 2, h // 2, h - h // 2, 0, f)
        return functional.pad(latent, padding, mode="replicate"), h // 2, w // 2

    def decode(
        self, latent: Tensor, generator: torch.Generator, steps: int | None = None, tile: Tiling | None = None
    ) -> Tensor:
        """Normalised latents (B, C, f, h, w) -> pixels (B, 3, F, H, W) in fp32, about [-1, 1].

        The start is unit Gaussian noise from `generator` (a tile draws its own when one step predicts x0); `steps`
        None is the checkpoint's number, levels are evenly spaced from 1 down. Without `tile`, tiles of at most
        `max_pixels`; only the last deterministic stage and the denoising are tiled, the pixels between blend_tiles."""
        if len(latent) > 1:
            return torch.cat([self.decode(clip[None], generator, steps, tile) for clip in latent])
        _, _, f, h, w = latent.shape
        mean, std = (getattr(self.model, name).float().view(-1, 1, 1, 1) for name in STATISTICS.values())
        padded, top, left = self._padded(latent.to(self.model.device).float() * std + mean)
        cells = (padded.shape[2], padded.shape[3], padded.shape[4])
        tile = tile or Tiling.auto(self.geometry, cells, self.max_pixels, SHARED_FRAMES, SHARED)
        video = self._decode(padded.to(self.model.dtype), generator, steps, tile).float()
        s, frames = self.geometry.spatial, (f - 1) * self.geometry.temporal + 1
        return video[:, :, :frames, top * s : (top + h) * s, left * s : (left + w) * s]

    def _decode(self, latent: Tensor, generator: torch.Generator, steps: int | None, tile: Tiling) -> Tensor:
        """Latents (1, C, f, h, w) in the model's own scale -> pixels: the stages before the last on the whole clip, the
        rest a tile at a time. diffusers' own tiling would decode a short rest at the clip's end in isolation."""
        decoder = self.model.decoder
        steps = steps or decoder.default_num_inference_steps
        t, h, w = (math.prod(axis) for axis in zip(*self.strides[:-1], strict=True))  # tiled cells in a latent cell
        last = self.strides[-1]
        first = last[0] - 1  # pixel frames that the first cell lacks
        features = decoder.forward_stages_1_to_3(latent)  # (1, t, h, w, C)
        ghosts = decoder.trailing_pad_latent_frames * t
        grid = (features.shape[1] - ghosts, features.shape[2], features.shape[3])
        times, rows, columns = tile.scaled(t, h, w).spans(*grid)
        size = [last[1] * decoder.patch_size, last[2] * decoder.patch_size]
        places = (
            [slice(max(a * last[0] - first, 0), b * last[0] - first) for a, b in times],
            [slice(a * size[0], b * size[0]) for a, b in rows],
            [slice(a * size[1], b * size[1]) for a, b in columns],
        )
        whole: Tensor | None = None
        if steps > 1 or decoder.model_output_type != "x0":
            whole = self._noise(tuple(axis[-1].stop for axis in places), generator)

        def one(i: int, j: int, k: int) -> Tensor:
            (start, stop), ends = times[i], times[i][1] == grid[0]
            part = features[:, start : None if ends else stop, slice(*rows[j]), slice(*columns[k])]
            context = decoder.forward_stage_4(part, drop_leading_frame=start == 0, crop_trailing_ghost=ends)
            place = (places[0][i], places[1][j], places[2][k])
            size = tuple(axis.stop - axis.start for axis in place)
            noise = self._noise(size, generator) if whole is None else whole[(..., *place)]
            return decoder.denoise(context, noise, steps)

        return blend_tiles(one, places)

    def _noise(self, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        noise = torch.randn(
            1,
            self.model.decoder.out_channels,
            *size,
            generator=generator,
            device=generator.device,
            dtype=self.model.dtype,
        )
        return noise.to(self.model.device)
