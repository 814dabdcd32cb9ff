"""The video transformer of LTX-2, LTX-2.3, LTX-2.5 and the embedded nano: one class, the video stream only.

Module names are the official checkpoints'. A clip has K distinct noise levels (`Tokens.sigma`), and
`Tokens.level` is the index of each token's level. AdaLN is computed for K rows and picked per token.

This file is the whole model. `ltx2/runtime` makes training fast and small from outside: `Block.fused` computes a block
with fused kernels, and `Transformer.run_blocks` runs all blocks with activation checkpointing, offload or CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.core.types import Tokens
from iclora_train.ltx2.kernels.modulation import pick, rms_norm
from iclora_train.ltx2.model.adaln import AdaLayerNormSingle, CaptionProjection
from iclora_train.ltx2.model.attention import Attention
from iclora_train.ltx2.model.feed_forward import FeedForward
from iclora_train.ltx2.model.rope import RopeCache
from iclora_train.ltx2.model.weighted_attention import AttentionBias


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and switches, under the names of the `transformer` section of an official checkpoint's metadata."""

    num_attention_heads: int = 32
    attention_head_dim: int = 128
    in_channels: int = 128
    out_channels: int = 128
    num_layers: int = 48
    cross_attention_dim: int = 4096  # equals `width` in every published checkpoint
    norm_eps: float = 1e-6
    positional_embedding_theta: float = 10000.0
    positional_embedding_max_pos: tuple[float, ...] = (20, 2048, 2048)  # seconds, pixels, pixels
    timestep_scale_multiplier: float = 1000
    apply_gated_attention: bool = False  # since 2.3
    cross_attention_adaln: bool = False  # since 2.3: 9 AdaLN rows instead of 6, and a prompt AdaLN
    use_prompt_adaln_single: bool = True
    ff_bias: bool = True  # 2.5: False
    use_keyframes_abs_pos_embedding: bool = False  # 2.5
    caption_proj_before_connector: bool = False  # since 2.3; earlier versions project captions in the transformer
    caption_channels: int = 3840

    @property
    def width(self) -> int:
        """Channels of a token inside the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_width(self) -> int:
        """Channels of the text features at the transformer's input."""
        return self.cross_attention_dim if self.caption_proj_before_connector else self.caption_channels

    @property
    def rows(self) -> int:
        """AdaLN rows of a block: shift, scale, gate of self-attention and feed-forward; since 2.3 of text attention."""
        return 9 if self.cross_attention_adaln else 6

    @classmethod
    def from_metadata(cls, section: dict[str, Any]) -> TransformerConfig:
        """Read the `transformer` section of a checkpoint's config. Keys of other streams are ignored."""
        values = {f.name: section[f.name] for f in fields(cls) if f.name in section}
        if "positional_embedding_max_pos" in values:
            values["positional_embedding_max_pos"] = tuple(values["positional_embedding_max_pos"])
        if section.get("rope_type", "split") != "split":
            raise ValueError(f"rope_type={section['rope_type']!r} is not supported: LTX-2 checkpoints use 'split'")
        return cls(**values)


class BlockInputs(NamedTuple):
    """Inputs that all blocks share: everything but the tokens x (B,N,D)."""

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
        table = self.scale_shift_table + inputs.modulation  # (B,K,rows,D)
        shift, scale, gate, ff_shift, ff_scale, ff_gate, *cross = table.unbind(2)
        h = self._modulated_norm(x, scale, shift, inputs.level)
        h = self.attn1(h, None, inputs.rope, inputs.bias, num_outputs, perturbed)
        level = inputs.level[:, :num_outputs]
        x = x[:, :num_outputs] + pick(gate, level) * h
        if cross:  # since 2.3: the token's noise level modulates the queries, the clip's noise level the text
            cross_shift, cross_scale, cross_gate = cross
            h = self.attn2(self._modulated_norm(x, cross_scale, cross_shift, level), self.modulated_text(inputs))
            x = x + pick(cross_gate, level) * h
        else:
            x = x + self.attn2(rms_norm(x, self.eps), inputs.text)
        return x + pick(ff_gate, level) * self.ff(self._modulated_norm(x, ff_scale, ff_shift, level))

    def modulated_text(self, inputs: BlockInputs) -> Tensor:
        """The text features (B,T,D), scaled and shifted for the clip's noise level."""
        table = self.prompt_scale_shift_table
        shift, scale = (table if inputs.prompt is None else table + inputs.prompt).unbind(-2)
        return inputs.text * (1 + scale) + shift

    def _modulated_norm(self, x: Tensor, scale: Tensor, shift: Tensor, level: Tensor) -> Tensor:
        return rms_norm(x, self.eps) * (1 + pick(scale, level)) + pick(shift, level)


