"""A block of both streams: each as in `block`, and between text attention and feed-forward each attends to the other.

The attention between the streams has the audio stream's width and heads, and RoPE on the time axis alone. Its gate
follows the noise level of the *other* stream's target, its scale and shift that of the token (ltx-core) or of the other
stream's target too (`AudioInput.cross_level`). All tokens take part in it, references too, and attention weights do not
act on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from iclora_train.ltx2.kernels.modulation import pick, rms_norm
from iclora_train.ltx2.model.attention import Attention
from iclora_train.ltx2.model.block import Block, BlockInputs
from iclora_train.ltx2.model.config import TransformerConfig
from iclora_train.ltx2.model.feed_forward import FeedForward

AUDIO = "audio_"  # before the names of the audio stream's layers


class CrossInputs(NamedTuple):
    """Inputs of one stream for the attention between the streams."""

    modulation: Tensor  # (B,K,4,D) or (B,1,4,D), scale and shift for audio -> video, then for video -> audio
    gate: Tensor  # (B,1,1,D), of what this stream receives
    rope: Tensor  # (2,B,N,heads,head_dim/2), of the times alone


class JointInputs(NamedTuple):
    """Inputs that all blocks share: of both streams, and of the attention between them."""

    video: BlockInputs
    audio: BlockInputs
    video_cross: CrossInputs
    audio_cross: CrossInputs


class SwitchedOff(NamedTuple):
    """What a block leaves out for guidance: each stream's self-attention (STG), the attention between the streams."""

    video_attention: bool = False
    audio_attention: bool = False
    exchange: bool = False


class AudioVideoBlock(Block):
    """A `Block` with the audio stream. Its `forward` is the video stream's, `joint` computes both streams."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        assert config.audio is not None
        audio, eps, gated = config.audio, config.norm_eps, config.apply_gated_attention
        heads = audio.num_attention_heads
        self.audio_attn1 = Attention(audio.width, audio.width, heads, eps, gated)
        self.audio_attn2 = Attention(audio.width, audio.cross_attention_dim, heads, eps, gated)
        self.audio_ff = FeedForward(audio.width, audio.ff_bias)
        self.audio_scale_shift_table = nn.Parameter(torch.zeros(config.rows, audio.width))
        if config.cross_attention_adaln:
            self.audio_prompt_scale_shift_table = nn.Parameter(torch.zeros(2, audio.width))
        self.audio_to_video_attn = Attention(config.width, audio.width, heads, eps, gated, inner=audio.width)
        self.video_to_audio_attn = Attention(audio.width, config.width, heads, eps, gated, inner=audio.width)
        self.scale_shift_table_a2v_ca_video = nn.Parameter(torch.zeros(5, config.width))
        self.scale_shift_table_a2v_ca_audio = nn.Parameter(torch.zeros(5, audio.width))

    def joint(self, x: Tensor, sound: Tensor, inputs: JointInputs, off: SwitchedOff) -> tuple[Tensor, Tensor]:
        """Video tokens x (B,N,D) and audio tokens (B,n,d) -> the same shapes."""
        video, audio = self.layers(), self.layers(AUDIO)
        video_rows, audio_rows = video.modulation_rows(inputs.video), audio.modulation_rows(inputs.audio)
        x = video.attend(x, inputs.video, video_rows, None, off.video_attention)
        sound = audio.attend(sound, inputs.audio, audio_rows, None, off.audio_attention)
        if not off.exchange:
            x, sound = self.exchange(x, sound, inputs)
        return video.feed_forward(x, inputs.video, video_rows), audio.feed_forward(sound, inputs.audio, audio_rows)

    def exchange(self, x: Tensor, sound: Tensor, inputs: JointInputs) -> tuple[Tensor, Tensor]:
        """Each stream plus what it reads from the other; both read the other as it was before."""
        video, audio = inputs.video_cross, inputs.audio_cross
        video_gate, *video_norms = self._cross_norms(x, self.scale_shift_table_a2v_ca_video, video, inputs.video.level)
        audio_gate, *audio_norms = self._cross_norms(
            sound, self.scale_shift_table_a2v_ca_audio, audio, inputs.audio.level
        )
        to_video = self.audio_to_video_attn(video_norms[0], audio_norms[0], video.rope, key_rope=audio.rope)
        to_audio = self.video_to_audio_attn(audio_norms[1], video_norms[1], audio.rope, key_rope=video.rope)
        return x + video_gate * to_video, sound + audio_gate * to_audio

    def _cross_norms(self, x: Tensor, table: Tensor, cross: CrossInputs, level: Tensor) -> Sequence[Tensor]:
        """The gate (B,1,D), and the norm of x (B,N,D) modulated for audio -> video and for video -> audio."""
        scale, shift, back_scale, back_shift = (table[:4] + cross.modulation).unbind(2)
        normed = rms_norm(x, self.eps)
        to_video = normed * (1 + pick(scale, level)) + pick(shift, level)
        to_audio = normed * (1 + pick(back_scale, level)) + pick(back_shift, level)
        return table[4] + cross.gate[:, :, 0], to_video, to_audio
