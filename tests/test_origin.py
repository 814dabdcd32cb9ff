"""Adapters learn from a modulated norm's input as they would from the norm itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from iclora_train.ltx2.modulation import pick, rms_norm
from iclora_train.ltx2.origin import Origin, across_tokens, modulated

EPS = 1e-6


def scene(clips: int, levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens of 16 channels, scales and shifts of their levels, and which each token has."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clips, 30, 16, generator=generator)
    scale, shift = torch.randn(2, clips, levels, 16, generator=generator)
    return x, scale, shift, torch.randint(levels, (clips, 30), generator=generator)


@pytest.mark.parametrize(("clips", "levels"), [(1, 1), (1, 2), (3, 2), (2, 3)])
def test_gradients_across_tokens_are_those_of_the_norm(clips: int, levels: int) -> None:
    x, scale, shift, level = scene(clips, levels)
    found, origin = modulated(x, scale, shift, level, EPS)
    wanted = rms_norm(x, EPS) * (1 + pick(scale, level)) + pick(shift, level)
    torch.testing.assert_close(found, wanted)
    t = torch.randn(clips * 30, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(across_tokens(t, origin), t.t() @ wanted.flatten(0, 1))
    torch.testing.assert_close(across_tokens(t, (wanted,)), t.t() @ wanted.flatten(0, 1))


def test_a_level_beyond_those_there_are_is_the_last() -> None:
    """As `pick` has it, which takes the one level of a step without references for every token."""
    x, scale, shift, level = scene(1, 1)
    origin = Origin(x, torch.ones(1, 30, 1), scale, shift, level + 1)
    t = torch.ones(30, 1)
    torch.testing.assert_close(across_tokens(t, origin), (x * (1 + scale) + shift).sum(1))


def test_tokens_learn_as_they_would_from_the_norm() -> None:
    grads = []
    for own in (True, False):
        x, scale, shift, level = scene(2, 2)
        x.requires_grad_()
        h = rms_norm(x, EPS) * (1 + pick(scale, level)) + pick(shift, level)
        h = modulated(x, scale, shift, level, EPS)[0] if own else h
        grads.append(torch.autograd.grad(h.square().sum(), x)[0])
    torch.testing.assert_close(*grads)
