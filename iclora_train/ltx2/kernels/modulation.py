"""RMS norm, AdaLN rows picked per token, and the gated residual."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square across channels, without weights."""
    return F.rms_norm(x, (x.shape[-1],), eps=eps)


def pick(rows: Tensor, level: Tensor) -> Tensor:
    """The AdaLN vector of each token: rows (B,K,D), level (B,N) -> (B,N,D), or (B,1,D) when there is one level."""
    chosen = rows[:, :1]
    for k in range(1, rows.shape[1]):  # two or three: selecting costs less than a gather, and its gradient is a sum
        chosen = torch.where((level == k)[..., None], rows[:, k : k + 1], chosen)
    return chosen


class GatedResidual(NamedTuple):
    """What a part of a block adds its result to: tokens x (B,n,D), after multiplying it by the gate of a token's level,
    rows (B,K,D), level (B,n)."""

    x: Tensor
    rows: Tensor
    level: Tensor

    def add(self, result: Tensor) -> Tensor:
        """x with the result (B,n,D)."""
        return self.x + result * pick(self.rows, self.level)
