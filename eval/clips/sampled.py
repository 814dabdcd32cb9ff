"""Clips sampled under each condition, with the sampler of `generate`, cached on disk by a hash of their settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch

from eval.clips.audio_stream import AudioSampling, BatchLatents, StreamLatents, choose_audio
from eval.clips.clip_source import ClipCache, ClipSource, FinishedBatch, device_of
from eval.clips.condition_references import ConditionReferences, use_specification
from eval.clips.conditions import ADAPTER_ONLY, Condition, Item, all_conditions, at_strength, without_references
from eval.clips.cost import ClipCost
from eval.clips.judged_adapter import JudgedAdapter
from eval.clips.windows import HeldOut, Window
from eval.metrics import Clip
from iclora_train.adapters import lora
from iclora_train.config import Config
from iclora_train.core.device import synced_time
from iclora_train.core.types import LatentPair
from iclora_train.data.batch import collate
from iclora_train.diffusion.clean_cells import CleanCells, kept_of_target
from iclora_train.diffusion.joint_sampler import sample_with_sound
from iclora_train.diffusion.kept_latents import KeptLatents
from iclora_train.diffusion.loss import loss_at
from iclora_train.diffusion.sampler import Reference, SamplerSettings, draw_noise, sample
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.build import build_transformer, compile_from_settings

T = TypeVar("T")


class SampledClips(ClipSource):
    """Samples the clips of every condition from the base, the adapter and the held-out latents."""

    def __init__(
        self, config: Config, base: BaseModel, judged: JudgedAdapter, held_out: HeldOut, cache: ClipCache
    ) -> None:
        device = device_of(config)
        self.audio_choice = choose_audio(config, base, held_out, device)
        # before the transformer is loaded, beside which there may be no room for the text encoder
        self.audio = AudioSampling(base, held_out, cache.folder, device) if self.audio_choice.is_on else None
        super().__init__(config, base, replace(judged, with_audio=self.audio_choice.is_on), held_out, cache)
        self.transformer = build_transformer(base, config.model, self.device, self.audio_choice.is_on)
        if judged.adapter is not None:
            alone = judged.strength == 1 and judged.effect is None
            lora.load_adapter(self.transformer, judged.adapter if alone else judged.weighted)
        self.transformer.to(self.device).eval()
        compile_from_settings(self.transformer, base, config.model)
        dtype = str(self.transformer.patchify_proj.weight.dtype)
        self.precision = f"fp8 weights, {dtype}" if config.model.precision == "fp8" else dtype
        f = self.latent_size[0]
        self.empty = held_out.empty_text()[None].to(self.device)  # (1,T,D)
        if config.task.has_reference:
            references = held_out.latents(held_out.windows[0]).references  # (C,f',h',w') each
            length = max(reference.shape[1] for reference in references)
            of_each = config.task.reference_names, config.eval.reference_strengths
            audio = self.audio_choice.is_on
            self.conditions = all_conditions(config.eval.strengths, min(f, length) > 1, *of_each, audio=audio)
        else:
            self.conditions = without_references(config.eval.strengths, self.audio_choice.is_on)
        self.restrict(config, held_out, [condition.name for condition in self.conditions])

    def restrict(self, config: Config, held_out: HeldOut, conditions: Collection[str]) -> None:
        """Sample only these conditions, with the windows, their size, the seeds and sampling settings of `config`."""
        self.config, self.held_out, self.seeds = config, held_out, list(config.eval.seeds)
        self.latent_size = held_out.latent_size
        self.clean_cells = CleanCells(config.task.conditions, self.base.geometry.temporal)
        self.conditions = [condition for condition in self.conditions if condition.name in conditions]
        guided = config.sample.guidance > 1 or (self.audio is not None and config.sample.audio_scales.guidance > 1)
        self.sampler = SamplerSettings.from_config(
            config.sample,
            config.flow,
            self.latent_size,
            self.transformer.config.num_layers,
            self.empty if guided else None,
        )
        if self.audio is not None:
            self.sampler = replace(self.sampler, audio=self.audio.guidance(config.sample))
        self.sigmas = list(self.sampler.sigmas)

    def specification(self, condition: Condition, batch: Sequence[Item]) -> dict[str, Any]:
        """All settings that determine these clips, JSON-serialisable. The name of the condition is not included."""
        audio = self._audio_of(condition)
        placement = None if self._sound_donors(condition, batch) is None else self.config.task.audio_reference.placement
        return {
            **self._common_spec(),
            **(self.judged.specification if condition.adapter else {"adapter": None}),
            "reference": condition.reference,
            **({} if condition.only is None else {"only": condition.only}),
            "strength": condition.strength,
            "half_mask": condition.mask == "half",
            **({"mask": condition.mask} if condition.mask == "fade" else {}),
            **({"text": "empty"} if condition.empty_prompt else {}),
            **use_specification(self.config.task),
            "sigmas": self.sigmas,
            **self._sampler_spec(),
            **({} if audio is None else {"audio": audio.specification(self.config.sample, placement)}),
            **({"conditions": conditions} if (conditions := self.clean_cells.usual_settings()) else {}),
            "items": [
                [item.window.key, self._donor(condition, item).key, item.window.mask_left, item.seed] for item in batch
            ],
        }

    def _sampler_spec(self) -> dict[str, Any]:
        settings = self.config.sample
        sampler = {"sampler": settings.sampler} if settings.sampler != "euler" else {}  # euler keeps its older hash
        stg = {"stg": [settings.stg_scale, *settings.stg_blocks]} if settings.stg_scale else {}
        rescale = {"rescale": settings.rescale} if settings.rescale else {}
        return {"guidance": settings.guidance, **stg, **rescale, **sampler}

    def _sound_donors(self, condition: Condition, batch: Sequence[Item]) -> list[Window] | None:
        """Whose audio references the clips of a condition have: it goes along with the first reference, and is left out
        at strength 0. None for a task or a condition without one."""
        task = self.config.task
        kind = condition.reference_of(0) if task.has_reference else "own"
        if task.reference_sound is None or kind == "none" or (task.has_reference and condition.strength_of(0) == 0):
            return None
        return [item.window if kind == "own" else self._donor(condition, item) for item in batch]

    def _donor(self, condition: Condition, item: Item) -> Window:
        """The window whose references, or the one that the condition speaks of, condition the sample."""
        partner = self.held_out.windows_and_donors[item.window.partner]
        return partner if condition.reference == "other" else item.window

    def clips(self, condition: Condition, batch: Sequence[Item]) -> tuple[Clip, float]:
        """As `ClipSource.clips`: sampled, or read from the cache."""
        return self.cached(self.specification(condition, batch), lambda: self._make(condition, batch))

    def clip(self, condition: Condition, batch: Sequence[Item], i: int) -> Clip:
        """As `ClipSource.clip`: sampled with its batch, or read alone from the cache."""
        spec = self.specification(condition, batch)
        clips, _ = self.cached(spec, lambda: self._make(condition, batch), slice(i, i + 1))
        return clips[0]

    def is_finished(self, condition: Condition, batch: Sequence[Item]) -> bool:
        """As `ClipSource.is_finished`: whether the batch is in the cache."""
        return self.cache.has(self.specification(condition, batch))

    def measure_cost(self, batch: Sequence[Item]) -> ClipCost:
        """The seconds of a clip, from one step of this batch with and without references, and from decoding it.

        Each is run three times and the fastest run counts: the first one may compile kernels.
        """
        step, count = replace(self.sampler, sigmas=(1.0, 0.0)), len(batch)
        guidance = self.sampler.guidance
        passes = guidance.passes if self.audio is None else self.sampler.audio.passes(guidance)
        judged = at_strength(1, self.config.task.has_reference)
        latents, with_reference = self._timed(lambda: self._latents(judged, batch, step))
        _, without_reference = self._timed(lambda: self._latents(Condition(ADAPTER_ONLY, True, "none"), batch, step))
        video_alone = None
        if self.audio is not None:
            _, seconds = self._timed(lambda: self._latents(replace(judged, audio=False), batch, step))
            video_alone = seconds / count
        _, decoding = self._timed(lambda: self._decode(latents.video))
        with_reference, without_reference = with_reference / passes / count, without_reference / passes / count
        return ClipCost(with_reference, without_reference, decoding / count, passes, video_alone)

    def pass_times(self, batch: Sequence[Item], repeats: int) -> list[tuple[float, float]]:
        """Seconds of a step with the reference and of one without it, by turns, after a first one of each."""
        step = replace(self.sampler, sigmas=(1.0, 0.0))
        conditions = (at_strength(1), Condition(ADAPTER_ONLY, True, "none"))
        times = []
        for _ in range(repeats + 1):
            marks = [synced_time(self.device)]
            for condition in conditions:
                self._latents(condition, batch, step)
                marks.append(synced_time(self.device))
            times.append((marks[1] - marks[0], marks[2] - marks[1]))
        return times[1:]

    def _timed(self, work: Callable[[], T]) -> tuple[T, float]:
        """What the last of three calls returns, and the seconds of the fastest."""
        seconds = []
        for _ in range(3):
            started = synced_time(self.device)
            result = work()
            seconds.append(synced_time(self.device) - started)
        return result, min(seconds)

    def _make(self, condition: Condition, batch: Sequence[Item]) -> FinishedBatch:
        latents = self._latents(condition, batch, self.sampler)
        return FinishedBatch(self._decode(latents.video), latents.sounds)

    def _audio_of(self, condition: Condition) -> AudioSampling | None:
        """The audio stream of a condition that is sampled with it."""
        return self.audio if condition.audio else None

    def _latents(self, condition: Condition, batch: Sequence[Item], sampler: SamplerSettings) -> BatchLatents:
        """The latents of a batch; clips whose sounds have other lengths, at another rate, are sampled apart."""
        audio = self._audio_of(condition)
        if audio is None:
            return BatchLatents.joined([self._sample(condition, batch, sampler)], [range(len(batch))])
        rates = [self.held_out.fps(item.window) for item in batch]
        groups = audio.rows_by_length(self.latent_size[0], rates)
        parts = [self._sample(condition, [batch[row] for row in rows], sampler) for rows in groups]
        return BatchLatents.joined(parts, groups)

    def _sample(self, condition: Condition, batch: Sequence[Item], sampler: SamplerSettings) -> StreamLatents:
        """The latents of a batch whose sounds are equally long."""
        references = self._references(condition, batch, self.held_out)
        return self._denoise(condition, batch, sampler, self.held_out, references)

    def _denoise(
        self,
        condition: Condition,
        batch: Sequence[Item],
        sampler: SamplerSettings,
        held_out: HeldOut,
        references: Sequence[Reference],
        start: StreamLatents | None = None,
    ) -> StreamLatents:
        """One run of the sampler at the size of the windows of `held_out`; start: clean latents to begin from."""
        pairs = [held_out.latents(item.window) for item in batch]
        text = torch.stack([pair.text for pair in pairs]).to(self.device)  # (B,T,D)
        if condition.empty_prompt:
            text = self.empty.expand(len(pairs), -1, -1)
        size, fps = held_out.latent_size, torch.tensor([pair.fps for pair in pairs])
        clips = (self.transformer, text, size, self.base.geometry, fps, sampler, [item.noise_seed for item in batch])
        kept, audio = self._kept(pairs), self._audio_of(condition)
        video, sound = (None, None) if start is None else start
        with self._adapter_of(condition):
            if audio is None:
                return StreamLatents(sample(*clips, references, kept, video))
            heard = None if start else self._sound_donors(condition, batch)  # the second stage has no references
            donors = None if heard is None else [held_out.latents(window) for window in heard]
            placement = self.config.task.audio_reference.placement
            stream = audio.stream(pairs, batch, size[0], condition.empty_prompt, sound, donors, placement)
            return StreamLatents(*sample_with_sound(*clips, stream, references, kept, video))

    def _kept(self, pairs: Sequence[LatentPair]) -> KeptLatents | None:
        """The given parts of the targets; None if the task gives none."""
        if not self.clean_cells.usual_settings():
            return None
        batch = collate(list(pairs))
        return kept_of_target(batch.target.to(self.device), self.clean_cells, batch.mask)

    @contextmanager
    def _adapter_of(self, condition: Condition) -> Iterator[None]:
        """Inside the `with` the adapter is off, or at the strength of a condition without a reference."""
        if not condition.adapter:
            with lora.adapter_off(self.transformer):
                yield
        elif condition.reference != "none" or condition.strength == 1:
            yield
        else:
            lora.set_strength(self.transformer, condition.strength)
            try:
                yield
            finally:
                lora.set_strength(self.transformer, 1.0)

    @torch.no_grad()
    def velocity_losses(self, condition: Condition, batch: Sequence[Item]) -> list[float]:
        """As `ClipSource.velocity_losses`: the mean over validation.sigmas.

        The noise is that of the item's clip, so all conditions are compared under the same noise.
        """
        clips = replace(collate([self.held_out.latents(item.window) for item in batch]), references=[]).to(self.device)
        if condition.empty_prompt:
            clips = replace(clips, text=self.empty.expand_as(clips.text))
        noise = draw_noise([item.noise_seed for item in batch], tuple(clips.target.shape[1:]))
        task, geometry = self.config.task, self.base.geometry
        with self._adapter_of(condition):
            losses = [
                loss_at(self.transformer, clips, noise, sigma, task, geometry)
                for sigma in self.config.validation.sigmas
            ]
        return [float(loss) for loss in torch.stack(losses).mean(0)]

    def _references(self, condition: Condition, batch: Sequence[Item], held_out: HeldOut) -> list[Reference]:
        """The references of a batch, of which a condition may leave out all or one."""
        if not condition.has_reference:
            return []
        windows = donors = collate([held_out.latents(item.window) for item in batch])
        if condition.reference == "other":
            donors = collate([held_out.latents(self._donor(condition, item)) for item in batch])
        references = ConditionReferences(
            condition,
            self.config.task,
            self.latent_size[0],
            self.base.geometry.temporal,
            [item.window.mask_left for item in batch],
            self.device,
        )
        return references.of(windows, donors)
