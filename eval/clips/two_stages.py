"""Clips sampled in two stages, as `generate` does with an upsampler: half the size with references, then refined.

The second stage refines the sound too. It has neither references nor guidance; the adapter stays in the weights
(docs/generate.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.clips.audio_stream import StreamLatents
from eval.clips.clip_source import ClipCache
from eval.clips.conditions import Condition, Item
from eval.clips.judged_adapter import JudgedAdapter
from eval.clips.resized import ResizedHeldOut
from eval.clips.sampled import SampledClips
from eval.clips.windows import HeldOut
from iclora_train.config import Config
from iclora_train.core.atomic_files import sha256
from iclora_train.diffusion.guidance import AudioGuidance, Guidance
from iclora_train.diffusion.noise_schedule import DISTILLED_STAGE2
from iclora_train.diffusion.sampler import SamplerSettings
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.vae.upsampler import LatentUpsampler


class TwoStageClips(SampledClips):
    """As `SampledClips`, whose settings are those of the first stage. upsampler: file of the x2 latent upsampler."""

    def __init__(
        self,
        config: Config,
        base: BaseModel,
        judged: JudgedAdapter,
        held_out: HeldOut,
        cache: ClipCache,
        upsampler: Path,
    ) -> None:
        super().__init__(config, base, judged, held_out, cache)
        frames, height, width, _ = held_out.pair(held_out.windows[0]).target.shape
        half = (frames, height // 2, width // 2)
        self.half = ResizedHeldOut(held_out, half, config.task, self.vae)
        self.upsampler = LatentUpsampler.open(upsampler, self.vae).to(self.device)
        self.upsampler_sha256 = sha256(upsampler)

    def specification(self, condition: Condition, batch: Sequence[Item]) -> dict[str, Any]:
        """As `SampledClips.specification`, with the upsampler and the noise levels of the second stage."""
        second_stage = {"upsampler": self.upsampler_sha256, "second_stage": list(DISTILLED_STAGE2)}
        return {**super().specification(condition, batch), **second_stage}

    def _sample(self, condition: Condition, batch: Sequence[Item], sampler: SamplerSettings) -> StreamLatents:
        references = self._references(condition, batch, self.half)
        first = self._denoise(condition, batch, sampler, self.half, references)
        enlarged = StreamLatents(self.upsampler(first.video), first.sound)
        refine = replace(sampler, sigmas=DISTILLED_STAGE2, guidance=Guidance(), audio=AudioGuidance())
        return self._denoise(condition, batch, refine, self.held_out, (), enlarged)
