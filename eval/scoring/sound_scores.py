"""Measure the sounds that were sampled beside the clips against those of the held-out pairs.

Rows without a model: the audio reference (`input`), the target's sound after the audio VAE and the vocoder (the
ceiling), and the sound of another recording (the floor).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from eval.clips.clip_source import ClipSource
from eval.clips.conditions import CEILING, FLOOR, INPUT, Condition, Item
from eval.clips.sampled import SampledClips
from eval.metrics.sound import SHORTEST, sound_agreement
from iclora_train.core.types import Pair, Sound
from iclora_train.ltx2.audio.codec import AudioCodec

Values = dict[str, float]  # metric -> value
CACHED = 64  # windows whose sounds stay in memory


def measures_sound(source: ClipSource) -> bool:
    """Whether sounds are sampled, and the held-out pairs have some that are long enough to compare."""
    if not isinstance(source, SampledClips) or source.audio is None:
        return False
    sounds = (source.held_out.pair(window).sound for window in source.held_out.windows)
    return any(sound is not None and sound.seconds >= SHORTEST for sound in sounds)


class SoundScores:
    """The metrics of sound (`eval.metrics.sound`) of a source; windows without a sound of their own have none."""

    def __init__(self, source: SampledClips) -> None:
        self.source, self.held_out = source, source.held_out
        self._sounds: Callable[[int], tuple[Sound | None, Sound | None]] = lru_cache(CACHED)(
            lambda number: _sounds(self.held_out.pair(self.held_out.windows_and_donors[number]))
        )

    @cached_property
    def _codec(self) -> AudioCodec:
        return AudioCodec.open(self.source.base.checkpoint).to(self.source.device)

    def of_batch(self, condition: Condition, batch: Sequence[Item]) -> dict[Item, Values]:
        """The values of the clips of a batch, which are in the cache; none for a condition without the audio stream."""
        if not condition.audio:
            return {}
        specification = self.source.specification(condition, batch)
        latents = self.source.cache.read_sounds(specification, len(batch))
        sounds = zip(batch, map(self._decoded, latents), strict=True)
        return {item: self._compared(sound, item.window.number) for item, sound in sounds}

    def of_row(self, name: str) -> dict[int, Values]:
        """The values of a row without a model, by the number of the window."""
        sound_of = {INPUT: self._reference, CEILING: self._round_trip, FLOOR: self._of_partner}.get(name)
        if sound_of is None:
            return {}
        numbers = range(len(self.held_out.windows))
        return {number: self._compared(sound_of(number), number) for number in numbers}

    def _compared(self, sound: Sound | None, number: int) -> Values:
        target = self._sounds(number)[0]
        if sound is None or target is None or min(sound.seconds, target.seconds) < SHORTEST:
            return {}
        return sound_agreement(sound, target)

    def _reference(self, number: int) -> Sound | None:
        return self._sounds(number)[1]

    def _of_partner(self, number: int) -> Sound | None:
        return self._sounds(self.held_out.windows[number].partner)[0]

    def _round_trip(self, number: int) -> Sound | None:
        pair = self.held_out.latents(self.held_out.windows[number])
        return self._decoded(pair.audio if pair.heard else None)

    @torch.no_grad()
    def _decoded(self, latent: Tensor | None) -> Sound | None:
        """The sound of latents (C,l,m)."""
        return None if latent is None else self._codec.decode(latent[None].to(self.source.device))


def _sounds(pair: Pair) -> tuple[Sound | None, Sound | None]:
    """The sound of a pair and that of its audio reference: its pixels are not kept."""
    return pair.sound, pair.reference_sound
