"""The latent upsampler: official files, the VAE's normalisation, and files that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.ltx2.vae.upsampler import LatentUpsampler
from iclora_train.ltx2.vae.video_vae import VideoVAE
from scripts.synthetic.upsampler import CONFIG, specs, write_upsampler
from tests.tiny import CHANNELS, VAE

SMALL = {"in_channels": CHANNELS, "mid_channels": 32, "num_blocks_per_stage": 1}


@pytest.fixture(scope="module")
def vae() -> VideoVAE:
    """A VAE with random means and standard deviations of its latents."""
    video_vae = VideoVAE.from_config(VAE)
    generator = torch.Generator().manual_seed(0)
    video_vae.model.latents_mean.copy_(torch.randn(CHANNELS, generator=generator))
    video_vae.model.latents_std.copy_(0.5 + torch.rand(CHANNELS, generator=generator))
    return video_vae


def by_diffusers(file: Path, latent: Tensor, vae: VideoVAE, rational: bool) -> Tensor:
    """The latent upsampled by diffusers' model, loaded strictly as in its conversion script."""
    model = LTX2LatentUpsamplerModel(**SMALL, use_rational_resampler=rational)  # type: ignore[arg-type]
    model.load_state_dict(load_file(file))
    mean, std = (getattr(vae.model, name).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        return (model(latent * std + mean) - mean) / std


@pytest.mark.parametrize("rational", [True, False], ids=["2.0", "2.3"])
def test_an_official_file_gives_the_result_of_diffusers(tmp_path: Path, vae: VideoVAE, rational: bool) -> None:
    file = write_upsampler(tmp_path / "up.safetensors", **SMALL, rational_resampler=rational)
    latent = torch.randn(2, CHANNELS, 3, 4, 5)
    upsampled = LatentUpsampler.open(file, vae)(latent)
    assert upsampled.shape == (2, CHANNELS, 3, 8, 10)
    assert torch.allclose(upsampled, by_diffusers(file, latent, vae, rational), atol=1e-5)


def test_a_clip_does_not_depend_on_its_batch(tmp_path: Path, vae: VideoVAE) -> None:
    upsampler = LatentUpsampler.open(write_upsampler(tmp_path / "up.safetensors", **SMALL), vae)
    latent = torch.randn(2, CHANNELS, 2, 3, 3)
    assert torch.allclose(upsampler(latent)[1:], upsampler(latent[1:]), atol=1e-5)


@pytest.mark.parametrize("rational", [True, False], ids=["2.0", "2.3"])
def test_the_written_layout_equals_the_published_files(rational: bool) -> None:
    with torch.device("meta"):
        model = LTX2LatentUpsamplerModel(use_rational_resampler=rational)
    ours = {spec.name: spec.shape for spec in specs(CONFIG | {"rational_resampler": rational})}
    assert ours == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temporal_upsample": True}, "temporal_upsample"),
        ({"spatial_scale": 1.5, "rational_resampler": True}, "spatial_scale"),
        ({"in_channels": 2 * CHANNELS}, "16 channels"),
    ],
)
def test_another_upsampler_is_refused(tmp_path: Path, vae: VideoVAE, changes: dict[str, Any], message: str) -> None:
    file = write_upsampler(tmp_path / "up.safetensors", **(SMALL | changes))
    with pytest.raises(ConfigError, match=f"up.safetensors.*{message}"):
        LatentUpsampler.open(file, vae)


def test_another_kind_of_file_is_refused(tmp_path: Path, vae: VideoVAE) -> None:
    other = tmp_path / "adapter.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(ConfigError, match=r"adapter\.safetensors is not a latent upsampler"):
        LatentUpsampler.open(other, vae)
    with pytest.raises(ConfigError, match=r"missing\.safetensors"):
        LatentUpsampler.open(tmp_path / "missing.safetensors", vae)


def test_a_file_with_a_missing_tensor_names_it(tmp_path: Path, vae: VideoVAE) -> None:
    file = write_upsampler(tmp_path / "up.safetensors", **SMALL)
    tensors = load_file(file)
    del tensors["final_conv.bias"]
    save_file(tensors, file, {"config": json.dumps(CONFIG | SMALL)})
    with pytest.raises(ConfigError, match=r"missing final_conv\.bias"):
        LatentUpsampler.open(file, vae)
