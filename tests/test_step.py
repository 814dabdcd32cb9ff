"""Random draws of attention strengths and region masks, and the tokens built from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from iclora_train.config import ConfigError, Flow, Task
from iclora_train.core.types import Geometry
from iclora_train.data.batch import Batch
from iclora_train.diffusion.random_draws import RandomDraws, draw_random, draw_region, draw_strength, step_generator
from iclora_train.diffusion.reference import mask_to_grid
from iclora_train.diffusion.training_inputs import build_tokens, region_mask

TARGET = torch.randn(4, 3, 2, 2, 4, generator=torch.Generator().manual_seed(0))
BATCH = Batch(TARGET, [TARGET, TARGET], text=torch.zeros(4, 1, 1), fps=torch.full((4,), 25.0), keys=list("abcd"))
OPTIONAL_DRAWS = Flow(attention_strength_p=1.0, region_mask_p=1.0)


def generator() -> torch.Generator:
    return step_generator(0, 3, 1)


def weights(draws: RandomDraws) -> Tensor | None:
    """The attention weights (B, references, f, h, w) of the reference tokens."""
    weight = build_tokens(BATCH, draws, Task(), Geometry(3, 8, 4))[0].weight
    if weight is None:
        return None
    assert torch.equal(weight[:, :16], torch.ones(4, 16))
    return weight[:, 16:].unflatten(1, (2, 2, 2, 4))


def test_optional_draws_do_not_change_the_other_draws() -> None:
    plain, optional, again = (
        draw_random(TARGET, flow, generator()) for flow in (Flow(), OPTIONAL_DRAWS, OPTIONAL_DRAWS)
    )
    for name in ("sigma", "noise", "clean_first_frame", "use_references"):
        assert torch.equal(getattr(plain, name), getattr(optional, name))
    assert plain.attention_strength is None
    assert plain.region is None
    for first, second in ((optional.attention_strength, again.attention_strength), (optional.region, again.region)):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


def test_a_batch_without_optional_draws_has_no_weights() -> None:
    rarely = Flow(attention_strength_p=1e-9, region_mask_p=1e-9)
    assert weights(draw_random(TARGET, Flow(), generator())) is None
    assert weights(draw_random(TARGET, rarely, generator())) is None


def test_strengths_are_uniform_with_probability_p() -> None:
    strengths = draw_strength(20_000, 0.3, generator())
    assert strengths is not None
    assert float((strengths < 1).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(strengths[strengths < 1].mean()) == pytest.approx(0.5, abs=0.02)
    assert strengths.min() >= 0


def test_regions_are_rectangles_and_halves_with_probability_p() -> None:
    regions = draw_region(20_000, 0.6, generator())
    assert regions is not None
    top, bottom, left, right = regions.unbind(1)
    assert ((top >= 0) & (bottom <= 1) & (left >= 0) & (right <= 1)).all()
    height, width = bottom - top, right - left
    assert min(height.min(), width.min()) >= 0.25 - 1e-6
    whole = (height == 1) & (width == 1)
    half = ((height == 1) | (width == 1)) & ~whole
    assert float(whole.float().mean()) == pytest.approx(0.4, abs=0.02)
    assert float(half.float().mean()) == pytest.approx(0.3, abs=0.02)
    for edge, border in ((top, 0), (bottom, 1), (left, 0), (right, 1)):  # each side is cut equally often
        assert float((half & (edge != border)).float().mean()) == pytest.approx(0.075, abs=0.01)


def test_a_region_mask_equals_a_pixel_mask_averaged_by_area() -> None:
    region = torch.tensor([[0.25, 1.0, 0.125, 0.5]])
    pixels = torch.zeros(16, 32)
    pixels[4:16, 4:16] = 1
    assert torch.allclose(region_mask(region, 2, 4), mask_to_grid(pixels, (1, 2, 4)))
    assert torch.equal(region_mask(torch.tensor([[0.0, 1.0, 0.0, 1.0]]), 2, 4), torch.ones(1, 1, 2, 4))


def test_each_clip_has_its_own_strength_region_and_references() -> None:
    draws = replace(
        draw_random(TARGET, Flow(), generator()),
        attention_strength=torch.tensor([1.0, 0.5, 0.5, 0.5]),
        region=torch.tensor([[0.0, 1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 1.0], [0.5, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.5]]),
        use_references=torch.tensor([True, True, True, False]),
    )
    weight = weights(draws)
    assert weight is not None
    per_clip = weight[:, 0, 0]  # (B,h,w): equal over time and references
    assert torch.equal(weight, per_clip[:, None, None].expand_as(weight))
    assert per_clip[0].tolist() == [[1.0, 1.0, 0.0, 0.0]] * 2
    assert per_clip[1].tolist() == [[0.5] * 4] * 2
    assert per_clip[2].tolist() == [[0.0] * 4, [0.5] * 4]
    assert per_clip[3].tolist() == [[0.0] * 4] * 2


def test_the_target_velocity_does_not_depend_on_the_weights() -> None:
    plain = draw_random(TARGET, Flow(), generator())
    weighted = replace(plain, attention_strength=torch.full((4,), 0.5))
    (tokens, velocity), (weighted_tokens, weighted_velocity) = (
        build_tokens(BATCH, draws, Task(), Geometry(3, 8, 4)) for draws in (plain, weighted)
    )
    assert torch.equal(velocity, weighted_velocity)
    for name in ("latent", "loss_mask", "level", "position"):
        assert torch.equal(getattr(tokens, name), getattr(weighted_tokens, name))


def test_batches_of_one_shape_share_one_tensor_of_positions() -> None:
    draws = draw_random(TARGET, Flow(), generator())

    def position(batch: Batch, task: Task) -> Tensor:
        return build_tokens(batch, draws, task, Geometry(3, 8, 4))[0].position

    first = position(BATCH, Task())
    assert position(replace(BATCH, target=TARGET + 1), Task()) is first
    faster = replace(BATCH, fps=torch.tensor([25.0, 25.0, 50.0, 25.0]))
    halved = replace(BATCH, references=[TARGET[..., ::2, ::2]] * 2)
    for other in (position(faster, Task()), position(halved, Task(reference_downscale=2))):
        assert other is not first
    assert torch.equal(position(faster, Task())[2, 0], first[2, 0] / 2)
    assert torch.equal(position(faster, Task())[3], first[3])


@pytest.mark.parametrize("key", ["attention_strength_p", "region_mask_p"])
def test_a_probability_out_of_bounds_names_its_key(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"flow\.{key}=1\.5 must lie in \[0, 1\]"):
        Flow(**{key: 1.5})
