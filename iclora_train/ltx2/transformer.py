"""The transformer of LTX-2, 2.3 and 2.5 and of the embedded nano: one class, the video stream only.

Module names are those of the official checkpoints. Noise levels come as rows (`Tokens.sigma`, `Tokens.level`): AdaLN
is computed for the few distinct levels of a clip and picked per token, never computed per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iclora_train.ltx2.attention import Attention
from iclora_train.ltx2.offload import Offload
from iclora_train.ltx2.perturb import values_through
from iclora_train.ltx2.rope import rotation
from iclora_train.ltx2.weighted import AttentionBias
from iclora_train.pair import Tokens

TIME_CHANNELS = 256  # of the sinusoidal embedding of a noise level


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


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square across channels, without weights."""
    return F.rms_norm(x, (x.shape[-1],), eps=eps)


def pick(rows: Tensor, level: Tensor) -> Tensor:
    """The AdaLN vector of each token: rows (B,K,D), level (B,N) -> (B,N,D), or (B,1,D) when there is one level."""
    chosen = rows[:, :1]
    for k in range(1, rows.shape[1]):  # two or three: selecting costs less than a gather, and its gradient is a sum
        chosen = torch.where((level == k)[..., None], rows[:, k : k + 1], chosen)
    return chosen


class TimestepEmbedding(nn.Module):
    """Two linears on the sinusoidal embedding of a noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIME_CHANNELS, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        half = TIME_CHANNELS // 2
        omega = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=time.device))
        angle = time.float()[..., None] * omega
        embedded = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(embedded)))


class AdaLayerNormSingle(nn.Module):
    """AdaLN-single of PixArt-alpha (arXiv 2310.00426, section 2.3): levels (B,K) -> (B,K,rows,D) and the embedding."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedding(width)})
        self.linear = nn.Linear(width, rows * width)

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.emb["timestep_embedder"](time)
        return self.linear(F.silu(embedded)).unflatten(-1, (self.rows, -1)), embedded


class GELUProjection(nn.Module):
    """Linear and tanh-approximated GELU (a module of its own for the official name `net.0.proj`)."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two linears, four times as wide inside."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GELUProjection(width, 4 * width, bias), nn.Identity(), nn.Linear(4 * width, width, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


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
    ) -> Tensor:
        """x (B,N,D), text (B,T,D'), modulation (B,K,rows,D), level (B,N), prompt (B,1,2,D') -> (B,N,D)."""
        rows = (self.scale_shift_table + modulation).unbind(2)
        shift, scale, gate, ff_shift, ff_scale, ff_gate, *cross = (pick(row, level) for row in rows)
        own = rms_norm(x, self.eps) * (1 + scale) + shift
        x = x + (values_through(self.attn1, own) if perturbed else self.attn1(own, rope=rope, bias=bias)) * gate
        query = rms_norm(x, self.eps)
        if cross:
            cross_shift, cross_scale, cross_gate = cross
            table = self.prompt_scale_shift_table if prompt is None else self.prompt_scale_shift_table + prompt
            text_shift, text_scale = table.unbind(-2)
            text = text * (1 + text_scale) + text_shift
            x = x + self.attn2(query * (1 + cross_scale) + cross_shift, context=text) * cross_gate
        else:
            x = x + self.attn2(query, context=text)
        return x + self.ff(rms_norm(x, self.eps) * (1 + ff_scale) + ff_shift) * ff_gate


class CaptionProjection(nn.Module):
    """Text features to the transformer's width (LTX-2.0 only)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


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
        self.offload = Offload()  # blocks whose weights lie in host memory
        self.keyframes_abs_pos_embedding = (
            nn.Parameter(torch.zeros(1, width)) if config.use_keyframes_abs_pos_embedding else None
        )
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.proj_out = nn.Linear(width, config.out_channels)

    def forward(
        self, tokens: Tokens, text: Tensor, between: str = "comfyui", perturbed: tuple[int, ...] = ()
    ) -> Tensor:
        """Tokens and text (B,T,D') -> velocity (B,N,C) of all tokens, references included.

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
        rope = rotation(tokens.position, config.width, config.num_attention_heads, theta, extent).to(dtype)
        bias = None if tokens.weight is None else AttentionBias(tokens.weight, tokens.group, between)
        for i, block in enumerate(self.transformer_blocks):
            given = (x, text, modulation, tokens.level, rope, prompt, bias, i in perturbed)
            saving = self.recompute and self.training and torch.is_grad_enabled()
            self.offload.before(i)
            x = checkpoint(block, *given, use_reentrant=False) if saving else block(*given)
            self.offload.after(i, x)
        shift, scale = (pick(row, tokens.level) for row in (self.scale_shift_table + embedded[:, :, None]).unbind(2))
        x = F.layer_norm(x, (config.width,), eps=config.norm_eps) * (1 + scale) + shift
        return self.proj_out(x)
