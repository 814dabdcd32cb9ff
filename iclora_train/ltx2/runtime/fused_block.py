"""A block computed with fused kernels where there are any; the formulas are those of `model.transformer.Block`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from iclora_train.ltx2.kernels.fused_attention_out import gated_out, takes_out
from iclora_train.ltx2.kernels.fused_feed_forward import fused_feed_forward
from iclora_train.ltx2.kernels.fused_qkv import rotated_qkv, takes_qkv
from iclora_train.ltx2.kernels.fused_query import normed_query, takes_query
from iclora_train.ltx2.kernels.lora_linear import FusedLinear, joinable, roomy, rows_beneath, together
from iclora_train.ltx2.kernels.modulated_norm import Norm
from iclora_train.ltx2.kernels.modulation import GatedResidual, rms_norm
from iclora_train.ltx2.model.attention import Attention, attend_first, gate_heads
from iclora_train.ltx2.model.attention import rms_norm as weighted_norm
from iclora_train.ltx2.model.rope import rotate
from iclora_train.ltx2.model.transformer import Block, BlockInputs
from iclora_train.ltx2.model.weighted_attention import AttentionBias

Opened = tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]


class FusedBlock(nn.Module):
    """q, k and v as one linear, adapters included; kernels for what lies around attention and in the feed-forward."""

    def __init__(self, block: Block, join: bool = True) -> None:
        """join: not where weights are moved one by one (`weight_offload`)."""
        super().__init__()
        own, text = block.attn1, block.attn2
        qkv, kv = [own.to_q, own.to_k, own.to_v], [text.to_k, text.to_v]
        self.qkv = FusedLinear(qkv, rows_beneath(qkv, own.to_gate_logits)) if join and joinable(qkv) else None
        self.kv = FusedLinear(kv) if join and joinable(kv) else None
        if join:
            roomy(text.to_q, text.to_gate_logits)
            roomy(block.ff.linears[0])

    def forward(self, block: Block, x: Tensor, inputs: BlockInputs, num_outputs: int | None, perturbed: bool) -> Tensor:
        rows = block.scale_shift_table + inputs.modulation
        shift, scale, gate, ff_shift, ff_scale, ff_gate, *cross = rows.unbind(2)
        h, level = Norm(scale, shift, block.eps)(x, inputs.level), inputs.level[:, :num_outputs]
        before_ff, onto = Norm(ff_scale, ff_shift, block.eps), GatedResidual(x[:, :num_outputs], gate, level)
        norm = Norm(cross[1], cross[0], block.eps) if cross else None
        if perturbed:
            x = onto.add(block.attn1(h, None, inputs.rope, inputs.bias, num_outputs, perturbed))
            query = rms_norm(x, block.eps) if norm is None else norm(x, level)
        else:
            attended = self.attend_self(block.attn1, h, inputs.rope, inputs.bias, num_outputs)
            x, query = close_onto(block.attn1, *attended, onto, norm or partial(plain_norm, eps=block.eps))
        if norm is None:
            x = x + close(block.attn2, *self.attend_text(block.attn2, query, inputs.text))
            h = before_ff(x, level)
        else:
            attended = self.attend_text(block.attn2, query, block.modulated_text(inputs))
            x, h = close_onto(block.attn2, *attended, GatedResidual(x, cross[2], level), before_ff)
        return self.feed_forward(block, h, GatedResidual(x, ff_gate, level))

    def attend_self(
        self, attn: Attention, x: Tensor, rope: Tensor, bias: AttentionBias | None, num_outputs: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attention outputs (B,num_outputs,heads,head_dim) and gate logits (B,num_outputs,heads)."""
        layers, gates, norms = [attn.to_q, attn.to_k, attn.to_v], attn.to_gate_logits, (attn.q_norm, attn.k_norm)
        if self.qkv is not None and takes_qkv(x, layers, self.qkv, rope):
            (q, k, v), gate = rotated_qkv(x, layers, self.qkv, gates, norms, rope)
        else:
            (q, k, v), gate = together(x, layers, self.qkv, gates)
            q, k = weighted_norm(q, attn.q_norm), weighted_norm(k, attn.k_norm)
            q, k, v = (t.unflatten(-1, (attn.heads, -1)) for t in (q, k, v))
            q, k = rotate(q, rope), rotate(k, rope)
        return attend_first(q, k, v, bias, num_outputs), None if gate is None else gate[:, :num_outputs]

    def attend_text(self, attn: Attention, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        if takes_query(x, attn.to_q):
            q, gate = normed_query(x, attn.to_q, attn.to_gate_logits, attn.q_norm)
        else:
            (q,), gate = together(x, [attn.to_q], None, attn.to_gate_logits)
            q = weighted_norm(q, attn.q_norm)
        (k, v), _ = together(text, [attn.to_k, attn.to_v], self.kv)
        k = weighted_norm(k, attn.k_norm)
        q, k, v = (t.unflatten(-1, (attn.heads, -1)) for t in (q, k, v))
        return attend_first(q, k, v, None, None), gate

    def feed_forward(self, block: Block, x: Tensor, onto: GatedResidual) -> Tensor:
        found = fused_feed_forward(x, *block.ff.linears, onto)
        return onto.add(block.ff(x)) if found is None else found


def close(attn: Attention, out: Tensor, gate: Tensor | None) -> Tensor:
    """Attention outputs, gated, through the output linear: (B,n,D)."""
    return attn.to_out((out if gate is None else gate_heads(out, gate)).flatten(2))


def plain_norm(x: Tensor, level: Tensor, eps: float) -> Tensor:
    """RMS norm that no noise level modulates: what looks at the text before 2.3."""
    return rms_norm(x, eps)


def close_onto(
    attn: Attention,
    out: Tensor,
    gate: Tensor | None,
    onto: GatedResidual,
    norm: Norm | Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """What `close` gives added to the residual stream, and the norm of that."""
    if isinstance(norm, Norm) and gate is not None and takes_out(out, attn.to_out[0], onto):
        return gated_out(out, gate, attn.to_out[0], onto, norm)
    x = onto.add(close(attn, out, gate))
    return x, norm(x, onto.level)
