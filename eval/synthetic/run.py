"""Run the synthetic probes: does the adapter follow references whose correct answer is known exactly?

A moving square, a sweeping line, a dot on an arc, a brightness ramp, a square that appears, and shapes at rest: each is
given to the adapter as a reference of its task's kind, and measured in the output by a detector without weights. Every
probe is also measured in its floor, a clip sampled with the reference of another probe. A probe that also passes on its
floor proves nothing and does not count as passed.

The caption is empty. All probes share batches, so that they take about as long as a few clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.clips.audio_stream import AudioSampling
from eval.clips.conditions import at_strength
from eval.clips.sampled import SampledClips
from eval.synthetic.plan import SEEDS, ProbePlan, ProbeSample
from eval.synthetic.probes import Probe
from eval.synthetic.shapes import Clip
from iclora_train.config import Task
from iclora_train.core.types import Geometry
from iclora_train.diffusion.joint_sampler import sample_with_sound
from iclora_train.diffusion.sampler import Reference, SamplerSettings, sample
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.media.pixels import from_uint8, to_uint8

# Returns the clips (B,F,H,W,3) of a batch, and the seconds that sampling them took
MakeClips = Callable[[Sequence[ProbeSample]], tuple[Clip, float]]


@dataclass(frozen=True)
class ProbeClips:
    """The clips (F,H,W,3) of one probe for the report."""

    requested: Clip
    reference: Clip
    output: Clip
    floor: Clip


@dataclass(frozen=True)
class ProbeSampler:
    """Samples the clips of a plan.

    size: latent size (f, h, w). text: features (T,D) of the empty caption. audio: None without the audio stream.
    """

    transformer: Transformer
    vae: VideoVAE
    geometry: Geometry
    task: Task
    size: tuple[int, int, int]
    fps: float
    text: Tensor
    sampler: SamplerSettings
    audio: AudioSampling | None = None

    @cached_property
    def plan(self) -> ProbePlan:
        """The plan for the task."""
        return ProbePlan.of(self.task, self.geometry, self.size, self.fps)

    @cached_property
    def references(self) -> Tensor:
        """The encoded references of the plan (S,C,f',h',w')."""
        return torch.cat([self.vae.encode(from_uint8(torch.from_numpy(clip)[None])) for clip in self.plan.references])

    @torch.no_grad()
    def clips(self, samples: Sequence[ProbeSample]) -> Tensor:
        """Sample clips, uint8 (B,F,H,W,3)."""
        count, seeds = len(samples), [entry.noise_seed for entry in samples]
        references = [Reference.of_task(self.references[[entry.donor for entry in samples]], self.task)]
        text = self.text.expand(count, -1, -1)
        clips = (self.transformer, text, self.size, self.geometry, self.fps, self.sampler, seeds)
        if self.audio is None:
            latent = sample(*clips, references)
        else:
            stream = self.audio.probe_stream(count, self.size[0], self.fps)
            latent, _ = sample_with_sound(*clips, stream, references)
        return to_uint8(self.vae.decode(latent)).cpu()


def probe_sampler(source: SampledClips) -> ProbeSampler:
    """The sampler of the probes at the size of the held-out windows."""
    held_out = source.held_out
    return ProbeSampler(
        source.transformer,
        source.vae,
        source.base.geometry,
        source.config.task,
        source.latent_size,
        held_out.latents(held_out.windows[0]).fps,
        held_out.empty_text().to(source.device),
        source.sampler,
        source.audio,
    )


def run_probes(
    source: SampledClips, sampler: ProbeSampler, on_batch: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, Any], dict[str, ProbeClips]]:
    """Run the probes; returns `simple` of scores.json, and clips by probe name.

    Clips are cached by the source, so that an interrupted run resumes. Calls `on_batch(done, total)` after every batch.
    """

    def make(samples: Sequence[ProbeSample]) -> tuple[Clip, float]:
        return source.cached(_specification(source, sampler, samples), lambda: sampler.clips(samples))

    return score_probes(sampler.plan, make, source.config.eval.batch_size, on_batch)


def unfinished_probes(source: SampledClips, sampler: ProbeSampler) -> int:
    """The number of probe clips that are not in the cache."""
    samples, size = sampler.plan.samples, source.config.eval.batch_size
    batches = [samples[i : i + size] for i in range(0, len(samples), size)]
    return sum(len(batch) for batch in batches if not source.cache.has(_specification(source, sampler, batch)))


def _specification(source: SampledClips, sampler: ProbeSampler, samples: Sequence[ProbeSample]) -> dict[str, Any]:
    """All settings that determine the clips of these probes."""
    common = source.specification(at_strength(1), ())
    return {**common, "fps": sampler.fps, "simple": sampler.plan.identity(samples)}


def score_probes(
    plan: ProbePlan, make: MakeClips, batch_size: int, on_batch: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, Any], dict[str, ProbeClips]]:
    """As `run_probes`, with clips from `make`, at most `batch_size` at once."""
    samples, pending, seconds = plan.samples, list[Clip](), 0.0
    scores: list[dict[str, Any]] = []
    clips_by_name: dict[str, ProbeClips] = {}
    for i in range(0, len(samples), batch_size):
        clips, batch_seconds = make(samples[i : i + batch_size])
        pending += list(clips)
        seconds += batch_seconds
        while len(pending) > SEEDS:
            (*outputs, floor), pending = pending[: SEEDS + 1], pending[SEEDS + 1 :]
            probe, reference = plan.probes[len(scores)], plan.references[len(scores)]
            output = _median(probe, outputs)
            scores.append(_score(probe, output, floor))
            clips_by_name[probe.name] = ProbeClips(probe.scene, reference, output, floor)
        on_batch(min(i + batch_size, len(samples)), len(samples))
    return {
        "passed": sum(score["passed"] for score in scores),
        "of": len(scores),
        "seconds": round(seconds, 2),
        "signals": scores,
        "not_run": plan.not_run,
    }, clips_by_name


def _median(probe: Probe, clips: Sequence[Clip]) -> Clip:
    """The clip with the median error."""
    return sorted(clips, key=lambda clip: probe.error(probe.measure(clip)))[len(clips) // 2]


def _score(probe: Probe, clip: Clip, floor: Clip) -> dict[str, Any]:
    """The entry of one probe in scores.json."""
    measured = probe.measure(clip)
    error, floor_error = probe.error(measured), probe.error(probe.measure(floor))
    return {
        "name": probe.name,
        "claim": probe.claim,
        "value": round(error, 4),
        "floor": round(floor_error, 4),
        "threshold": round(probe.threshold, 4),
        "passed": error <= probe.threshold < floor_error,
        "requested": np.round(probe.requested, 2).tolist(),
        "found": np.round(measured, 2).tolist(),
    }
