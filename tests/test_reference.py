"""Positions, weights and noise levels of references, against numbers from the formulas and against diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.core.types import Geometry, Tokens
from iclora_train.diffusion.reference import (
    append_reference,
    from_tokens,
    grid_position,
    mask_to_grid,
    snap_frame,
    target_tokens,
    to_tokens,
)
from iclora_train.ltx2.model.attention import attend
from iclora_train.ltx2.model.weighted_attention import AttentionBias

LTX = Geometry(channels=4, spatial=32, temporal=8)


def target(f: int = 2, h: int = 4, w: int = 4, batch: int = 2, fps: float = 25.0) -> Tokens:
    return target_tokens(torch.randn(batch, 4, f, h, w), torch.full((batch,), 0.5), LTX, fps)


def test_tokens_run_over_time_then_height_then_width() -> None:
    latent = torch.arange(2 * 3 * 4).reshape(1, 1, 2, 3, 4)
    assert to_tokens(latent).flatten().tolist() == list(range(24))
    assert torch.equal(from_tokens(to_tokens(latent), (2, 3, 4)), latent)


def test_positions_of_a_small_grid() -> None:
    position = grid_position((3, 1, 2), LTX)  # (3,6,2)
    frames = [[0.0, 1.0], [1.0, 9.0], [9.0, 17.0]]
    assert torch.equal(position[0], torch.tensor(frames).repeat_interleave(2, 0))
    assert position[1].tolist() == [[0.0, 32.0]] * 6
    assert position[2].tolist() == [[0.0, 32.0], [32.0, 64.0]] * 3
    assert position.dtype == torch.float32


@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0])
def test_positions_equal_diffusers(fps: float) -> None:
    rope = LTX2AudioVideoRotaryPosEmbed(dim=48, patch_size=1, patch_size_t=1, modality="video", rope_type="split")
    official = rope.prepare_video_coords(1, 4, 3, 5, device=torch.device("cpu"), fps=fps)  # (1,3,N,2)
    position = grid_position((4, 3, 5), LTX)
    position[0] /= fps
    assert torch.allclose(position, official[0].float(), atol=1e-6)


@pytest.mark.parametrize("downscale", [1, 2, 4])
@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0])
def test_a_smaller_reference_spans_the_target(fps: float, downscale: int) -> None:
    tokens = append_reference(target(fps=fps), torch.randn(2, 4, 2, 4 // downscale, 4 // downscale), downscale)
    assert int((tokens.group == 0).sum()) == 32
    target_position, reference_position = tokens.position[:, :, :32], tokens.position[:, :, 32:]
    # Both have the same extent in seconds and pixels.
    assert torch.equal(target_position.amax((2, 3)), reference_position.amax((2, 3)))
    assert torch.equal(reference_position[0, 1, 0], torch.tensor([0.0, 32.0 * downscale]))
    if downscale == 1:
        assert torch.equal(target_position, reference_position)


def test_a_slower_reference_runs_at_its_own_rate() -> None:
    tokens = append_reference(target(f=5), torch.randn(2, 4, 3, 4, 4), temporal_scale=2)
    seconds = tokens.position[0, 0, 80:].unique(dim=0)  # (3,2): frames 0, 1..8, 9..16 at 12.5 fps
    expected = torch.tensor([[0.0, 1.0], [1.0, 17.0], [17.0, 33.0]]) / 25  # (0, 2) (2, 18) (18, 34) frames, minus one
    assert torch.allclose(seconds, expected, atol=1e-6)
    assert torch.equal(seconds[-1, 1], tokens.position[0, 0, :80].max())


def test_fields_of_appended_references() -> None:
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


def test_a_weaker_reference_has_its_own_noise_level() -> None:
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
    with_second = append_reference(tokens, latent)
    assert with_second.weight is not None
    assert with_second.weight[:, 64:].unique().tolist() == [1.0]


def test_a_clean_first_frame_has_level_0_and_no_loss() -> None:
    clean = torch.tensor([[True, False], [False, False]])[:, :, None, None]
    tokens = target_tokens(torch.randn(2, 4, 2, 4, 4), torch.tensor([0.5, 0.5]), LTX, 25.0, clean)
    assert tokens.level[0].tolist() == [1] * 16 + [0] * 16
    assert tokens.level[1].tolist() == [0] * 32
    assert torch.equal(tokens.loss_mask, tokens.level == 0)
    assert tokens.sigma.tolist() == [[0.5, 0.0]] * 2


def pixels(frames: int, size: int = 8) -> Tensor:
    return torch.arange(frames).float()[None, :, None, None].expand(1, frames, size, size)


def test_a_mask_is_averaged_by_area() -> None:
    mask = torch.zeros(1, 1, 4, 6)
    mask[..., :2, :3] = 1
    assert mask_to_grid(mask, (1, 2, 3))[0, 0].tolist() == [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]


# --- behaviour of ComfyUI's nodes ---


@pytest.mark.parametrize(
    ("frame", "length", "snapped"),
    [(0, 3, 0), (1, 3, 1), (8, 3, 1), (9, 3, 9), (16, 3, 9), (-1, 1, 48), (-24, 3, 25), (-49, 3, 0), (13, 1, 13)],
)
def test_a_clip_begins_at_a_latent_frame_and_a_still_anywhere(frame: int, length: int, snapped: int) -> None:
    assert snap_frame(frame, length, frames=7, temporal=8) == snapped


def test_a_clip_of_one_latent_frame_begins_at_a_latent_frame_too() -> None:
    assert [snap_frame(frame, 1, frames=7, temporal=8, clip=True) for frame in (0, 1, 8, 13, -1)] == [0, 1, 1, 9, 41]


def test_a_reference_must_end_within_the_target() -> None:
    assert snap_frame(25, 3, frames=7, temporal=8) == 25
    with pytest.raises(ConfigError, match=r"_frame=33: a reference of 3 latent frames at frame 33 ends after"):
        snap_frame(33, 3, frames=7, temporal=8)
    for frame in (49, -50):  # ComfyUI takes frame 0 for -50
        with pytest.raises(ConfigError, match=f"reference_frame={frame} does not exist in a clip of 49 frames"):
            snap_frame(frame, 1, frames=7, temporal=8)


@pytest.mark.parametrize("strength", [1.0, 0.7, 0.0])
def test_the_denoise_mask_is_one_minus_the_strength(strength: float) -> None:
    pure_noise = target_tokens(torch.randn(2, 4, 2, 4, 4), torch.ones(2), LTX, 25.0)
    tokens = append_reference(pure_noise, torch.randn(2, 4, 2, 2, 2), 2, strength=strength)
    mask = tokens.sigma.gather(1, tokens.level)
    assert torch.equal(mask[:, :32], torch.ones(2, 32))
    assert torch.allclose(mask[:, 32:], torch.full((2, 8), 1 - strength))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_positions_of_a_downscaled_reference(factor: int) -> None:
    """Times are max(8k + 1 - 8, 0). Tokens begin at the cells that dilation keeps and end (factor - 1) cells later."""
    tokens = append_reference(target(f=3, fps=25.0), torch.randn(2, 4, 3, 4 // factor, 4 // factor), factor)
    position = tokens.position[0, :, 48:].unflatten(1, (3, 4 // factor, 4 // factor))  # (3,f,h,w,2)
    starts = torch.arange(0, 4, factor) * 32.0
    assert torch.equal(position[1, 0, :, 0], torch.stack([starts, starts + 32 + (factor - 1) * 32], dim=1))
    assert torch.equal(position[2, 0, 0], torch.stack([starts, starts + 32 + (factor - 1) * 32], dim=1))
    seconds = torch.tensor([[0.0, 1.0], [1.0, 9.0], [9.0, 17.0]]) / 25
    assert torch.allclose(position[0, :, 0, 0], seconds)


@pytest.mark.parametrize(
    ("length", "frame", "clip", "frames"),
    [
        (2, 9, None, [[9.0, 17.0], [17.0, 25.0]]),
        (1, 13, None, [[13.0, 14.0]]),
        (1, 9, True, [[9.0, 17.0]]),
        (2, 0, None, [[0.0, 1.0], [1.0, 9.0]]),
    ],
    ids=["later clip without causal first frame", "still", "later clip of one latent frame", "clip at 0"],
)
def test_times_of_a_reference_that_begins_later(
    length: int, frame: int, clip: bool | None, frames: list[list[float]]
) -> None:
    tokens = append_reference(target(f=5), torch.randn(2, 4, length, 4, 4), frame=frame, clip=clip)
    assert torch.allclose(tokens.position[0, 0, 80::16], torch.tensor(frames) / 25)


@pytest.mark.parametrize(
    ("frames", "f", "grid"),
    [
        (9, 3, [0.0, 2.5, 6.5]),  # frame 0, the means of 1..4 and 5..8
        (8, 3, [0.0, 2.0, 5.0]),  # 7 // 2 = 3 frames in a group, the last is left over
        (1, 3, [0.0, 0.0, 0.0]),
        (3, 5, [0.0, 1.0, 1.0, 2.0, 2.0]),  # too few: nearest
        (9, 1, [0.0]),
    ],
)
def test_masks_of_any_length_in_time(frames: int, f: int, grid: list[float]) -> None:
    assert mask_to_grid(pixels(frames), (f, 2, 2))[0, :, 0, 0].tolist() == grid


def test_a_mask_may_omit_batch_and_time() -> None:
    still = torch.rand(8, 8)
    clip = torch.rand(9, 8, 8)
    assert torch.equal(mask_to_grid(still, (3, 2, 2)), mask_to_grid(still[None, None], (3, 2, 2)))
    assert torch.equal(mask_to_grid(clip, (3, 2, 2)), mask_to_grid(clip[None], (3, 2, 2)))
    with pytest.raises(ValueError, match="attention_mask must be"):
        mask_to_grid(still[0], (3, 2, 2))


def test_a_mask_is_averaged_onto_the_reference_grid_before_dilation() -> None:
    """A reference of factor 2 has a coarser grid; the mask's size in pixels does not matter."""
    mask = torch.zeros(128, 96)
    mask[:, :48] = 1
    tokens = append_reference(target(), torch.randn(2, 4, 2, 2, 2), 2, attention_mask=mask)
    assert tokens.weight is not None
    assert tokens.weight[:, 32:].tolist() == [[1.0, 0.0] * 4] * 2


