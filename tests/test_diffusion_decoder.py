"""LTX-2.5's diffusion decoder, loaded from official keys, equals diffusers' model, and decodes in tiles."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import LTX2VideoDiffusionDecoderModel
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.core.types import Geometry
from iclora_train.ltx2.vae.diffusion_decoder import DiffusionDecoder
from iclora_train.ltx2.vae.neighborhood_attention import neighborhood_attention
from iclora_train.ltx2.vae.tiling import Tiling
from iclora_train.ltx2.vae.video_vae import VideoVAE, geometry_of
from tests.test_vae import DECODER_CONFIG, DIFFUSION, LATENT, SECTIONS, randomised

Pair = tuple[Any, dict[str, Tensor]]


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of the published renaming: fused qkv, official names, official statistics."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith("latents_"):
            renamed[f"per_channel_statistics.{key[8:]}-of-means"] = tensor
            continue
        name = key.replace("timestep_embedder.linear_1", "mlp.0").replace("timestep_embedder.linear_2", "mlp.2")
        name = name.replace("norm_q", "q_norm").replace("norm_k", "k_norm").replace("to_out.0", "proj")
        if ".to_q." in key:
            name = name.replace("to_q", "qkv")
            renamed[name] = torch.cat([state[key.replace("to_q", f"to_{part}")] for part in "qkv"])
        elif ".to_k." not in key and ".to_v." not in key:
            renamed[name] = tensor
    return renamed


@pytest.fixture(scope="module")
def pair() -> Pair:
    """diffusers' model with random weights, and the same weights under official keys."""
    torch.manual_seed(0)
    model = randomised(LTX2VideoDiffusionDecoderModel(**DECODER_CONFIG))
    return model, official(model.state_dict())


def denormalised(model: Any, latent: Tensor) -> Tensor:
    mean, std = (statistic.view(-1, 1, 1, 1) for statistic in (model.latents_mean, model.latents_std))
    return latent * std + mean


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("steps", [None, 2])
def test_official_files_give_the_published_decoder(pair: Pair, steps: int | None) -> None:
    model, state = pair
    decoder = DiffusionDecoder.from_config(DIFFUSION, state | {"decoder.coarse_head.weight": torch.ones(1)})
    latent = torch.randn(1, LATENT, 2, 3, 3)
    published = model.decode(denormalised(model, latent), torch.Generator().manual_seed(1), steps).sample
    ours = decoder.decode(latent, torch.Generator().manual_seed(1), steps)
    assert ours.shape == (1, 3, 9, 96, 96)
    assert published.std() > 0.01
    torch.testing.assert_close(ours, published, atol=1e-5, rtol=1e-5)


def test_static_gates_are_folded_into_the_gated_linears(pair: Pair) -> None:
    _, state = pair
    gated = {k: t.clone() for k, t in state.items()}
    block = "decoder.diff_blocks.1."
    for suffix, gate in ((".attn.proj", "gate_msa"), (".mlp.w_down", "gate_mlp"), (".context_proj", "gate_ctx")):
        gated[block + gate] = torch.rand(16) + 0.5
        gated[f"{block}{suffix[1:]}.weight"] /= gated[block + gate][:, None]
        if f"{block}{suffix[1:]}.bias" in gated:
            gated[f"{block}{suffix[1:]}.bias"] /= gated[block + gate]
    plain, folded = (DiffusionDecoder.from_config(DIFFUSION, weights).model.state_dict() for weights in (state, gated))
    assert plain.keys() == folded.keys()
    for key, tensor in plain.items():
        torch.testing.assert_close(folded[key], tensor, atol=1e-6, rtol=1e-5)


