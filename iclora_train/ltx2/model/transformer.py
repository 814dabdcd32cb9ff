"""The transformer of LTX-2, LTX-2.3, LTX-2.5 and the embedded nano: one class, the video stream with or without audio.

Module names are the official checkpoints'. A clip has K distinct noise levels (`Tokens.sigma`), and
`Tokens.level` is the index of each token's level. AdaLN is computed for K rows and picked per token.

`config`, `block` and `audio_video_block` are the other files of the model. `ltx2/runtime` makes training fast and small
from outside: `Block.fused` computes a block with fused kernels, and `Transformer.run_blocks` runs all blocks with
activation checkpointing, offload or CUDA graphs. With audio, `Transformer.run_joint_blocks` runs the blocks: as they
stand in `audio_video_block`, or without gradients compiled and with the fused kernels of the video stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.core.types import AudioTokens, StreamTokens, Tokens
from iclora_train.ltx2.kernels.modulation import pick
from iclora_train.ltx2.model.adaln import AdaLayerNormSingle, CaptionProjection
from iclora_train.ltx2.model.audio_video_block import AUDIO, AudioVideoBlock, CrossInputs, JointInputs, SwitchedOff
from iclora_train.ltx2.model.block import Block, BlockInputs
from iclora_train.ltx2.model.config import AudioConfig, TransformerConfig
from iclora_train.ltx2.model.rope import RopeCache
from iclora_train.ltx2.model.weighted_attention import AttentionBias

__all__ = ["AudioConfig", "AudioInput", "Block", "BlockInputs", "Perturbed", "Transformer", "TransformerConfig"]


@dataclass(frozen=True)
class AudioInput:
    """The audio half of a call of the transformer.

    tokens: row 0 of their `sigma` is the noise level that the video stream sees in the gate of its attention to audio.
    text: (B,T,audio_text_width), the caption's features of the audio connector. They are not those of the video stream.
    perturbed: indices of the blocks in which every audio token attends only to itself (STG).
    isolated: without the attention between the streams, in all blocks (modality guidance of ltx-pipelines).
    cross_level: whose noise level scales and shifts the norms of that attention. "ltx": the token's own (ltx-core).
    "comfyui": the other stream's, row 0 of its `sigma` (ComfyUI, diffusers). They differ for clean tokens.
    num_outputs: the velocity of the first audio tokens only.
    """

    tokens: AudioTokens
    text: Tensor
    perturbed: tuple[int, ...] = ()
    isolated: bool = False
    cross_level: str = "ltx"
    num_outputs: int | None = None

    def __post_init__(self) -> None:
        if self.cross_level not in ("ltx", "comfyui"):
            raise ValueError(f"cross_level={self.cross_level!r} is not one of ltx, comfyui")


class Perturbed(NamedTuple):
    """What is left out in which blocks: self-attention of each stream, and everywhere the attention between them."""

    video: Sequence[int] = ()
    audio: Sequence[int] = ()
    isolated: bool = False

    def in_block(self, index: int) -> SwitchedOff:
        """What this block leaves out."""
        return SwitchedOff(index in self.video, index in self.audio, self.isolated)


class RunBlocks(Protocol):
    """Runs all blocks: x (B,N,D) -> (B,num_outputs,D)."""

    def __call__(
        self, net: Transformer, x: Tensor, inputs: BlockInputs, num_outputs: int | None, perturbed: Sequence[int]
    ) -> Tensor: ...


class RunJointBlocks(Protocol):
    """Runs all blocks on both streams: x (B,N,D) and sound (B,n,d) -> the same shapes."""

    def __call__(
        self, net: Transformer, x: Tensor, sound: Tensor, inputs: JointInputs, perturbed: Perturbed
    ) -> tuple[Tensor, Tensor]: ...


def run_blocks_sequentially(
    net: Transformer, x: Tensor, inputs: BlockInputs, num_outputs: int | None, perturbed: Sequence[int]
) -> Tensor:
    """Block after block. The last block computes only the first `num_outputs` tokens."""
    last = len(net.transformer_blocks) - 1
    for i, block in enumerate(net.transformer_blocks):
        x = block(x, inputs, num_outputs if i == last else None, i in perturbed)
    return x


def run_joint_blocks_sequentially(
    net: Transformer, x: Tensor, sound: Tensor, inputs: JointInputs, perturbed: Perturbed
) -> tuple[Tensor, Tensor]:
    """Block after block, both streams."""
    for i, block in enumerate(net.transformer_blocks):
        assert isinstance(block, AudioVideoBlock)
        x, sound = block.joint(x, sound, inputs, perturbed.in_block(i))
    return x, sound


class StreamEnds(NamedTuple):
    """The layers of one stream before and after the blocks. The audio stream's have the same names after `audio_`."""

    patchify_proj: nn.Linear
    adaln_single: AdaLayerNormSingle
    prompt_adaln_single: AdaLayerNormSingle | None
    caption_projection: CaptionProjection | None
    scale_shift_table: Tensor  # (2,D)
    proj_out: nn.Linear

    def block_inputs(
        self, tokens: StreamTokens, text: Tensor, time_scale: float, rope: Tensor, bias: AttentionBias | None = None
    ) -> tuple[BlockInputs, Tensor]:
        """The inputs of the blocks, and the time embedding (B,K,D) for `velocity`."""
        time = tokens.sigma.float() * time_scale  # (B,K)
        modulation, time_embedding = self.adaln_single(time)  # (B,K,rows,D), (B,K,D)
        prompt = None if self.prompt_adaln_single is None else self.prompt_adaln_single(time[:, :1])[0]  # (B,1,2,D)
        text = text.to(self.patchify_proj.weight.dtype)
        if self.caption_projection is not None:
            text = self.caption_projection(text)
        return BlockInputs(text, modulation, tokens.level, rope, prompt, bias), time_embedding

    def velocity(self, x: Tensor, level: Tensor, time_embedding: Tensor, eps: float) -> Tensor:
        """Output of the last block (B,n,D) -> velocity (B,n,C)."""
        table = self.scale_shift_table + time_embedding[:, :, None]  # (B,K,2,D)
        shift, scale = (pick(row, level) for row in table.unbind(2))
        x = F.layer_norm(x, (x.shape[-1],), eps=eps) * (1 + scale) + shift
        velocity: Tensor = self.proj_out(x)
        return velocity


