"""Attention of LTX-2: q and k normalised across heads, rotated, and each head's output gated by 2 sigmoid(W x)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.ltx2.rope import rotate
from iclora_train.ltx2.weighted import AttentionBias, weighted_attention


def attend(q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v for (B,heads,N,head_dim)."""
    return F.scaled_dot_product_attention(q, k, v) if bias is None else weighted_attention(q, k, v, bias)


def _norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """RMS norm in the activations' precision, which under autocast is not the weights'."""
    return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


class Attention(nn.Module):
    """Self-attention over tokens (B,N,D), or cross-attention to a context (B,T,D'), with official parameter names."""

    def __init__(self, width: int, context_width: int, heads: int, eps: float, gated: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_norm = nn.RMSNorm(width, eps=eps)
        self.k_norm = nn.RMSNorm(width, eps=eps)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(context_width, width)
        self.to_v = nn.Linear(context_width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))
        self.to_gate_logits = nn.Linear(width, heads) if gated else None

    def forward(
        self, x: Tensor, context: Tensor | None = None, rope: Tensor | None = None, bias: AttentionBias | None = None
    ) -> Tensor:
        source = x if context is None else context
        q, k, v = _norm(self.to_q(x), self.q_norm), _norm(self.to_k(source), self.k_norm), self.to_v(source)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B,heads,N,head_dim)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        out = attend(q, k, v, bias).transpose(1, 2)  # (B,N,heads,head_dim)
        if self.to_gate_logits is not None:
            out = out * (2 * self.to_gate_logits(x).sigmoid())[..., None]
        return self.to_out(out.flatten(2))
