"""A block of the video stream: self-attention, text attention and feed-forward, modulated by the noise level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from iclora_train.ltx2.kernels.modulation import pick, rms_norm
from iclora_train.ltx2.model.attention import Attention
from iclora_train.ltx2.model.config import TransformerConfig
from iclora_train.ltx2.model.feed_forward import FeedForward
from iclora_train.ltx2.model.weighted_attention import AttentionBias


class BlockInputs(NamedTuple):
    """Inputs of one stream that all blocks share: everything but the tokens x (B,N,D)."""

    text: Tensor  # (B,T,D)
    modulation: Tensor  # (B,K,rows,D), from AdaLN
    level: Tensor  # (B,N) int64, index of each token's noise level
    rope: Tensor  # (2,B,N,heads,head_dim/2), cos and sin
    prompt: Tensor | None = None  # (B,1,2,D), AdaLN shift and scale of the text since 2.3
    bias: AttentionBias | None = None  # per-token attention weights

    def tensors(self) -> list[Tensor]:
        """The tensors among the fields, in their order."""
        return [value for value in self if isinstance(value, Tensor)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> BlockInputs:
        """A copy in which the fields that are tensors are replaced by `tensors`, in their order."""
        names = [name for name, value in zip(self._fields, self, strict=True) if isinstance(value, Tensor)]
        values: dict[str, Any] = dict(zip(names, tensors, strict=True))
        return self._replace(**values)


class StreamLayers(NamedTuple):
    """The layers of one stream in a block, and its computation. The audio stream's have the same names after `audio_`.

    `rows` of the methods: the AdaLN vectors (B,K,D) of `modulation_rows`.
    """

    attn1: Attention
    attn2: Attention
    ff: FeedForward
    scale_shift_table: Tensor  # (rows,D)
    prompt_scale_shift_table: Tensor | None  # (2,D), since 2.3
    eps: float

    def modulation_rows(self, inputs: BlockInputs) -> tuple[Tensor, ...]:
        """Shift, scale and gate of self-attention, of the feed-forward and, since 2.3, of text attention."""
        return (self.scale_shift_table + inputs.modulation).unbind(2)

    def attend(
        self, x: Tensor, inputs: BlockInputs, rows: Sequence[Tensor], num_outputs: int | None, perturbed: bool
    ) -> Tensor:
        """x (B,N,D) plus self-attention and text attention: (B,N,D), or (B,num_outputs,D)."""
        shift, scale, gate = rows[:3]
        h = modulated_norm(x, self.eps, scale, shift, inputs.level)
        h = self.attn1(h, None, inputs.rope, inputs.bias, num_outputs, perturbed)
        level = inputs.level[:, :num_outputs]
        x = x[:, :num_outputs] + pick(gate, level) * h
        if len(rows) == 6:
            return x + self.attn2(rms_norm(x, self.eps), inputs.text)
        cross_shift, cross_scale, cross_gate = rows[6:]  # the token's noise level modulates the queries,
        h = modulated_norm(x, self.eps, cross_scale, cross_shift, level)  # the clip's noise level the text
        return x + pick(cross_gate, level) * self.attn2(h, self.modulated_text(inputs))

    def feed_forward(self, x: Tensor, inputs: BlockInputs, rows: Sequence[Tensor]) -> Tensor:
        """x (B,n,D), the first tokens of `inputs`, plus its feed-forward."""
        shift, scale, gate = rows[3:6]
        level = inputs.level[:, : x.shape[1]]
        return x + pick(gate, level) * self.ff(modulated_norm(x, self.eps, scale, shift, level))

    def modulated_text(self, inputs: BlockInputs) -> Tensor:
        """The text features (B,T,D), scaled and shifted for the clip's noise level."""
        table = self.prompt_scale_shift_table
        assert table is not None
        shift, scale = (table if inputs.prompt is None else table + inputs.prompt).unbind(-2)
        return inputs.text * (1 + scale) + shift


def modulated_norm(x: Tensor, eps: float, scale: Tensor, shift: Tensor, level: Tensor) -> Tensor:
    """RMS norm of x (B,n,D), scaled and shifted by the vectors (B,K,D) of each token's noise level."""
    return rms_norm(x, eps) * (1 + pick(scale, level)) + pick(shift, level)


class Block(nn.Module):
    """Self-attention, text cross-attention and feed-forward, each modulated by the token's noise level."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads, eps = config.width, config.num_attention_heads, config.norm_eps
        self.eps = eps
        self.attn1 = Attention(width, width, heads, eps, config.apply_gated_attention)
        self.attn2 = Attention(width, config.cross_attention_dim, heads, eps, config.apply_gated_attention)
        self.ff = FeedForward(width, config.ff_bias)
        self.scale_shift_table = nn.Parameter(torch.zeros(config.rows, width))
        if config.cross_attention_adaln:
            self.prompt_scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.fused: nn.Module | None = None  # the same block with fused kernels (`runtime.fused_block`)

    def forward(
        self, x: Tensor, inputs: BlockInputs, num_outputs: int | None = None, perturbed: bool = False
    ) -> Tensor:
        """x (B,N,D) -> (B,N,D), or (B,num_outputs,D) for the first tokens only. perturbed: see `Attention.forward`."""
        if self.fused is not None:
            return self.fused(self, x, inputs, num_outputs, perturbed)
        video = self.layers()
        rows = video.modulation_rows(inputs)
        x = video.attend(x, inputs, rows, num_outputs, perturbed)
        return video.feed_forward(x, inputs, rows)

    def layers(self, prefix: str = "") -> StreamLayers:
        """The layers of the video stream, or with the prefix `audio_` of the audio stream (`AudioVideoBlock`)."""
        layers: dict[str, Any] = {name: getattr(self, prefix + name, None) for name in StreamLayers._fields[:-1]}
        return StreamLayers(**layers, eps=self.eps)

    def modulated_text(self, inputs: BlockInputs) -> Tensor:
        """The text features (B,T,D), scaled and shifted for the clip's noise level."""
        return self.layers().modulated_text(inputs)
