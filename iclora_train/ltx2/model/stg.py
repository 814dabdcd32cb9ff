"""The perturbation of spatio-temporal guidance (arXiv 2411.18664): self-attention without attending."""

from __future__ import annotations

from torch import Tensor

from iclora_train.ltx2.kernels.fused_attention_out import by_heads
from iclora_train.ltx2.model.attention import Attention


def values_through(attention: Attention, x: Tensor) -> Tensor:
    """What self-attention makes of tokens (B,N,D) when each attends to itself alone: its values, gated and projected.

    (`Attention` of Lightricks' ltx-core, all perturbed.)
    """
    values = attention.to_v(x).unflatten(-1, (attention.heads, -1))  # (B,N,heads,head_dim)
    if attention.to_gate_logits is not None:
        values = by_heads(values, attention.to_gate_logits(x))
    return attention.to_out(values.flatten(2))