class RunBlocks(Protocol):
    """Runs all blocks: x (B,N,D) -> (B,num_outputs,D)."""

    def __call__(
        self, net: Transformer, x: Tensor, inputs: BlockInputs, num_outputs: int | None, perturbed: Sequence[int]
    ) -> Tensor: ...


def run_blocks_sequentially(
    net: Transformer, x: Tensor, inputs: BlockInputs, num_outputs: int | None, perturbed: Sequence[int]
) -> Tensor:
    """Block after block. The last block computes only the first `num_outputs` tokens."""
    last = len(net.transformer_blocks) - 1
    for i, block in enumerate(net.transformer_blocks):
        x = block(x, inputs, num_outputs if i == last else None, i in perturbed)
    return x


class Transformer(nn.Module):
    """Predicts the velocity of the tokens, target tokens first."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, self.config = config.width, config
        self.patchify_proj = nn.Linear(config.in_channels, width)
        self.adaln_single = AdaLayerNormSingle(width, config.rows)
        self.prompt_adaln_single = (
            AdaLayerNormSingle(width, 2) if config.cross_attention_adaln and config.use_prompt_adaln_single else None
        )
        self.caption_projection = (
            None if config.caption_proj_before_connector else CaptionProjection(config.caption_channels, width)
        )
        self.keyframes_abs_pos_embedding = (
            nn.Parameter(torch.zeros(1, width)) if config.use_keyframes_abs_pos_embedding else None
        )
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.proj_out = nn.Linear(width, config.out_channels)
        self.rope_cache = RopeCache()
        self.run_blocks: RunBlocks = run_blocks_sequentially

    def forward(
        self,
        tokens: Tokens,
        text: Tensor,
        between: str = "comfyui",
        perturbed: tuple[int, ...] = (),
        num_outputs: int | None = None,
    ) -> Tensor:
        """Tokens and text (B,T,text_width) -> velocity (B,N,C), or (B,num_outputs,C) for the first tokens only.

        between: whether references attend to each other when attention weights are set (`AttentionBias`).
        perturbed: indices of the blocks in which every token attends only to itself.
        """
        config, dtype = self.config, self.patchify_proj.weight.dtype
        x = self.patchify_proj(tokens.latent.to(dtype))  # (B,N,D)
        if self.keyframes_abs_pos_embedding is not None:
            x = x + tokens.keyframe[..., None] * self.keyframes_abs_pos_embedding
        time = tokens.sigma.float() * config.timestep_scale_multiplier  # (B,K)
        modulation, time_embedding = self.adaln_single(time)  # (B,K,rows,D), (B,K,D)
        prompt = None if self.prompt_adaln_single is None else self.prompt_adaln_single(time[:, :1])[0]  # (B,1,2,D)
        text = text.to(dtype)
        if self.caption_projection is not None:
            text = self.caption_projection(text)
        theta, max_position = config.positional_embedding_theta, config.positional_embedding_max_pos
        rope = self.rope_cache.get(
            tokens.position, config.width, config.num_attention_heads, theta, max_position, dtype
        )
        bias = None if tokens.weight is None else AttentionBias(tokens.weight, tokens.group, between)
        inputs = BlockInputs(text, modulation, tokens.level, rope, prompt, bias)
        if num_outputs == x.shape[1]:
            num_outputs = None  # the last block then computes as the others
        x = self.run_blocks(self, x, inputs, num_outputs, perturbed)
        level = tokens.level[:, :num_outputs]
        table = self.scale_shift_table + time_embedding[:, :, None]  # (B,K,2,D)
        shift, scale = (pick(row, level) for row in table.unbind(2))
        x = F.layer_norm(x, (config.width,), eps=config.norm_eps) * (1 + scale) + shift
        return self.proj_out(x)
