"""The audio half of a training step: the sound of a batch as noisy tokens, and its velocity.

Both streams of a clip have the same noise level, as in sampling, where both are denoised in the same steps.
(Lightricks' trainer does so in its text-to-video strategy; its flexible strategy draws a level for each stream.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from iclora_train.config import require
from iclora_train.core.types import AudioGeometry, AudioTokens
from iclora_train.data.batch import Batch
from iclora_train.diffusion.flow_matching import add_noise, target_velocity
from iclora_train.diffusion.random_draws import RandomDraws
from iclora_train.diffusion.training_inputs import to_device
from iclora_train.ltx2.audio.tokens import to_tokens, token_times
from iclora_train.ltx2.model.transformer import AudioInput


class SoundInputs(NamedTuple):
    """The input of the transformer, the velocity (B,l,C m) of its tokens, and the tokens (B,l) that count in the loss:
    those of clips that have a sound of their own."""

    input: AudioInput
    velocity: Tensor
    loss_mask: Tensor


@lru_cache(maxsize=4)
def _times(geometry: AudioGeometry, frames: int, device: torch.device) -> Tensor:
    """The positions (1,1,l,2) of a sound: one tensor for all batches of a length, by whose identity
    `ltx2.model.rope.RopeCache` finds its tables."""
    return token_times(geometry, frames, device)


def require_sound(batch: Batch) -> tuple[Tensor, Tensor]:
    """The latents (B,C,l,m) and the text features of the sound. ConfigError if a clip of the batch has none."""
    audio, text = batch.audio, batch.audio_text
    require(
        audio is not None and text is not None,
        f"model.audio=on: clip {batch.keys[0]} or another of its batch has no sound in data.root, or their sounds have "
        "several lengths: prepare all sources with data.sound and data.fps, or set data.batch_size=1",
    )
    assert audio is not None
    assert text is not None
    return audio, text


def build_sound(batch: Batch, draws: RandomDraws, geometry: AudioGeometry) -> SoundInputs:
    """The noisy sound of a batch. ConfigError if a clip of the batch has none."""
    clean, text = require_sound(batch)
    assert draws.audio_noise is not None
    device = clean.device
    sigma, noise = to_device(draws.sigma, device), to_device(draws.audio_noise, device)
    latent = to_tokens(add_noise(clean, noise, sigma))
    batch_size, frames, _ = latent.shape
    zeros = torch.zeros(batch_size, frames, dtype=torch.long, device=device)
    heard = to_device(batch.heard, device)[:, None].expand(batch_size, frames)
    tokens = AudioTokens(
        latent=latent,
        sigma=sigma[:, None],
        level=zeros,
        position=_times(geometry, frames, device).expand(batch_size, -1, -1, -1),
        group=zeros[0],
        loss_mask=heard,
    )
    return SoundInputs(AudioInput(tokens, text), to_tokens(target_velocity(clean, noise)), heard)
