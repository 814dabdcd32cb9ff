"""The transformer of LTX-2, 2.3 and 2.5 and of the embedded nano: one class, the video stream only.

Module names are those of the official checkpoints. Noise levels come as rows (`Tokens.sigma`, `Tokens.level`): AdaLN
is computed for the few distinct levels of a clip and picked per token, never computed per token.
This page is the model; what makes it fast and small in training is attached from outside (`ltx2/runtime`): a block's
fused form, and how the blocks are run.
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
from iclora_train.ltx2.model.rope import RotationCache
from iclora_train.ltx2.model.weighted_attention import AttentionBias


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and switches, under the names of the `transformer` section of an official checkpoint's metadata."""

    num_attention_heads: int = 32
    attention_head_dim: int = 128
    in_channels: int = 128
    out_channels: int = 128
    num_layers: int = 48
    cross_attention_dim: int = 4096
    norm_eps: float = 1e-6
    positional_embedding_theta: float = 10000.0
    positional_embedding_max_pos: tuple[float, ...] = (20, 2048, 2048)  # seconds, pixels, pixels
    timestep_scale_multiplier: float = 1000
    apply_gated_attention: bool = False  # since 2.3
    cross_attention_adaln: bool = False  # since 2.3: 9 AdaLN rows instead of 6, and a prompt AdaLN
    use_prompt_adaln_single: bool = True
    ff_bias: bool = True  # 2.5: False
    use_keyframes_abs_pos_embedding: bool = False  # 2.5
    caption_proj_before_connector: bool = False  # since 2.3; before, the transformer projects captions itself
    caption_channels: int = 3840

    @property
    def width(self) -> int:
        """Channels of a token inside the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_width(self) -> int:
        """Channels of the text features that are given."""
        return self.cross_attention_dim if self.caption_proj_before_connector else self.caption_channels

    @property
    def rows(self) -> int:
        """AdaLN rows of a block: shift, scale, gate of attention and feed-forward, and of text attention since 2.3."""
        return 9 if self.cross_attention_adaln else 6

    @classmethod
    def from_metadata(cls, section: dict[str, Any]) -> TransformerConfig:
        """From the `transformer` section of a checkpoint's config; keys that do not concern the video stream drop."""
        known = {f.name for f in fields(cls)} & section.keys()
        chosen = {name: section[name] for name in known}
        if "positional_embedding_max_pos" in chosen:
            chosen["positional_embedding_max_pos"] = tuple(chosen["positional_embedding_max_pos"])
        if section.get("rope_type", "split") != "split":
            raise ValueError(f"rope_type={section['rope_type']!r} is not supported: LTX-2 checkpoints use 'split'")
        return cls(**chosen)


class BlockInputs(NamedTuple):
    """What every block is given beside the tokens."""

    text: Tensor  # (B,T,D')
    modulation: Tensor  # (B,K,rows,D)
    level: Tensor  # (B,N)
    rope: Tensor
    prompt: Tensor | None = None  # (B,1,2,D')
    bias: AttentionBias | None = None


