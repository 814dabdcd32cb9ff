"""A transformer block computed with fused kernels where they apply, by the formulas of `transformer.Block`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from iclora_train.ltx2.kernels.fused_attention_out import fused_attention_out, supports_attention_out
from iclora_train.ltx2.kernels.fused_feed_forward import fused_feed_forward
from iclora_train.ltx2.kernels.fused_qkv import fused_qkv, supports_qkv
from iclora_train.ltx2.kernels.fused_query import fused_query, supports_query
from iclora_train.ltx2.kernels.lora_linear import (
    FusedLinear,
    can_fuse,
    fused_forward,
    reserve_spare_rows,
    spare_rows,
)
from iclora_train.ltx2.kernels.modulated_norm import ModulatedNorm
from iclora_train.ltx2.kernels.modulation import GatedResidual, gate_heads, rms_norm
from iclora_train.ltx2.model.attention import Attention, attend_first
from iclora_train.ltx2.model.attention import rms_norm as weighted_norm
from iclora_train.ltx2.model.audio_video_block import AUDIO, AudioVideoBlock, JointInputs, SwitchedOff
from iclora_train.ltx2.model.rope import rotate
from iclora_train.ltx2.model.transformer import Block, BlockInputs
from iclora_train.ltx2.model.weighted_attention import AttentionBias

Norm = ModulatedNorm | Callable[[Tensor, Tensor], Tensor]  # x (B,n,D), level (B,n) -> (B,n,D)


class FusedBlock(nn.Module):
    """The fused linears of a block, and its forward pass with them.

    q, k and v of self-attention are one linear, and so are k and v of text attention, LoRA included. Kernels compute
    the steps before and after attention and in the feed-forward.
    """

    def __init__(self, block: Block, fuse: bool = True) -> None:
        """fuse: whether linears of the same input are fused (`compile.fuse_blocks` decides)."""
        super().__init__()
        attn, text_attn = block.attn1, block.attn2
        qkv, kv = [attn.to_q, attn.to_k, attn.to_v], [text_attn.to_k, text_attn.to_v]
        self.qkv = FusedLinear(qkv, spare_rows(qkv, plain_gate(attn))) if fuse and can_fuse(qkv) else None
        self.kv = FusedLinear(kv) if fuse and can_fuse(kv) else None
        if fuse:
            reserve_spare_rows(text_attn.to_q, plain_gate(text_attn))
            reserve_spare_rows(block.ff.linears[0])

    def forward(self, block: Block, x: Tensor, inputs: BlockInputs, num_outputs: int | None, perturbed: bool) -> Tensor:
        rows = (block.scale_shift_table + inputs.modulation).unbind(2)
        ff_norm = ModulatedNorm(rows[4], rows[3], block.eps)
        x, h = self.attend(block, x, inputs, rows, num_outputs, perturbed, ff_norm)
        return self.feed_forward(block, h, GatedResidual(x, rows[5], inputs.level[:, :num_outputs]))

    def joint(
        self, block: AudioVideoBlock, x: Tensor, sound: Tensor, inputs: JointInputs, off: SwitchedOff
    ) -> tuple[Tensor, Tensor]:
        """`AudioVideoBlock.joint`, without gradients. The kernels serve the video stream, which has most of the tokens;
        the audio stream and the attention between the streams are computed as they stand there."""
        rows = (block.scale_shift_table + inputs.video.modulation).unbind(2)
        ff_norm, level = ModulatedNorm(rows[4], rows[3], block.eps), inputs.video.level
        audio = block.layers(AUDIO)
        audio_rows = audio.modulation_rows(inputs.audio)
        between = partial(unmodulated_norm, eps=block.eps)
        x, _ = self.attend(block, x, inputs.video, rows, None, off.video_attention, between)
        sound = audio.attend(sound, inputs.audio, audio_rows, None, off.audio_attention)
        if not off.exchange:
            x, sound = block.exchange(x, sound, inputs)
        x = self.feed_forward(block, ff_norm(x, level), GatedResidual(x, rows[5], level))
        return x, audio.feed_forward(sound, inputs.audio, audio_rows)

    def attend(
        self, block: Block, x: Tensor, inputs: BlockInputs, rows: Sequence[Tensor], num_outputs: int | None,
        perturbed: bool, last_norm: Norm,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x (B,N,D) plus self-attention and text attention: (B,num_outputs,D), and `last_norm` of it."""
        shift, scale, gate, _, _, _, *cross = rows
        h, level = ModulatedNorm(scale, shift, block.eps)(x, inputs.level), inputs.level[:, :num_outputs]
        residual = GatedResidual(x[:, :num_outputs], gate, level)
        text_norm = ModulatedNorm(cross[1], cross[0], block.eps) if cross else None
        if perturbed:
            x = residual.add(block.attn1(h, None, inputs.rope, inputs.bias, num_outputs, perturbed))
            h = rms_norm(x, block.eps) if text_norm is None else text_norm(x, level)
        else:
            out, logits = self.attend_self(block.attn1, h, inputs.rope, inputs.bias, num_outputs)
            norm = text_norm or partial(unmodulated_norm, eps=block.eps)
            x, h = add_to_residual(block.attn1, out, logits, residual, norm)
        if text_norm is None:
            x = x + project_out(block.attn2, *self.attend_text(block.attn2, h, inputs.text))
            return x, last_norm(x, level)
        out, logits = self.attend_text(block.attn2, h, block.modulated_text(inputs))
        return add_to_residual(block.attn2, out, logits, GatedResidual(x, cross[2], level), last_norm)

    def attend_self(
        self, attn: Attention, x: Tensor, rope: Tensor, bias: AttentionBias | None, num_outputs: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """x (B,N,D) -> attention outputs (B,num_outputs,heads,head_dim) and gate logits (B,num_outputs,heads)."""
        layers, gate, norms = [attn.to_q, attn.to_k, attn.to_v], plain_gate(attn), (attn.q_norm, attn.k_norm)
        if self.qkv is not None and supports_qkv(x, layers, self.qkv, rope):
            (q, k, v), logits = fused_qkv(x, layers, self.qkv, gate, norms, rope)
        else:
            (q, k, v), logits = fused_forward(x, layers, self.qkv, gate)
            q, k = weighted_norm(q, attn.q_norm), weighted_norm(k, attn.k_norm)
            q, k, v = (t.unflatten(-1, (attn.heads, -1)) for t in (q, k, v))
            q, k = rotate(q, rope), rotate(k, rope)
        out, logits = attend_first(q, k, v, bias, num_outputs), adapted_gate(attn, x, logits)
        return out, None if logits is None else logits[:, :num_outputs]

    def attend_text(self, attn: Attention, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (B,n,D), text (B,T,D') -> attention outputs (B,n,heads,head_dim) and gate logits (B,n,heads)."""
        if supports_query(x, attn.to_q):
            q, logits = fused_query(x, attn.to_q, plain_gate(attn), attn.q_norm)
        else:
            (q,), logits = fused_forward(x, [attn.to_q], None, plain_gate(attn))
            q = weighted_norm(q, attn.q_norm)
        (k, v), _ = fused_forward(text, [attn.to_k, attn.to_v], self.kv)
        k = weighted_norm(k, attn.k_norm)
        q, k, v = (t.unflatten(-1, (attn.heads, -1)) for t in (q, k, v))
        return attend_first(q, k, v, None, None), adapted_gate(attn, x, logits)

    def feed_forward(self, block: Block, x: Tensor, residual: GatedResidual) -> Tensor:
        """The residual stream plus the gated feed-forward of x (B,n,D)."""
        out = fused_feed_forward(x, *block.ff.linears, residual)
        return residual.add(block.ff(x)) if out is None else out


def plain_gate(attn: Attention) -> nn.Linear | None:
    """The head gate, which is computed with the linears of the same input, unless it has an adapter."""
    gate = attn.to_gate_logits
    return None if gate is None or hasattr(gate, "base_layer") else gate


def adapted_gate(attn: Attention, x: Tensor, logits: Tensor | None) -> Tensor | None:
    """The gate logits of x: `logits`, or computed here because the gate has an adapter."""
    gate = attn.to_gate_logits
    return logits if logits is not None or gate is None else gate(x)


def project_out(attn: Attention, out: Tensor, logits: Tensor | None) -> Tensor:
    """Attention outputs (B,n,heads,head_dim) -> head gate and output linear: (B,n,D)."""
    return attn.to_out((out if logits is None else gate_heads(out, logits)).flatten(2))


def unmodulated_norm(x: Tensor, level: Tensor, eps: float) -> Tensor:
    """RMS norm that does not depend on the noise level: the norm before text attention in LTX-2.0."""
    return rms_norm(x, eps)


def add_to_residual(
    attn: Attention,
    out: Tensor,
    logits: Tensor | None,
    residual: GatedResidual,
    norm: Norm,
) -> tuple[Tensor, Tensor]:
    """The residual stream plus the gated `project_out` of the attention outputs, and the norm of that sum."""
    layer = attn.to_out[0]
    if isinstance(norm, ModulatedNorm) and logits is not None and supports_attention_out(out, layer, residual):
        return fused_attention_out(out, logits, layer, residual, norm)
    x = residual.add(project_out(attn, out, logits))
    return x, norm(x, residual.level)
