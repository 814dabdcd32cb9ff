"""Simple signals first: is a control followed whose truth is known exactly?

A square that moves, a line that sweeps, a dot on its arc, a ramp, a square that appears, things at rest: each is put to
the adapter as a reference of its task's kind, and found again in the output by a detector without weights. Every
signal is also measured in a clip that was made with another signal's reference, its floor: a request that is met there
as well proves nothing and does not pass.

The caption is empty. All signals share batches, so that the suite takes the time of a few clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.clips.conditions import at_strength
from eval.clips.sampled import SampledClips
from eval.synthetic.plan import SEEDS, ProbePlan, ProbeSample
from eval.synthetic.probes import Probe
from eval.synthetic.shapes import Clip
from iclora_train.config import Task
from iclora_train.core.types import Geometry
from iclora_train.data.pixels import from_uint8, to_uint8
from iclora_train.diffusion.sampler import Reference, SamplerSettings, sample
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.vae.video_vae import VideoVAE

MakeClips = Callable[
    [Sequence[ProbeSample]], tuple[Clip, float]
]  # clips (B,F,H,W,3) of a batch, and the seconds they took


@dataclass(frozen=True)
class ProbeClips:
    """One signal for the report, all clips (F,H,W,3): what was requested, the reference, and what came of it."""

    requested: Clip
    reference: Clip
    found: Clip
    floor: Clip


@dataclass(frozen=True)
class ProbeSampler:
    """Makes the clips of a plan: latent size (f, h, w), text (T,D) of the empty caption."""

    transformer: Transformer
    vae: VideoVAE
    geometry: Geometry
    task: Task
    size: tuple[int, int, int]
    fps: float
    text: Tensor
    sampler: SamplerSettings

    @cached_property
    def plan(self) -> ProbePlan:
        """What is to be made."""
        return ProbePlan.of(self.task, self.geometry, self.size, self.fps)

    @cached_property
    def references(self) -> Tensor:
        """The references of the plan, encoded: (S,C,f',h',w')."""
        return torch.cat([self.vae.encode(from_uint8(torch.from_numpy(clip)[None])) for clip in self.plan.references])

    @torch.no_grad()
    def clips(self, samples: Sequence[ProbeSample]) -> Tensor:
        """Clips uint8 (B,F,H,W,3)."""
        given = self.references[[sample_.donor for sample_ in samples]]
        latent = sample(
            self.transformer,
            self.text.expand(len(samples), -1, -1),
            self.size,
            self.geometry,
            self.fps,
            self.sampler,
            [sample_.noise_seed for sample_ in samples],
            [Reference(given, self.task.reference_downscale, self.task.reference_temporal_scale)],
        )
        return to_uint8(self.vae.decode(latent)).cpu()


def run_probes(
    source: SampledClips, on_clips: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, Any], dict[str, ProbeClips]]:
    """The suite at the size of the held-out windows: `simple` of scores.json, and clips by the signals' names.

    Clips are kept in the renderer's store, so that an interrupted suite goes on. `on_clips(done, total)` after a batch.
    """
    held_out = source.held_out
    sampler = ProbeSampler(
        source.transformer,
        source.vae,
        source.base.geometry,
        source.config.task,
        source.latent_size,
        held_out.latents(held_out.windows[0]).fps,
        held_out.empty_text().to(source.device),
        source.sampler,
    )
    same = source.specification(at_strength(1), ())

    def make(samples: Sequence[ProbeSample]) -> tuple[Clip, float]:
        spec = {**same, "fps": sampler.fps, "simple": sampler.plan.identity(samples)}
        return source.cached(spec, lambda: sampler.clips(samples))

    return score_probes(sampler.plan, make, source.config.eval.batch_size, on_clips)


def score_probes(
    plan: ProbePlan, make: MakeClips, batch_size: int, on_clips: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, Any], dict[str, ProbeClips]]:
    """As `run`, with clips from `make`, at most `batch_size` at once."""
    samples, waiting, seconds = plan.samples, list[Clip](), 0.0
    judged: list[dict[str, Any]] = []
    shown: dict[str, ProbeClips] = {}
    for i in range(0, len(samples), batch_size):
        made, spent = make(samples[i : i + batch_size])
        waiting += list(made)
        seconds += spent
        while len(waiting) > SEEDS:
            (*own, floor), waiting = waiting[: SEEDS + 1], waiting[SEEDS + 1 :]
            probe, given = plan.probes[len(judged)], plan.references[len(judged)]
            median = _median(probe, own)
            judged.append(_judged(probe, median, floor))
            shown[probe.name] = ProbeClips(probe.scene, given, median, floor)
        on_clips(min(i + batch_size, len(samples)), len(samples))
    return {
        "passed": sum(probe["passed"] for probe in judged),
        "of": len(judged),
        "seconds": round(seconds, 2),
        "signals": judged,
        "not_run": plan.not_run,
    }, shown


def _median(probe: Probe, clips: Sequence[Clip]) -> Clip:
    """The clip of the middle error."""
    return sorted(clips, key=lambda clip: probe.error(probe.found(clip)))[len(clips) // 2]


def _judged(probe: Probe, clip: Clip, floor: Clip) -> dict[str, Any]:
    """What scores.json says of one signal."""
    found = probe.found(clip)
    value, by_chance = probe.error(found), probe.error(probe.found(floor))
    return {
        "name": probe.name,
        "claim": probe.claim,
        "value": round(value, 4),
        "floor": round(by_chance, 4),
        "threshold": round(probe.threshold, 4),
        "passed": value <= probe.threshold < by_chance,
        "requested": np.round(probe.requested, 2).tolist(),
        "found": np.round(found, 2).tolist(),
    }
