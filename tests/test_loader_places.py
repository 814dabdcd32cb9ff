"""Where diffusers places the references of a card's code: at the positions of training, by its own functions."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import torch

from iclora_train.adapters.loaders import latent_index
from iclora_train.core.types import Geometry
from iclora_train.diffusion.reference import append_reference, target_tokens

GEOMETRY = Geometry(128, 32, 8)
FPS = 24.0


def position_of(latent: torch.Tensor, downscale: int = 1, frame: int = 0) -> torch.Tensor:
    """Positions (3,n,2) of a reference beside a target of 49 frames, as in training."""
    tokens = target_tokens(torch.zeros(1, 128, 7, 4, 8), torch.ones(1), GEOMETRY, FPS)
    count = tokens.position.shape[2]
    return append_reference(tokens, latent, downscale, frame=frame).position[0, :, count:]


def test_diffusers_places_a_picture_at_the_frame_of_its_latent_index() -> None:
    sizes = {"vae_temporal_compression_ratio": 8, "vae_spatial_compression_ratio": 32}
    pipe = SimpleNamespace(transformer_spatial_patch_size=1, transformer_temporal_patch_size=1, **sizes)
    prepare = diffusers.LTX2InContextPipeline._prepare_keyframe_coords
    for frame in (1, 9, 41):
        pixel_frame = (latent_index(frame) - 1) * 8 + 1  # prepare_latents
        theirs = prepare(pipe, 1, 4, 8, pixel_frame, 1, FPS, torch.device("cpu"))
        assert torch.allclose(theirs[0].float(), position_of(torch.zeros(1, 128, 1, 4, 8), frame=frame), atol=1e-6)


def test_diffusers_places_every_reference_from_frame_0_on_with_one_factor() -> None:
    rope = diffusers.models.transformers.transformer_ltx2.LTX2AudioVideoRotaryPosEmbed(dim=64)
    for factor in (1, 2):
        size = (7, 4 // factor, 8 // factor)
        theirs = rope.prepare_video_coords(1, *size, device=torch.device("cpu"), fps=FPS)
        theirs[:, 1:] *= factor  # _encode_reference_conditions
        assert torch.allclose(theirs[0].float(), position_of(torch.zeros(1, 128, *size), factor), atol=1e-6)
