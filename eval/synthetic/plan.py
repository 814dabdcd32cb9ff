"""The plan of the synthetic probes: which probes a task gets, with which references and which noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from eval.synthetic.probes import Probe, Scale, all_probes, track_by_flow
from eval.synthetic.references import not_applicable, reference, reference_kind
from eval.synthetic.shapes import Clip
from iclora_train.config import Task
from iclora_train.core.types import Geometry, VideoShape

DONORS = ("line", "dot")  # the floor of a probe uses the reference of the first of these that is another probe
SEEDS = 3  # clips per probe; the one with the median error counts


@dataclass(frozen=True)
class ProbeSample:
    """One clip to sample: index of its probe, index of the probe that donates the reference, and seed (< SEEDS)."""

    probe: int
    donor: int
    seed: int

    @property
    def noise_seed(self) -> int:
        """Seed of the noise: the same with the probe's own reference and with another one."""
        return self.probe * SEEDS + self.seed


@dataclass(frozen=True)
class ProbePlan:
    """The applicable probes with their references, and the reason why each other probe is not run."""

    probes: list[Probe]
    references: list[Clip]
    not_run: list[dict[str, str]]

    @classmethod
    def of(cls, task: Task, geometry: Geometry, size: tuple[int, int, int], fps: float) -> ProbePlan:
        """The plan for clips of latent size (f, h, w)."""
        f, h, w = size
        shape = VideoShape((f - 1) * geometry.temporal + 1, h * geometry.spatial, w * geometry.spatial, fps)
        probes, not_run = split_applicable(all_probes(shape, Scale.of(geometry, task.reference_downscale)), task)
        return cls(probes, [reference(probe, task, shape) for probe in probes], not_run)

    @property
    def samples(self) -> list[ProbeSample]:
        """For every probe in turn: SEEDS clips with its own reference, then one with another reference (its floor)."""
        return [
            sample
            for i in range(len(self.probes))
            for sample in (*(ProbeSample(i, i, seed) for seed in range(SEEDS)), ProbeSample(i, self._donor(i), 0))
        ]

    def _donor(self, number: int) -> int:
        names = [probe.name for probe in self.probes]
        return names.index(next(name for name in (*DONORS, *names) if name in names and name != names[number]))

    def identity(self, samples: Sequence[ProbeSample]) -> list[list[str | int]]:
        """Cache key of the clips: hashes of their references, and noise seeds."""
        hashes = [hashlib.sha256(clip.tobytes()).hexdigest()[:16] for clip in self.references]
        return [[hashes[sample.donor], sample.noise_seed] for sample in samples]


def split_applicable(candidates: Sequence[Probe], task: Task) -> tuple[list[Probe], list[dict[str, str]]]:
    """The probes that can be drawn as a reference of the task, and the reason for each probe that cannot."""
    several = "the task has several references, and a probe draws one" if task.more_references else None
    reasons = {probe.name: several or not_applicable(probe, task) for probe in candidates}
    probes = [probe for probe in candidates if reasons[probe.name] is None]
    if reference_kind(task) == "tracks":
        probes = [track_by_flow(probe) for probe in probes]
    return probes, [{"signal": name, "reason": reason} for name, reason in reasons.items() if reason is not None]
