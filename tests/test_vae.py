"""The VAE equals diffusers' VAE for every published layout; sections of other VAEs and wrong keys are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTX2Video
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.core.types import Geometry
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.vae.fused_encoder import FusedEncoder
from iclora_train.ltx2.vae.video_vae import VideoVAE, geometry_of, geometry_of_diffusers
from tests.tiny import VAE

LATENT = 8
ENCODER = ("compress_space_res", "compress_time_res", "compress_all_res", "compress_all_res")


def blocks(layers: tuple[int, ...], kinds: tuple[str, ...], params: list[dict[str, Any]]) -> list[Any]:
    sections: list[Any] = [["res_x", {"num_layers": layers[0]}]]
    for kind, settings, count in zip(kinds, params, layers[1:], strict=True):
        sections += [[kind, settings], ["res_x", {"num_layers": count}]]
    return sections


def multiply(*factors: int, **more: Any) -> list[dict[str, Any]]:
    return [{"multiplier": factor, **more} for factor in factors]


COMMON = {"_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3, "patch_size": 4}
COMMON |= {"latent_channels": LATENT, "norm_layer": "pixel_norm", "latent_log_var": "uniform", "causal_decoder": False}
COMMON |= {"timestep_conditioning": False, "use_quant_conv": False, "scaling_factor": 1.0}
SECTIONS: dict[str, dict[str, Any]] = {  # the official sections, with fewer layers and channels
    "2.0": COMMON
    | {
        "encoder_blocks": blocks((1, 2, 2, 1, 1), ENCODER, multiply(2, 2, 2, 2)),
        "decoder_blocks": blocks((2, 1, 1, 2), ("compress_all",) * 3, multiply(2, 2, 2, residual=True)),
        "decoder_base_channels": 8,
    },
    "2.3": COMMON
    | {
        "encoder_blocks": blocks((1, 2, 2, 1, 1), ENCODER, multiply(2, 2, 2, 1)),
        "decoder_blocks": blocks(
            (1, 2, 1, 1, 2), ("compress_space", "compress_time", "compress_all", "compress_all"), multiply(2, 2, 1, 2)
        ),
        "decoder_base_channels": 8,
        "spatial_padding_mode": "zeros",
    },
}
COMMON_DIFFUSERS = {
    "_class_name": "AutoencoderKLLTX2Video",
    "latent_channels": LATENT,
    "down_block_types": ["LTX2VideoDownBlock3D"] * 4,
    "layers_per_block": [1, 2, 2, 1, 1],
    "spatio_temporal_scaling": [True] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "encoder_causal": True,
    "decoder_causal": False,
    "encoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
CONFIGS: dict[str, dict[str, Any]] = {  # vae/config.json of the diffusers folders, with fewer layers and channels
    "2.0": COMMON_DIFFUSERS
    | {
        "block_out_channels": [16, 32, 64, 128],
        "decoder_block_out_channels": [16, 32, 64],
        "decoder_layers_per_block": [2, 1, 1, 2],
        "decoder_spatio_temporal_scaling": [True] * 3,
        "decoder_inject_noise": [False] * 4,
        "upsample_residual": [True] * 3,
        "upsample_factor": [2] * 3,
        "decoder_spatial_padding_mode": "reflect",
    },
    "2.3": COMMON_DIFFUSERS
    | {
        "block_out_channels": [16, 32, 64, 64],
        "decoder_block_out_channels": [16, 32, 32, 64],
        "decoder_layers_per_block": [1, 2, 1, 1, 2],
        "decoder_spatio_temporal_scaling": [True] * 4,
        "decoder_inject_noise": [False] * 5,
        "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
        "upsample_residual": [False] * 4,
        "upsample_factor": [2, 2, 1, 2],
        "decoder_spatial_padding_mode": "zeros",
    },
}
DIFFUSION: dict[str, Any] = {  # 2.5: the same encoder, another decoder (test_diffusion_decoder.py)
    "_class_name": "CausalDiffusionVAE",
    "dims": 3,
    "model_output_type": "x0",
    "encoder": {
        "_class_name": "Encoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": LATENT,
        "blocks": SECTIONS["2.3"]["encoder_blocks"],
        "patch_size": 4,
        "latent_log_var": "constant",
        "norm_layer": "pixel_norm",
        "spatial_padding_mode": "zeros",
    },
    "decoder": {
        "_class_name": "NADiffusionDecoder",
        "in_channels": LATENT,
        "out_channels": 3,
        "patch_size": 4,
        "head_dim": 16,
        "stage_channels": [128, 64, 32, 32, 16],
        "stage_depths": [1, 1, 1, 1, 2],
        "stage_kernels": [[3, 3, 3], [3, 3, 3], [3, 5, 5], [3, 3, 3], [3, 5, 5]],
        "upsamples": [[[1, 2, 2], 2], [[2, 1, 1], 2], [[2, 2, 2], 1], [[2, 2, 2], 2]],
        "spatial_padding_mode": "zeros",
        "resampler_kind": "linear",
        "stage5_kernel": [3, 5, 5],
        "timestep_scale_multiplier": 1000.0,
        "default_num_inference_steps": 1,
        "t_emb_dim": 16,
    },
}
DECODER_CONFIG = {
    "latent_channels": LATENT,
    "decoder_head_dim": 16,
    "decoder_stage_channels": (128, 64, 32, 32, 16),
    "decoder_stage_depths": (1, 1, 1, 1, 2),
    "decoder_stage_kernels": ((3, 3, 3), (3, 3, 3), (3, 5, 5), (3, 3, 3)),
    "decoder_stage5_kernel": (3, 5, 5),
    "decoder_t_emb_dim": 16,
}


def randomised(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
        model.latents_mean.normal_()
        model.latents_std.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


def official_name(key: str) -> str:
    """The official name of a key of diffusers' convolutional VAE."""
    if key in ("latents_mean", "latents_std"):
        return f"vae.per_channel_statistics.{key[8:]}-of-means"
    side, block, rest = re.fullmatch(r"(encoder|decoder)\.(\w+(?:\.\d+)?)\.(.*)", key).groups()  # type: ignore[union-attr]
    down = side == "encoder"
    if block == "mid_block":
        block = "down_blocks.8" if down else "up_blocks.0"
    elif block[-1].isdigit():
        name, i = block.split(".")
        resamples = "samplers" in rest
        block = f"{name}.{2 * int(i) + (resamples if down else 1 if resamples else 2)}"
        rest = re.sub(r"^(up|down)samplers\.0\.", "", rest)
    return f"vae.{side}.{block}." + rest.replace("resnets.", "res_blocks.")


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def pair(request: pytest.FixtureRequest) -> tuple[str, Any, dict[str, Tensor]]:
    """A version, diffusers' VAE with random weights, and the same weights under official keys."""
    torch.manual_seed(0)
    model = randomised(AutoencoderKLLTX2Video(**{k: v for k, v in CONFIGS[request.param].items() if k[0] != "_"}))
    return request.param, model, {official_name(key): tensor for key, tensor in model.state_dict().items()}


