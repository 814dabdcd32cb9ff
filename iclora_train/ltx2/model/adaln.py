"""Conditioning of the transformer: AdaLN-single for noise levels, and the projection of text features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_CHANNELS = 256  # channels of the sinusoidal embedding of a noise level


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding of noise levels (...,), then an MLP of two linears: (...,D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIME_CHANNELS, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        half = TIME_CHANNELS // 2
        omega = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=time.device))
        angle = time.float()[..., None] * omega
        sinusoid = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class AdaLayerNormSingle(nn.Module):
    """AdaLN-single of PixArt-alpha (arXiv 2310.00426, section 2.3).

    Noise levels (B,K) -> modulation rows (B,K,rows,D) and the time embedding (B,K,D).
    """

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedding(width)})
        self.linear = nn.Linear(width, rows * width)

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.emb["timestep_embedder"](time)
        return self.linear(F.silu(embedding)).unflatten(-1, (self.rows, -1)), embedding


class CaptionProjection(nn.Module):
    """MLP from text features to the transformer's width (LTX-2.0 only)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))
