"""The transformer of LTX-2, 2.3 and 2.5 and of the embedded nano: one class, the video stream only.

Module names are those of the official checkpoints. Noise levels come as rows (`Tokens.sigma`, `Tokens.level`): AdaLN
is computed for the few distinct levels of a clip and picked per token, never computed per token.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iclora_train.core.types import Tokens
from iclora_train.ltx2.kernels.modulated_norm import Norm
from iclora_train.ltx2.kernels.modulation import Onto, pick, rms_norm
from iclora_train.ltx2.model.adaln import AdaLayerNormSingle, CaptionProjection
from iclora_train.ltx2.model.attention import Attention
from iclora_train.ltx2.model.feed_forward import FeedForward
from iclora_train.ltx2.model.rope import Rotations
from iclora_train.ltx2.model.stg import values_through
from iclora_train.ltx2.model.weighted_attention import AttentionBias
from iclora_train.ltx2.runtime.activation_offload import Spill
from iclora_train.ltx2.runtime.cuda_graphs import Graphs
from iclora_train.ltx2.runtime.weight_offload import Offload


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

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        modulation: Tensor,
        level: Tensor,
        rope: Tensor,
        prompt: Tensor | None = None,
        bias: AttentionBias | None = None,
        perturbed: bool = False,
        count: int | None = None,
    ) -> Tensor:
        """x (B,N,D), text (B,T,D'), modulation (B,K,rows,D), level (B,N), prompt (B,1,2,D') -> (B,N,D).

        count: only the first tokens' results are wanted, (B,count,D).
        """
        shift, scale, gate, ff_shift, ff_scale, ff_gate, *cross = (self.scale_shift_table + modulation).unbind(2)
        eps, last = self.eps, Norm(ff_scale, ff_shift, self.eps)
        own = Norm(scale, shift, eps)(x, level)
        level = level[:, :count]
        onto = Onto(x[:, :count], gate, level)
        if cross:
            cross_shift, cross_scale, cross_gate = cross
            norm = Norm(cross_scale, cross_shift, eps)
            if perturbed:
                x = onto.add(values_through(self.attn1, own)[:, :count])
                query = norm(x, level)
            else:
                x, query = self.attn1.added(own, onto, norm, None, rope, bias, count)
            table = self.prompt_scale_shift_table if prompt is None else self.prompt_scale_shift_table + prompt
            text_shift, text_scale = table.unbind(-2)
            text = text * (1 + text_scale) + text_shift
            x, inner = self.attn2.added(query, Onto(x, cross_gate, level), last, text)
        else:
            seen = values_through(self.attn1, own)[:, :count] if perturbed else self.attn1(own, None, rope, bias, count)
            x = onto.add(seen)
            x = x + self.attn2(rms_norm(x, eps), text)
            inner = last(x, level)
        return self.ff(inner, Onto(x, ff_gate, level))


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
        self.recompute = False  # in training keep each block's input only and compute the rest again when it is needed
        self.kept: float | None = None  # the blocks are compiled, and keep that much (`compiled.compile_blocks`)
        self.spill: Spill | None = None  # in training keep a share of what blocks save on the host
        self.graphs: Graphs | None = None  # in training run all blocks by two CUDA graphs
        self.rotations = Rotations()
        self.offload = Offload()  # blocks whose weights lie in host memory
        self.keyframes_abs_pos_embedding = (
            nn.Parameter(torch.zeros(1, width)) if config.use_keyframes_abs_pos_embedding else None
        )
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.proj_out = nn.Linear(width, config.out_channels)

    def forward(
        self,
        tokens: Tokens,
        text: Tensor,
        between: str = "comfyui",
        perturbed: tuple[int, ...] = (),
        count: int | None = None,
    ) -> Tensor:
        """Tokens and text (B,T,D') -> velocity (B,N,C) of all tokens, or of the first `count`.

        The last block then computes nothing of the others but what is looked at.
        between: what references see of one another once an attention weight is set (`weighted.AttentionBias`).
        perturbed: blocks whose self-attention lets its values through (`perturb`).
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
        learning = self.training and torch.is_grad_enabled()
        if self.kept is not None and learning:
            x = x.detach().requires_grad_()  # its gradient is not needed, but spares the first block a graph of its own
        given = (x, text, modulation, tokens.level, rope, prompt)
        if not learning or self.graphs is None:
            x = self._blocks(given, count, bias, perturbed)
        elif bias is None and not perturbed:
            x = self.graphs.run(self._blocks, given, count, self.transformer_blocks)
        else:
            self.graphs.stop("attention weights, of which each step has others")
            x = self._blocks(given, count, bias, perturbed)
        level = tokens.level[:, :count]
        shift, scale = (pick(row, level) for row in (self.scale_shift_table + embedded[:, :, None]).unbind(2))
        x = F.layer_norm(x, (config.width,), eps=config.norm_eps) * (1 + scale) + shift
        return self.proj_out(x)

    def _blocks(
        self,
        given: tuple[Tensor | None, ...],
        count: int | None,
        bias: AttentionBias | None = None,
        perturbed: tuple[int, ...] = (),
    ) -> Tensor:
        """All blocks on what is given (x, text, modulation, level, rope, prompt), the last for `count` tokens:
        (B,N,D) -> (B,count,D)."""
        x, *others = given
        assert x is not None
        last = len(self.transformer_blocks) - 1
        for i in range(last + 1):
            wanted = count if i == last else None
            self.offload.before(i)
            x = self._run(i, (x, *others, bias, i in perturbed, wanted))
            self.offload.after(i, x)
        return x

    def give_back(self) -> None:
        """Give back what only steps of training use of the GPU's memory, before something else needs much."""
        if self.graphs is not None:
            self.graphs.drop()

    def _run(self, number: int, given: tuple[Any, ...]) -> Tensor:
        """One block; in training its backward pass has what it needs kept, computed again, or brought from the host."""
        block = self.transformer_blocks[number]
        learning = self.training and torch.is_grad_enabled()
        if learning and self.recompute:
            return checkpoint(block, *given, use_reentrant=False)
        if learning and self.spill is not None:
            shared = [tensor for tensor in given[1:] if isinstance(tensor, Tensor)]
            last = number == len(self.transformer_blocks) - 1
            with self.spill.block(number, [*shared, *block.parameters(), *block.buffers()], last):
                return block(*given)
        return block(*given)
