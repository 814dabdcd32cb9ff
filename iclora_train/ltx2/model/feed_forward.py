"""Feed-forward of a transformer block."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


class GELUProjection(nn.Module):
    """Linear and tanh-approximated GELU. A separate module, because checkpoints call the linear `net.0.proj`."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Linear, GELU, linear, with a hidden width of 4 * width."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GELUProjection(width, 4 * width, bias), nn.Identity(), nn.Linear(4 * width, width, bias=bias)
        )

    @property
    def linears(self) -> tuple[nn.Module, nn.Module]:
        """The first and the second linear, with their adapters."""
        return cast(nn.Module, self.net[0].proj), self.net[2]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out
