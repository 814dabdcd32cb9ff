"""Attention of LTX-2: RMS norm of q and k over the whole width, then RoPE; since 2.3 a gate for each head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.ltx2.kernels.attention_backends import backend_for
from iclora_train.ltx2.kernels.modulation import gate_heads
from iclora_train.ltx2.model.rope import rotate
from iclora_train.ltx2.model.weighted_attention import AttentionBias, weighted_attention


def attend(q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v for (B,heads,N,head_dim)."""
    if bias is not None:
        return weighted_attention(q, k, v, bias)
    return backend_for(q).attend(q, k, v)


def attend_first(q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias | None, num_outputs: int | None) -> Tensor:
    """The first `num_outputs` queries attend to all keys: (B,N,heads,head_dim) -> (B,num_outputs,heads,head_dim).

    The gradient of `attend` is contiguous as (B,N,heads,head_dim) in every block: PyTorch computes a wrong gradient if
    cuDNN's attention gets it in two layouts (`kernels.attention_backends`).
    """
    if bias is None:
        q = q[:, :num_outputs]
    out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias).transpose(1, 2)
    return out if bias is None else out[:, :num_outputs]


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """RMS norm in the dtype of x. Under autocast the norm's weight has another dtype and is cast."""
    return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


class Attention(nn.Module):
    """Self-attention over tokens (B,N,D), or cross-attention to a context (B,T,D'). Parameters have official names."""

    def __init__(
        self, width: int, context_width: int, heads: int, eps: float, gated: bool, inner: int | None = None
    ) -> None:
        """inner: channels of q, k and v of all heads, if they are not `width`."""
        super().__init__()
        inner = width if inner is None else inner
        self.heads = heads
        self.q_norm = nn.RMSNorm(inner, eps=eps)
        self.k_norm = nn.RMSNorm(inner, eps=eps)
        self.to_q = nn.Linear(width, inner)
        self.to_k = nn.Linear(context_width, inner)
        self.to_v = nn.Linear(context_width, inner)
        self.to_out = nn.Sequential(nn.Linear(inner, width))
        self.to_gate_logits = nn.Linear(width, heads) if gated else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        rope: Tensor | None = None,
        bias: AttentionBias | None = None,
        num_outputs: int | None = None,
        perturbed: bool = False,
        key_rope: Tensor | None = None,
    ) -> Tensor:
        """x (B,N,D) -> (B,N,D), or (B,num_outputs,D).

        num_outputs: compute only the first tokens' outputs. They attend to all tokens.
        perturbed: every token attends only to itself (spatio-temporal guidance, STG, arXiv 2411.18664).
        key_rope: RoPE of the keys, if they have other positions than the queries.
        """
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        gate_logits = None if self.to_gate_logits is None else self.to_gate_logits(x)[:, :num_outputs]
        q, k = rms_norm(q, self.q_norm), rms_norm(k, self.k_norm)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope if key_rope is None else key_rope)
        out = v[:, :num_outputs] if perturbed else attend_first(q, k, v, bias, num_outputs)
        if gate_logits is not None:
            out = gate_heads(out, gate_logits)
        return self.to_out(out.flatten(2))
