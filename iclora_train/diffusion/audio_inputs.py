"""The audio half of a training step: the sound of a batch as noisy tokens, and its velocity.

Both streams of a clip have the same noise level, as in sampling, where both are denoised in the same steps.
(Lightricks' trainer does so in its text-to-video strategy; its flexible strategy draws a level for each stream.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from iclora_train.config import Task, require
from iclora_train.core.device import to_device
from iclora_train.core.types import AudioGeometry, AudioTokens, StreamTokens, Tokens
from iclora_train.data.batch import Batch
from iclora_train.diffusion.audio_reference import append_audio_reference, sound_times
from iclora_train.diffusion.flow_matching import add_noise, target_velocity
from iclora_train.diffusion.random_draws import RandomDraws
from iclora_train.ltx2.audio.tokens import to_tokens
from iclora_train.ltx2.model.transformer import AudioInput, Transformer


class SoundInputs(NamedTuple):
    """The input of the transformer: the target's tokens, then those of the audio reference.

    velocity (B,l,C m), loss_mask (B,l): of the target's tokens. Those of clips that have a sound of their own count.
    """

    input: AudioInput
    velocity: Tensor
    loss_mask: Tensor


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


def build_sound(batch: Batch, draws: RandomDraws, task: Task, geometry: AudioGeometry) -> SoundInputs:
    """The noisy sound of a batch, and its audio reference. ConfigError if a clip of the batch has none.

    Every clip gets its reference here, also one that is trained without (`loss.joint_losses` leaves out the tokens).
    """
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
        position=sound_times(geometry, frames, 0, "av2av", device, batch_size),
        group=zeros[0],
        loss_mask=heard,
    )
    if task.reference_sound is not None and batch.audio_reference is not None:
        tokens = append_audio_reference(tokens, batch.audio_reference, task.reference_sound.placement, geometry)
    return SoundInputs(AudioInput(tokens, text, num_outputs=frames), to_tokens(target_velocity(clean, noise)), heard)


def require_audio_reference(batch: Batch, task: Task) -> None:
    """ConfigError if the task has an audio reference and a clip of the batch has none."""
    require(
        task.reference_sound is None or batch.audio_reference is not None,
        f"task.audio_reference: clip {batch.keys[0]} or another of its batch has none in data.root, or they have "
        "several lengths: prepare all sources with this task and data.fps, or set data.batch_size=1",
    )


def velocities(
    transformer: Transformer, tokens: Tokens, text: Tensor, count: int, sound: AudioInput, use_audio: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The velocities of the target's `count` video tokens and of its audio tokens.

    use_audio (B,) bool on the host: the clip has its audio reference; None: all have. The tokens of a reference that is
    left out are not in the sequence, as in Lightricks' trainer, so that clips with and without one need two passes.
    """
    of_target = sound.num_outputs
    assert of_target is not None
    if use_audio is None or sound.tokens.latent.shape[1] == of_target:
        return transformer(tokens, text, num_outputs=count, audio=sound)
    parts, order = [], []
    for has in (True, False):
        clips = (use_audio == has).nonzero().flatten()
        if len(clips) == 0:
            continue
        index = to_device(clips, text.device)
        part = replace(sound, tokens=_clips(sound.tokens, index), text=sound.text[index])
        part = part if has else _without_reference(part, of_target)
        parts.append(transformer(_clips(tokens, index), text[index], num_outputs=count, audio=part))
        order.append(index)
    back = torch.cat(order).argsort()
    video, heard = (torch.cat(outputs)[back] for outputs in zip(*parts, strict=True))
    return video, heard


_T = TypeVar("_T", bound=StreamTokens)


def _clips(tokens: _T, index: Tensor) -> _T:
    """The tokens of some clips of a batch."""
    names = ("latent", "sigma", "level", "position", "loss_mask", "keyframe", "fps", "weight", "absent")
    values = {name: getattr(tokens, name, None) for name in names}
    return replace(tokens, **{name: value[index] for name, value in values.items() if value is not None})


def _without_reference(sound: AudioInput, count: int) -> AudioInput:
    """The input with its first `count` tokens alone, those of the target."""
    tokens = sound.tokens
    parts = {name: getattr(tokens, name)[:, :count] for name in ("latent", "level", "loss_mask")}
    position = tokens.position[:, :, :count]
    return replace(sound, tokens=replace(tokens, **parts, position=position, group=tokens.group[:count]))
