"""Rectified flow on latents: noise levels, noising, velocity and the masked loss. Pure torch, no state.

Convention of LTX-2: x_sigma = (1 - sigma) x + sigma noise, velocity = noise - x, so x = x_sigma - sigma velocity.
Every draw takes its torch.Generator, so that a step can be repeated bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from iclora_train.config import Flow

_PERCENTILE_999, _PERCENTILE_005 = 3.0902, -2.5758  # of the standard normal
_EPS = 1e-3  # smallest sigma that is drawn


def sigma_shift(tokens: int, flow: Flow) -> float:
    """Mean of the logit-normal for this many target tokens: linear between two anchors (Lightricks' trainer).

    Clamped to the anchors by default: the official line runs on and reaches 6.4 at 16,000 tokens, where nearly
    every draw lies above 0.9.
    """
    slope = (flow.max_shift - flow.min_shift) / (flow.max_tokens - flow.min_tokens)
    shift = flow.min_shift + slope * (tokens - flow.min_tokens)
    return min(max(shift, flow.min_shift), flow.max_shift) if flow.clamp_shift else shift


def sample_sigma(batch: int, tokens: int, flow: Flow, generator: Generator) -> Tensor:
    """Noise levels (B,) in [0, 1] for clips of `tokens` target tokens, as the official trainer draws them.

    Logit-normal with the shifted mean, stretched so that its 0.5 and 99.9 percentiles land on 0 and 1, values under
    eps reflected, and a share `uniform_p` uniform so that no level is starved.
    """
    uniform = _EPS + (1 - _EPS) * torch.rand(batch, generator=generator)
    if flow.distribution == "uniform":
        return uniform
    shift = sigma_shift(tokens, flow)
    raw = torch.sigmoid(shift + flow.std * torch.randn(batch, generator=generator))
    low, high = (1 / (1 + math.exp(-(shift + flow.std * p))) for p in (_PERCENTILE_005, _PERCENTILE_999))
    stretched = (raw - low) / (high - low)
    stretched = torch.where(stretched >= _EPS, stretched, 2 * _EPS - stretched).clamp(0, 1)
    return torch.where(torch.rand(batch, generator=generator) < flow.uniform_p, uniform, stretched)


def _per_clip(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.to(like).reshape(-1, *([1] * (like.ndim - 1)))


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Clips (B,...) moved towards noise to level sigma (B,)."""
    sigma = _per_clip(sigma, clean)
    return (1 - sigma) * clean + sigma * noise


def target_velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """What the model is to predict: d x_sigma / d sigma."""
    return noise - clean


def to_clean(noisy: Tensor, predicted: Tensor, sigma: Tensor) -> Tensor:
    """The clean clips (B,...) that a predicted velocity at level sigma (B,) implies."""
    return noisy - _per_clip(sigma, noisy) * predicted


def masked_loss(predicted: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of each clip over its learned tokens: (B,N,C), (B,N,C), bool (B,N) -> (B,).

    A clip without a learned token has loss 0 (the count is clamped; dividing by 0 would poison the batch).
    """
    error = (predicted.float() - wanted.float()).square().mean(-1)  # (B,N)
    return (error * mask).sum(-1) / mask.sum(-1).clamp(min=1)
