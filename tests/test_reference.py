"""Where references stand beside the target: positions against hand-computed numbers and against diffusers' own."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed
from torch import Tensor

from iclora_train.pair import Geometry, Tokens
from iclora_train.reference import append_reference, from_tokens, grid_position, mask_to_grid, target_tokens, to_tokens

LTX = Geometry(channels=4, spatial=32, temporal=8)


def target(f: int = 2, h: int = 4, w: int = 4, batch: int = 2, fps: float = 25.0) -> Tokens:
    return target_tokens(torch.randn(batch, 4, f, h, w), torch.full((batch,), 0.5), LTX, fps)


def test_tokens_run_over_time_then_height_then_width() -> None:
    latent = torch.arange(2 * 3 * 4).reshape(1, 1, 2, 3, 4)
    assert to_tokens(latent).flatten().tolist() == list(range(24))
    assert torch.equal(from_tokens(to_tokens(latent), (2, 3, 4)), latent)


def test_positions_by_hand() -> None:
    place = grid_position((3, 1, 2), LTX)  # (3,6,2)
    frames = [[0.0, 1.0], [1.0, 9.0], [9.0, 17.0]]
    assert torch.equal(place[0], torch.tensor(frames).repeat_interleave(2, 0))
    assert place[1].tolist() == [[0.0, 32.0]] * 6
    assert place[2].tolist() == [[0.0, 32.0], [32.0, 64.0]] * 3
    assert place.dtype == torch.float32


@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0])
def test_positions_are_those_of_diffusers(fps: float) -> None:
    rope = LTX2AudioVideoRotaryPosEmbed(dim=48, patch_size=1, patch_size_t=1, modality="video", rope_type="split")
    official = rope.prepare_video_coords(1, 4, 3, 5, device=torch.device("cpu"), fps=fps)  # (1,3,N,2)
    place = grid_position((4, 3, 5), LTX)
    place[0] /= fps
    assert torch.allclose(place, official[0].float(), atol=1e-6)


@pytest.mark.parametrize("downscale", [1, 2, 4])
@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0])
def test_a_smaller_reference_spans_the_target(fps: float, downscale: int) -> None:
    tokens = append_reference(target(fps=fps), torch.randn(2, 4, 2, 4 // downscale, 4 // downscale), downscale)
    assert int((tokens.group == 0).sum()) == 32
    own, added = tokens.position[:, :, :32], tokens.position[:, :, 32:]
    assert torch.equal(own.amax((2, 3)), added.amax((2, 3)))  # the same seconds and pixels in all
    assert torch.equal(added[0, 1, 0], torch.tensor([0.0, 32.0 * downscale]))
    if downscale == 1:
        assert torch.equal(own, added)


def test_a_slower_reference_runs_at_its_own_rate() -> None:
    tokens = append_reference(target(f=5), torch.randn(2, 4, 3, 4, 4), temporal_scale=2)
    seconds = tokens.position[0, 0, 80:].unique(dim=0)  # (3,2): frames 0, 1..8, 9..16 of 12.5 a second
    by_hand = torch.tensor([[0.0, 1.0], [1.0, 17.0], [17.0, 33.0]]) / 25  # (0, 2) (2, 18) (18, 34) frames, less one
    assert torch.allclose(seconds, by_hand, atol=1e-6)
    assert torch.equal(seconds[-1, 1], tokens.position[0, 0, :80].max())


def test_what_a_reference_brings() -> None:
    base = target()
    latent = torch.randn(2, 4, 2, 4, 4)
    tokens = append_reference(append_reference(base, latent), latent[:, :, :1])
    assert tokens.group.tolist() == [0] * 32 + [1] * 32 + [2] * 16
    assert not tokens.loss_mask[:, 32:].any()
    assert not tokens.keyframe[:, 32:].any()
    assert tokens.keyframe[:, :16].all()
    assert not tokens.keyframe[:, 16:32].any()
    assert torch.equal(tokens.latent[:, 32:64], to_tokens(latent))
    assert torch.equal(tokens.sigma.gather(1, tokens.level)[:, 32:], torch.zeros(2, 48))
    assert tokens.weight is None


def test_a_weaker_reference_has_a_level_of_its_own() -> None:
    tokens = append_reference(target(), torch.randn(2, 4, 2, 4, 4), strength=0.75)
    assert tokens.sigma.gather(1, tokens.level)[0].unique().tolist() == [0.125, 0.5]
    assert tokens.sigma.gather(1, tokens.level)[:, 32:].unique().tolist() == [0.125]


def test_attention_weights_are_strength_times_mask() -> None:
    latent = torch.randn(2, 4, 2, 4, 4)
    mask = torch.zeros(2, 1, 128, 128)
    mask[..., :64] = 1
    tokens = append_reference(target(), latent, attention_strength=0.5, attention_mask=mask)
    assert tokens.weight is not None
    assert tokens.weight[:, :32].unique().tolist() == [1.0]
    assert tokens.weight[0, 32:].tolist() == [0.5, 0.5, 0.0, 0.0] * 8
    more = append_reference(tokens, latent)
    assert more.weight is not None
    assert more.weight[:, 64:].unique().tolist() == [1.0]


def test_a_given_first_frame_is_clean_and_not_learned() -> None:
    tokens = target_tokens(torch.randn(2, 4, 2, 4, 4), torch.tensor([0.5, 0.5]), LTX, 25.0, torch.tensor([True, False]))
    assert tokens.level[0].tolist() == [1] * 16 + [0] * 16
    assert tokens.level[1].tolist() == [0] * 32
    assert torch.equal(tokens.loss_mask, tokens.level == 0)
    assert tokens.sigma.tolist() == [[0.5, 0.0]] * 2


def pixels(frames: int, size: int = 8) -> Tensor:
    return torch.arange(frames).float()[None, :, None, None].expand(1, frames, size, size)


def test_a_mask_follows_the_causal_frames_of_the_vae() -> None:
    grid = mask_to_grid(pixels(9), (3, 2, 2))
    assert grid[0, :, 0, 0].tolist() == [0.0, 2.5, 6.5]  # frame 0, the mean of 1..4, of 5..8
    assert mask_to_grid(pixels(1) + 0.5, (3, 2, 2)).unique().tolist() == [0.5]
    assert mask_to_grid(pixels(1), (1, 2, 2)).shape == (1, 1, 2, 2)


def test_a_mask_is_averaged_by_area() -> None:
    mask = torch.zeros(1, 1, 4, 6)
    mask[..., :2, :3] = 1
    assert mask_to_grid(mask, (1, 2, 3))[0, 0].tolist() == [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("frames", "f"), [(8, 3), (9, 1), (4, 3)])
def test_a_mask_that_does_not_fall_on_the_frames_is_refused(frames: int, f: int) -> None:
    with pytest.raises(ValueError, match=f"attention_mask has {frames} frames"):
        mask_to_grid(pixels(frames), (f, 2, 2))