class Transformer(nn.Module):
    """Predicts the velocity of the tokens, target tokens first."""

    patchify_proj: nn.Linear
    run_joint_blocks: RunJointBlocks

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self._add_inputs("", config.width, config.in_channels)
        self.keyframes_abs_pos_embedding = (
            nn.Parameter(torch.zeros(1, config.width)) if config.use_keyframes_abs_pos_embedding else None
        )
        self.reference_slots: nn.Module | None = None  # group (N,) -> (N,D), of an adapter (`adapters.slots`)
        block = Block if config.audio is None else AudioVideoBlock
        self.transformer_blocks = nn.ModuleList(block(config) for _ in range(config.num_layers))
        self._add_outputs("", config.width, config.out_channels)
        self.rope_cache = RopeCache()
        self.run_blocks: RunBlocks = run_blocks_sequentially
        if config.audio is not None:
            self._add_audio(config.audio)

    def _add_inputs(self, prefix: str, width: int, channels: int) -> None:
        """Add the layers of `StreamEnds` before the blocks."""
        config = self.config
        with_prompt = config.cross_attention_adaln and config.use_prompt_adaln_single
        with_captions = not config.caption_proj_before_connector
        setattr(self, f"{prefix}patchify_proj", nn.Linear(channels, width))
        setattr(self, f"{prefix}adaln_single", AdaLayerNormSingle(width, config.rows))
        setattr(self, f"{prefix}prompt_adaln_single", AdaLayerNormSingle(width, 2) if with_prompt else None)
        captions = CaptionProjection(config.caption_channels, width) if with_captions else None
        setattr(self, f"{prefix}caption_projection", captions)

    def _add_outputs(self, prefix: str, width: int, channels: int) -> None:
        """Add the layers of `StreamEnds` after the blocks."""
        setattr(self, f"{prefix}scale_shift_table", nn.Parameter(torch.zeros(2, width)))
        setattr(self, f"{prefix}proj_out", nn.Linear(width, channels))

    def _add_audio(self, audio: AudioConfig) -> None:
        """Add the audio stream, and what the attention between the streams needs outside the blocks."""
        width = self.config.width
        self._add_inputs(AUDIO, audio.width, audio.in_channels)
        self._add_outputs(AUDIO, audio.width, audio.out_channels)
        self.av_ca_video_scale_shift_adaln_single = AdaLayerNormSingle(width, 4)
        self.av_ca_audio_scale_shift_adaln_single = AdaLayerNormSingle(audio.width, 4)
        self.av_ca_a2v_gate_adaln_single = AdaLayerNormSingle(width, 1)
        self.av_ca_v2a_gate_adaln_single = AdaLayerNormSingle(audio.width, 1)
        self.audio_rope_cache, self.video_time_rope_cache, self.audio_time_rope_cache = (RopeCache() for _ in range(3))
        self.run_joint_blocks = run_joint_blocks_sequentially

    @overload
    def forward(
        self, tokens: Tokens, text: Tensor, between: str = ..., perturbed: tuple[int, ...] = ...,
        num_outputs: int | None = ..., audio: None = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def forward(
        self, tokens: Tokens, text: Tensor, between: str = ..., perturbed: tuple[int, ...] = ...,
        num_outputs: int | None = ..., *, audio: AudioInput,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    def forward(
        self,
        tokens: Tokens,
        text: Tensor,
        between: str = "comfyui",
        perturbed: tuple[int, ...] = (),
        num_outputs: int | None = None,
        audio: AudioInput | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens and text (B,T,text_width) -> velocity (B,N,C), or (B,num_outputs,C) for the first tokens only.

        between: whether references attend to each other when attention weights are set (`AttentionBias`).
        perturbed: indices of the blocks in which every token attends only to itself.
        audio: the audio half of a transformer that was loaded with it. The result is then the velocities of the video
        tokens and of the audio tokens. Without it the transformer computes the video stream alone.
        """
        config, video, dtype = self.config, self._ends(), self.patchify_proj.weight.dtype
        x = video.patchify_proj(tokens.latent.to(dtype))  # (B,N,D)
        if self.keyframes_abs_pos_embedding is not None:
            x = x + tokens.keyframe[..., None] * self.keyframes_abs_pos_embedding
        if self.reference_slots is not None:
            x = x + self.reference_slots(tokens.group).to(dtype)
        theta, max_position = config.positional_embedding_theta, config.positional_embedding_max_pos
        rope = self.rope_cache.get(
            tokens.position, config.width, config.num_attention_heads, theta, max_position, dtype
        )
        bias = None if tokens.weight is None else AttentionBias(tokens.weight, tokens.group, between, tokens.absent)
        inputs, time_embedding = video.block_inputs(tokens, text, config.timestep_scale_multiplier, rope, bias)
        if audio is not None:
            x, heard = self._run_joint(x, inputs, tokens, audio, perturbed)
            x = x[:, :num_outputs]
        else:
            if num_outputs == x.shape[1]:
                num_outputs = None  # the last block then computes as the others
            x = self.run_blocks(self, x, inputs, num_outputs, perturbed)
        velocity = video.velocity(x, tokens.level[:, :num_outputs], time_embedding, config.norm_eps)
        return velocity if audio is None else (velocity, heard)

    def _ends(self, prefix: str = "") -> StreamEnds:
        return StreamEnds(*(getattr(self, prefix + name) for name in StreamEnds._fields))

    def _run_joint(
        self, x: Tensor, inputs: BlockInputs, tokens: Tokens, audio: AudioInput, perturbed: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The video tokens after all blocks (B,N,D), and the velocity of the audio tokens."""
        sizes, sound = self.config.audio, audio.tokens
        assert sizes is not None, "the transformer was loaded without its audio half"
        ends = self._ends(AUDIO)
        theta, scale = self.config.positional_embedding_theta, self.config.timestep_scale_multiplier
        y = ends.patchify_proj(sound.latent.to(x.dtype))  # (B,n,d)
        width, heads = sizes.width, sizes.num_attention_heads
        rope = self.audio_rope_cache.get(
            sound.position, width, heads, theta, sizes.positional_embedding_max_pos, x.dtype
        )
        sound_inputs, time_embedding = ends.block_inputs(sound, audio.text, scale, rope)
        joint = JointInputs(inputs, sound_inputs, *self._cross_inputs(tokens, audio, sizes, x.dtype))
        x, y = self.run_joint_blocks(self, x, y, joint, Perturbed(perturbed, audio.perturbed, audio.isolated))
        count = audio.num_outputs
        return x, ends.velocity(y[:, :count], sound.level[:, :count], time_embedding, self.config.norm_eps)

    def _cross_inputs(
        self, tokens: Tokens, audio: AudioInput, sizes: AudioConfig, dtype: torch.dtype
    ) -> tuple[CrossInputs, CrossInputs]:
        """The inputs of each stream for the attention between the streams (ltx-core, `transformer_args.py`)."""
        config, sound, gate_scale = self.config, audio.tokens, sizes.av_ca_timestep_scale_multiplier
        of_video, of_audio = tokens.sigma[:, :1].float(), sound.sigma[:, :1].float()  # noise levels of the targets
        own_level = audio.cross_level == "ltx"
        levels, audio_levels = (tokens.sigma.float(), sound.sigma.float()) if own_level else (of_audio, of_video)
        longest = (max(config.positional_embedding_max_pos[0], sizes.positional_embedding_max_pos[0]),)
        table = (sizes.width, sizes.num_attention_heads, config.positional_embedding_theta, longest, dtype)
        scale = config.timestep_scale_multiplier
        return (
            CrossInputs(
                self.av_ca_video_scale_shift_adaln_single(levels * scale)[0],
                self.av_ca_a2v_gate_adaln_single(of_audio * gate_scale)[0],
                self.video_time_rope_cache.get(tokens.position, *table, axes=1),
            ),
            CrossInputs(
                self.av_ca_audio_scale_shift_adaln_single(audio_levels * scale)[0],
                self.av_ca_v2a_gate_adaln_single(of_video * gate_scale)[0],
                self.audio_time_rope_cache.get(sound.position, *table, axes=1),
            ),
        )
