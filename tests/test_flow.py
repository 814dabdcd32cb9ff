"""Noise levels, noising and the masked loss, compared with the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from iclora_train.config import Flow
from iclora_train.diffusion.flow_matching import (
    add_noise,
    masked_loss,
    sample_sigma,
    sigma_shift,
    target_velocity,
)


def draw_sigmas(tokens: int, flow: Flow, count: int = 100_000) -> torch.Tensor:
    return sample_sigma(count, tokens, flow, torch.Generator().manual_seed(0))


def test_the_shift_is_lightricks_line_clamped_by_default() -> None:
    assert [sigma_shift(n, Flow()) for n in (1024, 2560, 4096)] == pytest.approx([0.95, 1.5, 2.05])
    assert (sigma_shift(10, Flow()), sigma_shift(16_000, Flow())) == (0.95, 2.05)
    assert sigma_shift(16_000, Flow(clamp_shift=False)) == pytest.approx(0.95 + 1.1 / 3072 * 14_976)


@pytest.mark.parametrize("tokens", [1024, 4096])
def test_quantiles_of_the_stretched_logit_normal(tokens: int) -> None:
    shift = 0.95 if tokens == 1024 else 2.05

    def level(normal: float) -> float:
        return 1 / (1 + math.exp(-(shift + normal)))

    low, high = level(-2.5758), level(3.0902)
    sigma = draw_sigmas(tokens, Flow(uniform_p=0))
    for probability, normal in ((0.1, -1.2816), (0.5, 0.0), (0.9, 1.2816)):
        expected = (level(normal) - low) / (high - low)
        assert float(sigma.quantile(probability)) == pytest.approx(expected, abs=0.01)
    assert float(sigma.min()) >= 0
    assert float(sigma.max()) <= 1


def test_a_share_uniform_p_is_uniform() -> None:
    plain, mixed = draw_sigmas(4096, Flow(uniform_p=0)), draw_sigmas(4096, Flow(uniform_p=0.1))
    below = 0.2
    expected = 0.9 * float((plain < below).float().mean()) + 0.1 * below
    assert float((mixed < below).float().mean()) == pytest.approx(expected, abs=0.005)
    uniform = draw_sigmas(4096, Flow(distribution="uniform"))
    assert [float(uniform.quantile(p)) for p in (0.25, 0.5, 0.75)] == pytest.approx([0.25, 0.5, 0.75], abs=0.01)


def test_the_draws_depend_on_the_generator_only() -> None:
    torch.manual_seed(0)
    first = sample_sigma(8, 64, Flow(), torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    assert torch.equal(first, sample_sigma(8, 64, Flow(), torch.Generator().manual_seed(5)))


def test_noising_and_velocity_are_inverse() -> None:
    clean, noise = torch.randn(2, 3, 4, 2, 5, 5).unbind(0)
    sigma = torch.tensor([0.0, 0.25, 1.0])
    noisy = add_noise(clean, noise, sigma)
    assert torch.equal(noisy[0], clean[0])
    assert torch.equal(noisy[2], noise[2])
    assert torch.allclose(noisy[1], 0.75 * clean[1] + 0.25 * noise[1])
    velocity = target_velocity(clean, noise)
    assert torch.allclose(noisy - sigma.reshape(-1, 1, 1, 1, 1) * velocity, clean, atol=1e-6)


def test_the_masked_loss_averages_over_the_mask_of_each_clip() -> None:
    target = torch.zeros(3, 4, 2)
    predicted = torch.tensor([1.0, 2.0, 3.0, 100.0])[None, :, None].expand(3, 4, 2)
    mask = torch.tensor([[True, True, True, False], [False, True, False, False], [False] * 4])
    assert masked_loss(predicted, target, mask).tolist() == pytest.approx([14 / 3, 4.0, 0.0])