def test_windows_are_shifted_inwards_at_the_borders() -> None:
    grid, kernel = (5, 9, 19), (3, 5, 11)
    query, key, value = (torch.randn(2, *grid, 2, 8) for _ in range(3))
    index = torch.cartesian_prod(*(torch.arange(n) for n in grid))
    visible = torch.ones(len(index), len(index), dtype=torch.bool)
    for axis in range(3):
        first = (index[:, axis] - kernel[axis] // 2).clamp(0, grid[axis] - kernel[axis])
        position = index[:, axis]
        visible &= (position[None] >= first[:, None]) & (position[None] < first[:, None] + kernel[axis])
    assert (visible.sum(1) == 3 * 5 * 11).all()
    flat = [tensor.flatten(1, 3).transpose(1, 2) for tensor in (query, key, value)]
    expected = ((flat[0] @ flat[1].mT).masked_fill(~visible, -torch.inf).softmax(-1) @ flat[2]).transpose(1, 2)
    ours = neighborhood_attention(query, key, value, kernel)
    torch.testing.assert_close(ours.flatten(1, 3), expected, atol=1e-5, rtol=1e-5)


def test_tiles_change_little_and_small_clips_decode(pair: Pair) -> None:
    decoder = DiffusionDecoder.from_config(DIFFUSION, pair[1])
    latent = torch.randn(1, LATENT, 3, 4, 6)

    def decode(latents: Tensor, tiling: Tiling | None, steps: int = 2) -> Tensor:
        return decoder.decode(latents, torch.Generator().manual_seed(1), steps, tiling)

    whole, tiled = decode(latent, None), decode(latent, Tiling(2, 4, 4, 1, 2))
    assert 0 < (whole - tiled).square().mean().sqrt() < 0.02 * whole.std()
    tokens: list[int] = []
    hook = decoder.model.decoder.conv_out.register_forward_pre_hook(
        lambda _, inputs: tokens.append(inputs[0][0, ..., 0].numel())
    )
    decoder.max_pixels = 9 * 128 * 256
    assert decode(torch.randn(1, LATENT, 2, 4, 12), None, steps=1).shape == (1, 3, 9, 128, 384)
    hook.remove()
    assert [count * 16 for count in tokens] == [9 * 128 * 256] * 2
    assert decode(latent[:, :, :1, :1, :2], None).shape == (1, 3, 1, 32, 64)


def test_the_vae_file_of_the_diffusion_decoder_encodes_and_decodes(pair: Pair) -> None:
    """The encoder equals the convolutional VAE's; decode needs no seed and is deterministic."""
    model, state = pair
    torch.manual_seed(0)
    conv = VideoVAE.from_config(SECTIONS["2.3"])
    conv.model.latents_mean.copy_(model.latents_mean)
    conv.model.latents_std.copy_(model.latents_std)
    encoder = {k: t for k, t in conv.official_state().items() if k.startswith("vae.encoder.")}
    vae = VideoVAE.from_config(DIFFUSION, encoder | state)
    video = torch.rand(1, 3, 9, 64, 64) * 2 - 1
    with torch.no_grad():
        latent = vae.encode(video)
        assert torch.equal(latent, conv.encode(video))
        pixels = vae.decode(latent)
        assert torch.allclose(pixels, vae.decode(latent), atol=1e-5)
        direct = DiffusionDecoder.from_config(DIFFUSION, state).decode(latent, seeded()).clamp(-1, 1)
        assert torch.allclose(pixels, direct, atol=1e-5)
    assert pixels.shape == video.shape
    assert geometry_of(DIFFUSION) == Geometry(LATENT, 32, 8)
    prefixed = {f"vae.{key.removeprefix('vae.')}" for key in encoder | state}
    assert vae.official_state().keys() == prefixed


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_wrong_sections_and_keys_are_named(pair: Pair) -> None:
    _, state = pair
    with pytest.raises(ConfigError, match="vae has no diffusion decoder"):
        DiffusionDecoder.from_config(SECTIONS["2.3"], state)
    for key, value, message in (
        ("stage5_kernel", None, r"vae.decoder.stage5_kernel missing"),
        ("resampler_kind", "conv", r"vae.decoder.resampler_kind='conv'"),
        ("stage_channels", [128, 64, 32, 32, 32], r"vae.decoder: stage_channels\[4\]"),
    ):
        section = copy.deepcopy(DIFFUSION)
        section["decoder"][key] = value
        if value is None:
            del section["decoder"][key]
        with pytest.raises(ConfigError, match=message):
            DiffusionDecoder.from_config(section, state)
    incomplete = {key: tensor for key, tensor in state.items() if key != "decoder.conv_out.bias"}
    with pytest.raises(ConfigError, match=r"1 keys: missing decoder.conv_out.bias"):
        DiffusionDecoder.from_config(DIFFUSION, incomplete)
    with pytest.raises(ConfigError, match=r"unknown decoder.up_blocks.0.x"):
        DiffusionDecoder.from_config(DIFFUSION, state | {"decoder.up_blocks.0.x": torch.ones(1)})
