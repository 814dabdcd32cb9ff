"""Rectified flow on latents: noise levels, noising, target velocity and the masked loss. Pure torch, no state.

Convention of LTX-2: x_sigma = (1 - sigma) x + sigma noise, velocity = noise - x, so x = x_sigma - sigma velocity.
Every random draw takes a torch.Generator, so that a step can be repeated bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from iclora_train.config import Flow

_PERCENTILE_999, _PERCENTILE_005 = 3.0902, -2.5758  # of the standard normal
_EPS = 1e-3  # smallest sigma that is drawn


def sigma_shift(tokens: int, flow: Flow) -> float:
    """Mean of the logit-normal for a number of target tokens: linear between two anchors (Lightricks' trainer).

    Clamped to the anchors by default. Lightricks' unclamped line reaches 6.4 at 16,000 tokens, where nearly every draw
    is above 0.9.
    """
    slope = (flow.max_shift - flow.min_shift) / (flow.max_tokens - flow.min_tokens)
    shift = flow.min_shift + slope * (tokens - flow.min_tokens)
    return min(max(shift, flow.min_shift), flow.max_shift) if flow.clamp_shift else shift


def sample_sigma(batch: int, tokens: int, flow: Flow, generator: Generator) -> Tensor:
    """Draw noise levels (B,) in [0, 1] for clips of `tokens` target tokens, as Lightricks' trainer does.

    The levels are logit-normal with the shifted mean. They are stretched so that the 0.5 and 99.9 percentiles land on 0
    and 1, and values below eps are reflected. A share `uniform_p` is uniform, so that every level is trained.
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


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Clips (B,...) at noise level sigma (B,)."""
    sigma = sigma.to(clean).reshape(-1, *([1] * (clean.ndim - 1)))
    return (1 - sigma) * clean + sigma * noise


def target_velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """The velocity that the model is trained to predict: d x_sigma / d sigma."""
    return noise - clean


def masked_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean squared error of each clip over its tokens: (B,N,C), (B,N,C), bool or float (B,N) -> (B,).

    Weights lie in [0, 1]. Their sum is clamped to at least 1, because 0 / 0 would make the whole batch NaN: a clip
    whose weights are all 0 has loss 0, and a sum below 1 makes the loss smaller than the mean.
    """
    error = (predicted.float() - target.float()).square().mean(-1)  # (B,N)
    return (error * weight).sum(-1) / weight.sum(-1).clamp(min=1)
