"""LTX-2.5's diffusion video decoder: latents of the convolutional encoder -> pixels, by denoising the pixels.

It wraps diffusers' LTX2VideoDiffusionDecoderModel. The official section is `vae` with `_class_name` CausalDiffusionVAE:
sizes are under `decoder`, next to `model_output_type` (ltx-core's `video_vae/model_configurator.py`). The keys are
`vae.decoder.*` (renamed as in diffusers' `scripts/convert_ltx2_to_diffusers.py`). The published decoder takes one step
from pure noise and predicts the pixels (x0)."""

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
from iclora_train.ltx2.vae.layout import VAE_REMEDY, Section, State, geometry_of, is_diffusion, with_vae_prefix
from iclora_train.ltx2.vae.neighborhood_attention import NeighborhoodProcessor
from iclora_train.ltx2.vae.tiling import Tiling, blend_tiles
from iclora_train.ltx2.weights.assign import load_state
from iclora_train.ltx2.weights.key_names import STATISTICS

# Default for the pixels of a tile. With the published widths its hidden states need 14 GiB in fp32, 9 GiB in bf16.
MAX_PIXELS = 1 << 24
SHARED_FRAMES, SHARED = 3, 4  # overlap of tiles in latent cells: 24 frames and 128 pixels

RENAMED = {
    "t_embedder.mlp.0.": "t_embedder.timestep_embedder.linear_1.",
    "t_embedder.mlp.2.": "t_embedder.timestep_embedder.linear_2.",
    ".attn.proj.": ".attn.to_out.0.",
    ".attn.q_norm.": ".attn.norm_q.",
    ".attn.k_norm.": ".attn.norm_k.",
}
GATED = {".attn.proj.": "gate_msa", ".mlp.w_down.": "gate_mlp", ".context_proj.": "gate_ctx"}
UNUSED = re.compile(r"(^|\.)coarse_|^type_emb$|\.gate_(msa|mlp|ctx)$")  # preview heads, and gates (in the linears)


def decoder_config(section: Section) -> dict[str, Any]:
    """Official CausalDiffusionVAE section -> arguments of LTX2VideoDiffusionDecoderModel. ConfigError names a missing
    or unsupported field. Defaults are ltx-core's."""
    decoder = section.get("decoder")
    if not is_diffusion(section) or not isinstance(decoder, dict):
        raise ConfigError(
            "vae has no diffusion decoder, which needs _class_name CausalDiffusionVAE and a section decoder"
        )
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
    """Official keys (`vae.decoder.*` with or without `vae.`, and the statistics) -> diffusers' keys. A fused qkv
    becomes three projections; a static gate, which some files have, is multiplied into the linear that it gates."""
    state = with_vae_prefix(state)
    out = {name: state[f"vae.{key}"] for key, name in STATISTICS.items() if f"vae.{key}" in state}
    decoder = {key.removeprefix("vae.decoder."): t for key, t in state.items() if key.startswith("vae.decoder.")}
    for key, raw in decoder.items():
        if UNUSED.search(key):
            continue
        gates = [decoder.get(f"{key.partition(leaf)[0]}.{gate}") for leaf, gate in GATED.items() if leaf in key]
        tensor = _gated(raw, gates[0]) if gates and gates[0] is not None else raw
        name = key
        for official, renamed in RENAMED.items():
            name = name.replace(official, renamed)
        if ".attn.qkv." in name:
            projections = zip("qkv", tensor.chunk(3), strict=True)
            out |= {"decoder." + name.replace(".qkv.", f".to_{letter}."): weight for letter, weight in projections}
        else:
            out["decoder." + name] = tensor
    return out


def _gated(tensor: Tensor, gate: Tensor) -> Tensor:
    """A linear's weight or bias, with each output multiplied by its gate (out)."""
    return (tensor.float() * gate.float().view(-1, *[1] * (tensor.ndim - 1))).to(tensor.dtype)


def to_official(state: State) -> State:
    """The inverse of `to_diffusers` without statistics and gates; qkv is fused."""
    out: State = {}
    for key, tensor in state.items():
        name = key.replace("decoder.", "vae.decoder.", 1)
        for official, renamed in RENAMED.items():
            name = name.replace(renamed, official)
        if ".attn.to_q." in name:
            key_and_value = [state[key.replace(".to_q.", f".to_{letter}.")] for letter in "kv"]
            out[name.replace(".to_q.", ".qkv.")] = torch.cat([tensor, *key_and_value])
        elif key.startswith("decoder.") and not re.search(r"\.attn\.to_[kv]\.", name):
            out[name] = tensor
    return out


