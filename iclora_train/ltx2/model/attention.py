"""Attention of LTX-2: q and k normalised across heads, rotated, and each head's output gated by 2 sigmoid(W x)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.ltx2.kernels.flash_attention import flash_attention, has_flash
from iclora_train.ltx2.kernels.fused_attention_out import by_heads, gated_out, takes_out
from iclora_train.ltx2.kernels.fused_qkv import rotated_qkv, takes_qkv
from iclora_train.ltx2.kernels.fused_query import normed_query, takes_query
from iclora_train.ltx2.kernels.lora_linear import Joint, joinable, roomy, rows_beneath, together
from iclora_train.ltx2.kernels.modulated_norm import Norm
from iclora_train.ltx2.kernels.modulation import Onto
from iclora_train.ltx2.model.rope import rotate
from iclora_train.ltx2.model.weighted_attention import AttentionBias, weighted_attention


def attend(q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v for (B,heads,N,head_dim)."""
    if bias is not None:
        return weighted_attention(q, k, v, bias)
    return flash_attention(q, k, v) if has_flash(q) else F.scaled_dot_product_attention(q, k, v)


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
        self.joint: Joint | None = None  # q, k, v as one linear; k and v where there is a context
        self.fused = False  # where there are kernels for it: a text's query, what comes behind (`compiled`)

    def join(self, own: bool) -> None:
        """From now on q, k and v (k and v, if not `own`) are computed as one, adapters included; and there is room
        beneath the weights through which gradients go back, for what is multiplied along."""
        layers = [self.to_q, self.to_k, self.to_v] if own else [self.to_k, self.to_v]
        if self.joint is None and joinable(layers):
            self.joint = Joint(layers, rows_beneath(layers, self.to_gate_logits) if own else 0)
        if not own:
            roomy(self.to_q, self.to_gate_logits)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        rope: Tensor | None = None,
        bias: AttentionBias | None = None,
        count: int | None = None,
    ) -> Tensor:
        """count: only this many of the tokens, the first ones, are asked for; all are looked at."""
        return self._given(*self._attended(x, context, rope, bias, count))

    def added(
        self,
        x: Tensor,
        onto: Onto,
        norm: Norm,
        context: Tensor | None = None,
        rope: Tensor | None = None,
        bias: AttentionBias | None = None,
        count: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What `forward` gives, added to the tokens in `onto`; and the norm of that."""
        out, gate = self._attended(x, context, rope, bias, count)
        if self.fused and gate is not None and takes_out(out, self.to_out[0], onto):
            return gated_out(out, gate, self.to_out[0], onto, norm)
        found = onto.add(self._given(out, gate))
        return found, norm(found, onto.level)

    def _attended(
        self,
        x: Tensor,
        context: Tensor | None,
        rope: Tensor | None,
        bias: AttentionBias | None,
        count: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        """What attention gives (B,n,heads,head_dim), and the gate (B,n,heads)."""
        (q, k, v), gate = self._opened(x, context, rope)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if count is not None and bias is None:
            q = q[:, :, :count]
        out = attend(q, k, v, bias)[:, :, :count].transpose(1, 2)
        return out, None if gate is None else gate[:, :count]

    def _given(self, out: Tensor, gate: Tensor | None) -> Tensor:
        """Attention's results, gated, through the last linear: (B,n,D)."""
        found: Tensor = self.to_out((out if gate is None else by_heads(out, gate)).flatten(2))
        return found

    def _opened(
        self, x: Tensor, context: Tensor | None, rope: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
        """q, k, v (B,N,heads,head_dim) as they are compared, and the gate (B,N,heads)."""
        gates = self.to_gate_logits
        if context is None:
            layers = [self.to_q, self.to_k, self.to_v]
            if self.joint is not None and rope is not None and takes_qkv(x, layers, self.joint, rope):
                return rotated_qkv(x, layers, self.joint, gates, (self.q_norm, self.k_norm), rope)
            (q, k, v), gate = together(x, layers, self.joint, gates)
            q = _norm(q, self.q_norm)
        else:
            q, gate = self._query(x)
            (k, v), _ = together(context, [self.to_k, self.to_v], self.joint)
        k = _norm(k, self.k_norm)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        if rope is not None:  # as they lie in memory: else a compiler copies them behind it
            q, k = rotate(q, rope), rotate(k, rope)
        return (q, k, v), gate

    def _query(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The query for a context (B,N,D), normalised, and the gate."""
        if self.fused and takes_query(x, self.to_q):
            return normed_query(x, self.to_q, self.to_gate_logits, self.q_norm)
        (q,), gate = together(x, [self.to_q], None, self.to_gate_logits)
        return _norm(q, self.q_norm), gate
