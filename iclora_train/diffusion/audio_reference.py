"""The tokens of an audio reference, for training and sampling: clean, without a loss, after the tokens of the target.

Sources: the strategy `flexible` of Lightricks' trainer (a reference at the times of the target; it stands before the
target there, which changes nothing, because times alone tell tokens apart), and Dub-It of ltx-pipelines (a reference
at negative times).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from iclora_train.config import one_of
from iclora_train.config.audio_reference import PLACEMENTS
from iclora_train.core.types import AudioGeometry, AudioTokens
from iclora_train.ltx2.audio.tokens import times_before, to_tokens, token_times


@lru_cache(maxsize=8)
def sound_times(
    geometry: AudioGeometry, frames: int, reference: int, placement: str, device: torch.device, batch: int
) -> Tensor:
    """Times (B,1,l+l',2) of a sound of `frames` tokens and of its reference (0: none): one tensor for all batches of a
    size, by whose identity `ltx2.model.rope.RopeCache` finds its tables."""
    one_of("placement", placement, PLACEMENTS)
    times = token_times(geometry, frames, device)
    if reference:
        of_reference = token_times(geometry, reference, device)
        of_reference = times_before(geometry, of_reference) if placement == "dubit" else of_reference
        times = torch.cat([times, of_reference], dim=2)
    return times.expand(batch, -1, -1, -1)


def append_audio_reference(tokens: AudioTokens, latent: Tensor, placement: str, geometry: AudioGeometry) -> AudioTokens:
    """Append the clean tokens of an audio reference (B,C,l,m), placed as `config.audio_reference` describes."""
    added = to_tokens(latent).to(tokens.latent)
    batch, count = added.shape[:2]
    target = tokens.latent.shape[1]
    clean = tokens.sigma.shape[1]  # the row of noise level 0

    def full(value: int) -> Tensor:
        return torch.full((batch, count), value, dtype=torch.long, device=added.device)

    return replace(
        tokens,
        latent=torch.cat([tokens.latent, added], dim=1),
        sigma=torch.cat([tokens.sigma, torch.zeros_like(tokens.sigma[:, :1])], dim=1),
        level=torch.cat([tokens.level, full(clean)], dim=1),
        position=sound_times(geometry, target, count, placement, added.device, batch),
        group=torch.cat([tokens.group, full(1)[0]]),
        loss_mask=torch.cat([tokens.loss_mask, full(0).bool()], dim=1),
    )