def direct_bias(weights: list[list[float]], between: str) -> Tensor:
    """The additive bias over 2 target tokens and references of these weights, block by block."""
    groups = [0, 0] + [i for i, row in enumerate(weights, 1) for _ in row]
    flat = [1.0, 1.0] + [w for row in weights for w in row]
    bias = torch.zeros(len(groups), len(groups))
    for q, q_group in enumerate(groups):
        for k, k_group in enumerate(groups):
            if q_group == k_group:
                continue
            if 0 in (q_group, k_group):
                w = flat[q] * flat[k]
                bias[q, k] = torch.tensor(w).log() if w > 0 else -torch.inf
            elif between == "ltx":
                bias[q, k] = -torch.inf
    return bias


@pytest.mark.parametrize("between", ["comfyui", "ltx"])
@pytest.mark.parametrize(
    "weights", [[[0.5, 1.0]], [[0.5, 0.0, 1.0], [0.25, 0.75]], [[0.5, 0.5], [1.0, 1.0], [0.0, 0.999]]]
)
def test_attention_bias_of_both_modes(weights: list[list[float]], between: str) -> None:
    tokens = target(f=1, h=1, w=2, batch=1)
    for row in weights:
        mask = torch.tensor(row)[None]  # (H,W)
        tokens = append_reference(tokens, torch.randn(1, 4, 1, 1, len(row)), attention_mask=mask)
    assert tokens.weight is not None
    bias = AttentionBias(tokens.weight, tokens.group, between)
    count = tokens.latent.shape[1]
    zeros = torch.zeros(1, 1, count, count)  # for logits of 0 the attention shares are softmax(bias)
    shares = attend(zeros, zeros, torch.eye(count)[None, None], bias)[0, 0]
    expected = direct_bias(weights, between)
    assert torch.allclose(shares, expected.softmax(-1), atol=1e-6)
    assert (shares[expected.isinf()] == 0).all()


def test_each_reference_has_its_own_strength_and_mask() -> None:
    left = torch.tensor([[1.0, 0.0]])
    tokens = append_reference(target(), torch.randn(2, 4, 2, 4, 4), attention_strength=0.5, attention_mask=left)
    tokens = append_reference(tokens, torch.randn(2, 4, 2, 4, 4), attention_mask=1 - left)
    tokens = append_reference(tokens, torch.randn(2, 4, 1, 1, 1), attention_strength=torch.tensor([0.25, 1.0]))
    assert tokens.weight is not None
    assert tokens.weight[:, 32:64].tolist() == [[0.5, 0.5, 0.0, 0.0] * 8] * 2
    assert tokens.weight[:, 64:96].tolist() == [[0.0, 0.0, 1.0, 1.0] * 8] * 2
    assert tokens.weight[:, 96:].tolist() == [[0.25], [1.0]]