def check_equal(vae: VideoVAE, model: Any) -> None:
    video, latent = torch.rand(2, 3, 9, 64, 96) * 2 - 1, torch.randn(2, LATENT, 2, 2, 3)
    mean, std = (s.view(-1, 1, 1, 1) for s in (model.latents_mean, model.latents_std))
    encoded = (model.encode(video).latent_dist.mode() - mean) / std
    decoded = model.decode(latent * std + mean).sample
    assert encoded.shape == latent.shape
    assert 0.05 < decoded.std() < 50
    torch.testing.assert_close(vae.encode(video), encoded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.decode(latent), decoded.clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_official_files_give_the_published_modules(pair: Any) -> None:
    version, model, state = pair
    extra = {"vae.per_channel_statistics.channel": torch.arange(8), "model.diffusion_model.x": torch.ones(1)}
    vae = VideoVAE.from_config(SECTIONS[version], state | extra)
    check_equal(vae, model)
    split = {key.removeprefix("vae."): tensor for key, tensor in state.items()}  # the names in the split files of 2.5
    check_equal(VideoVAE.from_config(SECTIONS[version], split), model)
    assert vae.official_state().keys() == state.keys()
    assert vae.geometry == geometry_of(SECTIONS[version]) == Geometry(LATENT, 32, 8)


def test_diffusers_folders_give_the_same_modules(pair: Any) -> None:
    version, model, _ = pair
    check_equal(VideoVAE.from_diffusers(CONFIGS[version], model.state_dict()), model)
    assert geometry_of_diffusers(CONFIGS[version]) == Geometry(LATENT, 32, 8)
    with pytest.raises(ConfigError, match=r"downsample_type|spatial_compression_ratio"):
        geometry_of_diffusers(CONFIGS[version] | {"spatial_compression_ratio": 16})
    with pytest.raises(ConfigError, match="timestep_conditioning"):
        geometry_of_diffusers(CONFIGS[version] | {"timestep_conditioning": True})
    with pytest.raises(ConfigError, match="layers_per_block"):
        geometry_of_diffusers(CONFIGS[version] | {"layers_per_block": [1, 2]})
    with pytest.raises(ConfigError, match="AutoencoderKLWan"):
        geometry_of_diffusers({"_class_name": "AutoencoderKLWan"})


@pytest.mark.parametrize(
    ("padding", "encoder", "decoder"),
    [
        ({}, "zeros", "reflect"),
        ({"spatial_padding_mode": "zeros"}, "zeros", "zeros"),
        ({"spatial_padding_mode": "reflect"}, "reflect", "reflect"),
        ({"encoder_spatial_padding_mode": "zeros", "decoder_spatial_padding_mode": "reflect"}, "zeros", "reflect"),
    ],
)
def test_padding_follows_the_published_code(padding: dict[str, str], encoder: str, decoder: str) -> None:
    model = VideoVAE.from_config(VAE | padding).model
    assert model.encoder.conv_in.conv.padding_mode == encoder
    assert model.decoder.conv_in.conv.padding_mode == decoder


def test_keys_that_do_not_fit_are_named(pair: Any) -> None:
    version, _, state = pair
    section = SECTIONS[version]
    incomplete = {key: tensor for key, tensor in state.items() if "encoder.conv_out.conv.bias" not in key}
    with pytest.raises(ConfigError, match=r"1 keys: missing encoder.conv_out.conv.bias.*fetch it again"):
        VideoVAE.from_config(section, incomplete)
    with pytest.raises(ConfigError, match=r"unknown vae.decoder.last_time_embedder.weight"):
        VideoVAE.from_config(section, state | {"vae.decoder.last_time_embedder.weight": torch.ones(1)})
    with pytest.raises(ConfigError, match=r"encoder.conv_in.conv.bias has shape \(3,\) instead of \(8,\)"):
        VideoVAE.from_config(section, state | {"vae.encoder.conv_in.conv.bias": torch.ones(3)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ({"encoder_blocks": None}, "vae.encoder_blocks is missing"),
        ({"encoder_blocks": [["res_x", 1], ["attn", {}], ["res_x", 1]]}, r"encoder_blocks\[1\] is 'attn'"),
        ({"encoder_blocks": [["res_x", 1], ["compress_all", {}], ["res_x", 1]]}, "compress_all_res"),
        ({"decoder_blocks": [["res_x", 1], ["compress_all", {}], ["res_x", 1]]}, "decoder expands by"),
        ({"norm_layer": "group_norm"}, "vae.norm_layer='group_norm'"),
        ({"timestep_conditioning": True}, "vae.timestep_conditioning=True"),
    ],
)
def test_sections_of_other_vaes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        geometry_of(VAE | change)


def test_bf16_is_close_to_fp32_with_nanos_weights() -> None:
    exact, coarse = (BaseModel.open("nano").vae() for _ in range(2))
    coarse.to(torch.bfloat16)
    with torch.no_grad():
        latent = torch.randn(1, exact.channels, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        video = exact.decode(latent)
        errors = exact.encode(video) - coarse.encode(video), video - coarse.decode(latent)
    assert errors[0].dtype == errors[1].dtype == torch.float32
    assert 0 < errors[0].square().mean().sqrt() < 0.03
    assert 0 < errors[1].square().mean().sqrt() < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_the_fused_encoder_equals_the_layers_of_diffusers(version: str, dtype: torch.dtype) -> None:
    """Widths that are and are not powers of two; one chunk and several."""
    section = SECTIONS[version] | {"latent_channels": 12}
    vae = VideoVAE.from_config(section)
    randomised(vae.model)
    video = torch.rand(2, 3, 25, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact = vae.encode(video)
    vae.to("cuda", dtype)
    assert FusedEncoder.supports(vae.model.encoder)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), torch.inference_mode():
        whole = vae.encode(video)
        vae.max_pixels = 2 * vae.temporal * 64 * 96
        chunks = vae.encode(video)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    scale = exact.std().item()
    assert (whole.cpu() - exact).abs().max() < tolerance * scale * 5
    assert (whole.cpu() - exact).square().mean().sqrt() < tolerance * scale
    assert (chunks - whole).square().mean().sqrt() < tolerance * scale
    vae.to("cpu", torch.float32)  # the weights of the encoder are channels-last now
    assert all(tensor.isfinite().all() for tensor in vae.official_state().values())
