"""Guidance: one velocity from several passes (`MultiModalGuider` of Lightricks' ltx-core).

    x0 = c + (scale - 1) (c - negative) + stg_scale (c - perturbed),  rescaled by  r std(c) / std(x0) + 1 - r

c, negative and perturbed are predicted clean latents: with the prompt, with the negative prompt, and with the prompt
while the self-attention of some blocks returns its values. All passes see the same references. The first sum is
computed on velocities, which is equivalent. The standard deviations are of clean latents, not of velocities.

Where sound is sampled beside the video, every pass computes both streams, and each stream has its own scales and one
more term, (modality - 1) (c - isolated): isolated is predicted without the attention between the streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from iclora_train.config import Sampling, require
from iclora_train.core.types import StreamTokens, Tokens
from iclora_train.ltx2.model.transformer import AudioInput, Transformer
from iclora_train.ltx2.weights.versions import VERSIONS


@dataclass(frozen=True)
class Guidance:
    """Scales of the passes. negative_text (B,T,D), or (1,T,D) for all clips, is required unless scale is 1.

    scale: classifier-free guidance (arXiv 2207.12598), 1 is off. stg_scale: spatio-temporal guidance (arXiv 2411.18664)
    by perturbing `stg_blocks`, 0 is off. rescale: the r of the module docstring (arXiv 2305.08891, section 3.4), 0 is
    off.
    """

    scale: float = 1.0
    negative_text: Tensor | None = None
    stg_scale: float = 0.0
    stg_blocks: tuple[int, ...] = VERSIONS["2.0"].stg_blocks  # as the default of config.Sampling
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.scale != 1 and self.negative_text is None:
            raise ValueError(f"guidance of scale {self.scale} needs a negative text")

    @property
    def passes(self) -> int:
        """Passes of the transformer in a step."""
        return 1 + (self.negative_text is not None and self.scale != 1) + (self.stg_scale != 0)

    @classmethod
    def from_config(cls, config: Sampling, negative_text: Tensor | None, num_blocks: int) -> Guidance:
        """The guidance of a config for a transformer with `num_blocks` blocks.

        ConfigError when `sample.stg_blocks` names a block that the transformer does not have.
        """
        outside = [block for block in config.stg_blocks if block >= num_blocks]
        require(
            config.stg_scale == 0 or not outside,
            f"sample.stg_blocks={config.stg_blocks}: the base has the blocks 0 to {num_blocks - 1}",
        )
        return cls(config.guidance, negative_text, config.stg_scale, tuple(config.stg_blocks), config.rescale)


@dataclass(frozen=True)
class AudioGuidance:
    """Scales where sound is sampled beside the video: those of the sound, and the modality scale of each stream."""

    sound: Guidance = Guidance()
    video_modality: float = 1.0  # 1: off
    sound_modality: float = 1.0

    @classmethod
    def from_config(cls, config: Sampling, negative_text: Tensor | None) -> AudioGuidance:
        """The guidance of a config; negative_text: of the audio stream. The blocks are those of the video's guidance
        (`Guidance.from_config`, which checks them)."""
        scales = config.audio_scales
        sound = Guidance(
            scales.guidance, negative_text, scales.stg_scale, tuple(config.stg_blocks), rescale=scales.rescale
        )
        return cls(sound, scales.video_modality, scales.sound_modality)

    def of_given_sound(self) -> AudioGuidance:
        """The guidance beside sound that is given: the sound needs none."""
        return replace(self, sound=Guidance(), sound_modality=1.0)

    def passes(self, video: Guidance) -> int:
        """Passes of the transformer in a step."""
        sound = self.sound
        text, perturbed = (video.scale, sound.scale) != (1, 1), (video.stg_scale, sound.stg_scale) != (0, 0)
        return 1 + text + perturbed + ((self.video_modality, self.sound_modality) != (1, 1))


def guided_velocity(transformer: Transformer, tokens: Tokens, text: Tensor, guidance: Guidance, between: str) -> Tensor:
    """The guided velocity (B,N,C), fp32, of all tokens; text (B,T,D). A pass whose scale is off is skipped."""
    predicted: Tensor = transformer(tokens, text, between).float()
    total = predicted
    if guidance.negative_text is not None and guidance.scale != 1:
        negative_text = guidance.negative_text.expand(len(text), -1, -1)
        negative = transformer(tokens, negative_text, between).float()
        total = negative + guidance.scale * (predicted - negative)
    if guidance.stg_scale != 0:
        perturbed = transformer(tokens, text, between, guidance.stg_blocks).float()
        total = total + guidance.stg_scale * (predicted - perturbed)
    if guidance.rescale == 0 or total is predicted:
        return total
    return _rescale(tokens, predicted, total, guidance.rescale)


def guided_velocities(
    transformer: Transformer,
    tokens: Tokens,
    text: Tensor,
    guidance: Guidance,
    between: str,
    audio: AudioInput,
    audio_guidance: AudioGuidance,
) -> tuple[Tensor, Tensor]:
    """The guided velocities (B,N,C) of the video and (B,n,c) of the sound, fp32. A pass whose scales are off is
    skipped."""
    sound = audio_guidance.sound

    def both(text: Tensor, audio: AudioInput, perturbed: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        video, heard = transformer(tokens, text, between, perturbed, audio=audio)
        return video.float(), heard.float()

    predicted = both(text, audio)
    terms: list[tuple[tuple[Tensor, Tensor], tuple[float, float]]] = []
    if (scales := (guidance.scale - 1, sound.scale - 1)) != (0, 0):
        other = replace(audio, text=_negative(sound, audio.text))
        terms.append((both(_negative(guidance, text), other), scales))
    if (scales := (guidance.stg_scale, sound.stg_scale)) != (0, 0):
        other = replace(audio, perturbed=sound.stg_blocks if sound.stg_scale else ())
        terms.append((both(text, other, guidance.stg_blocks if guidance.stg_scale else ()), scales))
    if (scales := (audio_guidance.video_modality - 1, audio_guidance.sound_modality - 1)) != (0, 0):
        terms.append((both(text, replace(audio, isolated=True)), scales))
    video_terms, sound_terms = ([(others[i], scales[i]) for others, scales in terms] for i in (0, 1))
    return (
        _combined(tokens, predicted[0], video_terms, guidance.rescale),
        _combined(audio.tokens, predicted[1], sound_terms, sound.rescale),
    )


def _negative(guidance: Guidance, text: Tensor) -> Tensor:
    """The negative text of a stream; its text where it has no negative one, as beside sound that is given."""
    negative = guidance.negative_text
    return text if negative is None else negative.expand(len(text), -1, -1)


def _combined(tokens: StreamTokens, predicted: Tensor, terms: Sequence[tuple[Tensor, float]], rescale: float) -> Tensor:
    """The velocity of a stream with all its terms: the velocity of another pass, and the scale of the difference."""
    total = predicted
    for other, scale in terms:
        if scale != 0:
            total = total + scale * (predicted - other)
    return total if rescale == 0 or total is predicted else _rescale(tokens, predicted, total, rescale)


def _rescale(tokens: StreamTokens, predicted: Tensor, total: Tensor, rescale: float) -> Tensor:
    """Scale the guided velocity `total` (B,N,C) so that its clean latents have nearly the unguided standard deviation.

    The deviation is taken over all tokens of a clip; a clean reference counts with its own latents.
    """
    sigma = tokens.sigma.gather(1, tokens.level)[..., None]  # (B,N,1)
    unguided, clean = tokens.latent - sigma * predicted, tokens.latent - sigma * total
    factor = rescale * unguided.std((1, 2), keepdim=True) / clean.std((1, 2), keepdim=True) + 1 - rescale
    return torch.where(sigma > 0, total + (1 - factor) * clean / sigma, total)
