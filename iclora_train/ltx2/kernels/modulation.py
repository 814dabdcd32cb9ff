"""RMS norm, AdaLN vectors picked per token, the gate of the attention heads, and the gated residual."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x divided by its root mean square across channels, without weights."""
    return F.rms_norm(x, (x.shape[-1],), eps=eps)


def pick(rows: Tensor, level: Tensor) -> Tensor:
    """The AdaLN vector of each token: rows (B,K,D) of K noise levels, level (B,N) -> (B,N,D), or (B,1,D) if K is 1."""
    picked = rows[:, :1]
    for k in range(1, rows.shape[1]):  # K is 2 or 3: `where` is cheaper than a gather, and its gradient is a sum
        picked = torch.where((level == k)[..., None], rows[:, k : k + 1], picked)
    return picked


def gate_heads(out: Tensor, logits: Tensor) -> Tensor:
    """2 sigmoid(logits) * out, for attention outputs (B,n,heads,head_dim) and gate logits (B,n,heads)."""
    return out * (2 * logits.sigmoid())[..., None]


class GatedResidual(NamedTuple):
    """The residual stream x (B,n,D) and the gates (B,K,D) of a sub-layer's output; level (B,n) picks each token's
    gate."""

    x: Tensor
    gates: Tensor
    level: Tensor

    def add(self, out: Tensor) -> Tensor:
        """x + gate * out, for a sub-layer's output (B,n,D)."""
        return self.x + out * pick(self.gates, self.level)