class DiffusionDecoder(nn.Module):
    """Normalised latents -> pixels by LTX-2.5's diffusion decoder, in tiles."""

    def __init__(self, section: Section):
        super().__init__()
        self.geometry: Geometry = geometry_of(section)
        config = decoder_config(section)
        try:
            self.model: Any = LTX2VideoDiffusionDecoderModel(**config)  # Any: diffusers is not typed
        except ValueError as error:  # channels and reductions that contradict each other
            raise ConfigError(f"vae.decoder: {error}") from error
        processor: Any = NeighborhoodProcessor()
        for module in self.modules():
            if isinstance(module, LTX2VideoVaeNeighborhoodAttention):
                module.set_processor(processor)
        self.max_pixels = MAX_PIXELS
        self.kernels = [*config["decoder_stage_kernels"], config["decoder_stage5_kernel"]]
        self.strides: list[tuple[int, ...]] = list(config["decoder_upsample_strides"])

    @classmethod
    def from_config(
        cls, section: Section, state: State, dtype: torch.dtype = torch.float32, source: object = "state_dict"
    ) -> DiffusionDecoder:
        """Build from the official `vae` section and official keys, with or without the leading `vae.`; other models'
        keys are ignored. source: the file, for messages. ConfigError as in `check_keys`."""
        with torch.device("meta"):
            decoder = cls(section)
        decoder.load(state, dtype, source)
        return decoder.eval()

    def load(self, state: State, dtype: torch.dtype, source: object = "state_dict") -> None:
        """Load weights with official keys. source: the file, for messages."""
        state = {key: tensor.to(dtype) for key, tensor in to_diffusers(state).items()}
        load_state(self.model, state, source, "diffusion decoder", VAE_REMEDY)

    def official_state(self) -> State:
        """The weights with official keys, without the statistics."""
        return to_official(self.model.state_dict())

    def _min_grid(self) -> tuple[int, int, int]:
        """The smallest latent grid in which the attention window of every stage fits."""
        cells = [1, 1, 1]
        for stage, kernel in enumerate(self.kernels):
            for axis in range(3):
                factor = math.prod(stride[axis] for stride in self.strides[:stage])
                least = -(-kernel[axis] // factor)
                if axis == 0:  # (f - 1) factor + 1 frames; all stages but the last have trailing padding
                    ghosts = self.model.decoder.trailing_pad_latent_frames if stage < len(self.strides) else 0
                    least = -(-(kernel[0] - 1) // factor) + 1 - ghosts
                cells[axis] = max(cells[axis], least)
        return cells[0], cells[1], cells[2]

    def _padded(self, latent: Tensor) -> tuple[Tensor, int, int]:
        """Repeat border cells of a small clip until all windows fit: at the end in time, on both sides in space.
        Returns the padded latent and the padding at the top and left."""
        f, h, w = (max(0, least - size) for least, size in zip(self._min_grid(), latent.shape[2:], strict=True))
        padding = (w // 2, w - w // 2, h // 2, h - h // 2, 0, f)
        return functional.pad(latent, padding, mode="replicate"), h // 2, w // 2

    def decode(
        self, latent: Tensor, generator: torch.Generator, steps: int | None = None, tiling: Tiling | None = None
    ) -> Tensor:
        """Normalised latents (B, C, f, h, w) -> pixels (B, 3, F, H, W) in fp32, about [-1, 1].

        Decoding starts with unit Gaussian noise from `generator` (drawn per tile if one step predicts x0). steps: None
        for the checkpoint's number; levels are evenly spaced from 1 down. tiling: None for tiles of at most
        `max_pixels`. Only the last deterministic stage and the denoising are tiled; overlaps are blended."""
        if len(latent) > 1:
            return torch.cat([self.decode(clip[None], generator, steps, tiling) for clip in latent])
        _, _, f, h, w = latent.shape
        mean, std = (getattr(self.model, name).float().view(-1, 1, 1, 1) for name in STATISTICS.values())
        padded, top, left = self._padded(latent.to(self.model.device).float() * std + mean)
        cells = (padded.shape[2], padded.shape[3], padded.shape[4])
        tiling = tiling or Tiling.auto(self.geometry, cells, self.max_pixels, SHARED_FRAMES, SHARED)
        video = self._decode(padded.to(self.model.dtype), generator, steps, tiling).float()
        s, frames = self.geometry.spatial, (f - 1) * self.geometry.temporal + 1
        return video[:, :, :frames, top * s : (top + h) * s, left * s : (left + w) * s]

    def _decode(self, latent: Tensor, generator: torch.Generator, steps: int | None, tiling: Tiling) -> Tensor:
        """Latents (1, C, f, h, w) in the model's scale -> pixels. The stages before the last run on the whole clip, the
        rest one tile at a time. (diffusers' tiling would decode a short remainder at the clip's end separately.)
        """
        decoder = self.model.decoder
        steps = steps or decoder.default_num_inference_steps
        t, h, w = (math.prod(axis) for axis in zip(*self.strides[:-1], strict=True))  # tiled cells per latent cell
        last = self.strides[-1]
        missing = last[0] - 1  # pixel frames that the first cell has fewer than the others
        features = decoder.forward_stages_1_to_3(latent)  # (1, t, h, w, C)
        ghosts = decoder.trailing_pad_latent_frames * t
        grid = (features.shape[1] - ghosts, features.shape[2], features.shape[3])
        times, rows, columns = tiling.scaled(t, h, w).spans(*grid)
        size = [last[1] * decoder.patch_size, last[2] * decoder.patch_size]
        places = (
            [slice(max(a * last[0] - missing, 0), b * last[0] - missing) for a, b in times],
            [slice(a * size[0], b * size[0]) for a, b in rows],
            [slice(a * size[1], b * size[1]) for a, b in columns],
        )
        shared_noise: Tensor | None = None
        if steps > 1 or decoder.model_output_type != "x0":
            shared_noise = self._noise(tuple(axis[-1].stop for axis in places), generator)

        def decode_tile(i: int, j: int, k: int) -> Tensor:
            (start, stop), is_last = times[i], times[i][1] == grid[0]
            tile = features[:, start : None if is_last else stop, slice(*rows[j]), slice(*columns[k])]
            context = decoder.forward_stage_4(tile, drop_leading_frame=start == 0, crop_trailing_ghost=is_last)
            place = (places[0][i], places[1][j], places[2][k])
            size = tuple(axis.stop - axis.start for axis in place)
            noise = self._noise(size, generator) if shared_noise is None else shared_noise[(..., *place)]
            return decoder.denoise(context, noise, steps)

        return blend_tiles(decode_tile, places)

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
