"""A feed-forward with its two adapters as one function, whose inner activations are read and written once.

The products with frozen weights are the libraries'; what lies between them is `feed_forward_ops`. Backwards it
needs its input, what GELU was applied to, and the adapters' inner activations.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.ltx2.kernels.fused_feed_forward import fused_feed_forward
from iclora_train.ltx2.kernels.lora_linear import roomy
from iclora_train.ltx2.kernels.modulation import Onto


class GELUProjection(nn.Module):
    """Linear and tanh-approximated GELU (a module of its own for the official name `net.0.proj`)."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two linears, four times as wide inside."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.fused = False  # where there is a kernel for it (`compiled.compile_blocks`)
        self.net = nn.Sequential(
            GELUProjection(width, 4 * width, bias), nn.Identity(), nn.Linear(4 * width, width, bias=bias)
        )

    def make_room(self) -> None:
        """From now on there is room beneath the first weight for what is multiplied along (`stacked`)."""
        assert isinstance(self.net[0], GELUProjection)
        roomy(self.net[0].proj)

    def forward(self, x: Tensor, onto: Onto) -> Tensor:
        """x (B,n,D), which is what the result is added to, modulated."""
        first, second = self.net[0], self.net[2]
        assert isinstance(first, GELUProjection)
        fused = fused_feed_forward(x, first.proj, second, onto) if self.fused else None
        return onto.add(self.net(x)) if fused is None else fused
