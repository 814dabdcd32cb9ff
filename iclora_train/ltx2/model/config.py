"""Sizes and switches of the transformer, from the `transformer` section of a checkpoint's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class AudioConfig:
    """The audio half: the audio stream and the attention between the streams.

    The metadata has the same names after `audio_`, but for the last one.
    """

    num_attention_heads: int = 32
    attention_head_dim: int = 64
    in_channels: int = 128
    out_channels: int = 128
    cross_attention_dim: int = 2048  # equals `width` in every published checkpoint
    positional_embedding_max_pos: tuple[float, ...] = (20,)  # seconds
    ff_bias: bool = True  # in 2.5 too
    av_ca_timestep_scale_multiplier: float = 1  # 1000 in every published checkpoint

    @property
    def width(self) -> int:
        """Channels of an audio token inside the transformer, and of the attention between the streams."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_metadata(cls, section: Mapping[str, Any]) -> AudioConfig:
        """Read the `transformer` section of a checkpoint's config."""
        names = [field.name for field in fields(cls)]
        return cls(**_values({name: name if name.startswith("av_") else f"audio_{name}" for name in names}, section))


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
    audio: AudioConfig | None = None  # None: the video stream only

    @property
    def width(self) -> int:
        """Channels of a token inside the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_width(self) -> int:
        """Channels of the text features at the transformer's input."""
        return self.cross_attention_dim if self.caption_proj_before_connector else self.caption_channels

    @property
    def audio_text_width(self) -> int:
        """Channels of the text features at the input of the audio stream."""
        assert self.audio is not None
        return self.audio.cross_attention_dim if self.caption_proj_before_connector else self.caption_channels

    @property
    def rows(self) -> int:
        """AdaLN rows of a block: shift, scale, gate of self-attention and feed-forward; since 2.3 of text attention."""
        return 9 if self.cross_attention_adaln else 6

    @classmethod
    def from_metadata(cls, section: Mapping[str, Any], audio: bool = False) -> TransformerConfig:
        """Read the `transformer` section of a checkpoint's config; audio: with the audio half. Other keys are ignored.

        ValueError for a position embedding that no LTX-2 has.
        """
        if section.get("rope_type", "split") != "split":
            raise ValueError(f"rope_type={section['rope_type']!r} is not supported: LTX-2 checkpoints use 'split'")
        values = _values({field.name: field.name for field in fields(cls) if field.name != "audio"}, section)
        return cls(**values, audio=AudioConfig.from_metadata(section) if audio else None)


def _values(keys: Mapping[str, str], section: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the section has; keys: field -> key."""
    values = {name: section[key] for name, key in keys.items() if key in section}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
