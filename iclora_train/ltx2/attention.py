"""Attention of LTX-2: q and k normalised across heads, rotated, and each head's output gated by 2 sigmoid(W x).

Weighted references. A reference token j with weight w_j gets log(w_j) added to the logits of target->j and of
j->target (ltx-core, ComfyUI). As an (N,N) bias that would cost O(N^2) memory; but it is a sum of two products of a
query vector and a key vector, `is_target(q) log w(k) + log w(q) is_target(k)`, with log w = 0 on target tokens. So it
is put into a few more channels of q and k, and any plain attention kernel computes it exactly in O(N) memory.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.ltx2.rope import rotate

BLOCKED = -1e3  # a logit that far under the others has probability exactly 0 in fp32


class AttentionBias:
    """Weights (B,N) of tokens in `group` (N,) as extra query and key channels (B,1,N,E).

    between="comfyui": references see one another fully. between="ltx": as soon as any weight is set, they do not.
    """

    def __init__(self, weight: Tensor, group: Tensor, between: str = "comfyui") -> None:
        if between not in ("comfyui", "ltx"):
            raise ValueError(f"between={between!r} is not one of comfyui, ltx")
        target = (group == 0).float().expand_as(weight)  # (B,N)
        log_weight = torch.where(weight > 0, weight.clamp(min=torch.finfo(torch.float32).tiny).log(), BLOCKED)
        log_weight = log_weight * (1 - target)
        query, key = [target, log_weight], [log_weight, target]
        if between == "ltx":  # BLOCKED sum_i in_i(q) in_another_reference_than_i(k)
            for i in range(1, int(group.max()) + 1):
                member = (group == i).float().expand_as(weight)
                query, key = [*query, BLOCKED * member], [*key, 1 - target - member]
        self.query = torch.stack(query, dim=-1)[:, None]
        self.key = torch.stack(key, dim=-1)[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v for (B,heads,N,head_dim)."""
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v)
    batch, heads, n, width = q.shape
    scale = 1 / math.sqrt(width)
    extra = -bias.query.shape[-1] % 8 + bias.query.shape[-1]  # kernels want widths in multiples of 8

    def widen(x: Tensor, channels: Tensor) -> Tensor:
        channels = F.pad(channels, (0, extra - channels.shape[-1]))
        return torch.cat([x, channels.to(x.dtype).expand(batch, heads, n, extra)], dim=-1)

    return F.scaled_dot_product_attention(
        widen(q, bias.query), widen(k, bias.key / scale), F.pad(v, (0, extra)), scale=scale
    )[..., :width]


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