class Block(nn.Module):
    """Self-attention, text attention and feed-forward, each modulated by the token's noise level."""

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
        self.fused: nn.Module | None = None  # computes the same with fused kernels (`runtime.fused_block`)

    def forward(
        self, x: Tensor, inputs: BlockInputs, num_outputs: int | None = None, perturbed: bool = False
    ) -> Tensor:
        """x (B,N,D) -> (B,N,D), or (B,num_outputs,D) of the first tokens; perturbed: see `Attention`."""
        if self.fused is not None:
            return self.fused(self, x, inputs, num_outputs, perturbed)
        text, level = inputs.text, inputs.level
        shift, scale, gate, ff_shift, ff_scale, ff_gate, *cross = (self.scale_shift_table + inputs.modulation).unbind(2)
        h = self.attn1(self._norm(x, scale, shift, level), None, inputs.rope, inputs.bias, num_outputs, perturbed)
        level = level[:, :num_outputs]
        x = x[:, :num_outputs] + pick(gate, level) * h
        if cross:  # since 2.3 text attention is modulated too: its queries by the token's level, the text by the clip's
            cross_shift, cross_scale, cross_gate = cross
            h = self.attn2(self._norm(x, cross_scale, cross_shift, level), self.modulated_text(inputs))
            x = x + pick(cross_gate, level) * h
        else:
            x = x + self.attn2(rms_norm(x, self.eps), text)
        return x + pick(ff_gate, level) * self.ff(self._norm(x, ff_scale, ff_shift, level))

    def modulated_text(self, inputs: BlockInputs) -> Tensor:
        """The text (B,T,D') by the AdaLN of the clip's noise level."""
        table = self.prompt_scale_shift_table
        shift, scale = (table if inputs.prompt is None else table + inputs.prompt).unbind(-2)
        return inputs.text * (1 + scale) + shift

    def _norm(self, x: Tensor, scale: Tensor, shift: Tensor, level: Tensor) -> Tensor:
        return rms_norm(x, self.eps) * (1 + pick(scale, level)) + pick(shift, level)


class Runner(Protocol):
    """How the blocks are run (`runtime.block_runner`): x -> (B,num_outputs,D)."""

    def __call__(
        self, net: Transformer, x: Tensor, inputs: BlockInputs, num_outputs: int | None, perturbed: Sequence[int]
    ) -> Tensor: ...


def run_blocks_sequentially(
    net: Transformer, x: Tensor, inputs: BlockInputs, num_outputs: int | None, perturbed: Sequence[int]
) -> Tensor:
    """The plain way: block after block; the last computes the first `num_outputs` tokens only."""
    last = len(net.transformer_blocks) - 1
    for i, block in enumerate(net.transformer_blocks):
        x = block(x, inputs, num_outputs if i == last else None, i in perturbed)
    return x


class Transformer(nn.Module):
    """Predicts the velocity of every token. The caller slices off what it needs (the target comes first)."""

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
        self.rotations = RotationCache()
        self.run_blocks: Runner = run_blocks_sequentially

    def forward(
        self,
        tokens: Tokens,
        text: Tensor,
        between: str = "comfyui",
        perturbed: tuple[int, ...] = (),
        num_outputs: int | None = None,
    ) -> Tensor:
        """Tokens and text (B,T,D') -> velocity (B,N,C) of all tokens, or of the first `num_outputs`.

        between: what references see of one another once an attention weight is set (`AttentionBias`).
        perturbed: the blocks in which every token attends to itself alone.
        """
        config, dtype = self.config, self.patchify_proj.weight.dtype
        x = self.patchify_proj(tokens.latent.to(dtype))
        if self.keyframes_abs_pos_embedding is not None:
            x = x + tokens.keyframe[..., None] * self.keyframes_abs_pos_embedding
        time = tokens.sigma.float() * config.timestep_scale_multiplier
        modulation, embedded = self.adaln_single(time)  # (B,K,rows,D), (B,K,D)
        prompt = None if self.prompt_adaln_single is None else self.prompt_adaln_single(time[:, :1])[0]
        text = text.to(dtype)
        if self.caption_projection is not None:
            text = self.caption_projection(text)
        theta, extent = config.positional_embedding_theta, config.positional_embedding_max_pos
        rope = self.rotations.of(tokens.position, config.width, config.num_attention_heads, theta, extent, dtype)
        bias = None if tokens.weight is None else AttentionBias(tokens.weight, tokens.group, between)
        x = self.run_blocks(
            self, x, BlockInputs(text, modulation, tokens.level, rope, prompt, bias), num_outputs, perturbed
        )
        level = tokens.level[:, :num_outputs]
        shift, scale = (pick(row, level) for row in (self.scale_shift_table + embedded[:, :, None]).unbind(2))
        x = F.layer_norm(x, (config.width,), eps=config.norm_eps) * (1 + scale) + shift
        return self.proj_out(x)
