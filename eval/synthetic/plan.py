"""What is to be made for the simple signals: which are put to a task, with which references, which noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from eval.synthetic.probes import Probe, Scale, all_probes, track_by_flow
from eval.synthetic.references import not_applicable, reference, reference_kind
from eval.synthetic.shapes import Clip
from iclora_train.config import Task
from iclora_train.core.types import Geometry, VideoShape

DONORS = ("line", "dot")  # whose reference is given for a signal's floor: the first that is not its own
SEEDS = 3  # clips made of every signal, whose median error counts


@dataclass(frozen=True)
class ProbeSample:
    """One clip to make: places of its signal and of the signal whose reference is given, and which of SEEDS it is."""

    probe: int
    donor: int
    seed: int

    @property
    def noise_seed(self) -> int:
        """Seed of the noise: the same with the own and with another reference."""
        return self.probe * SEEDS + self.seed


@dataclass(frozen=True)
class ProbePlan:
    """The signals that are asked and their references; those that cannot be, each with the reason."""

    probes: list[Probe]
    references: list[Clip]
    not_run: list[dict[str, str]]

    @classmethod
    def of(cls, task: Task, geometry: Geometry, size: tuple[int, int, int], fps: float) -> ProbePlan:
        """For clips on the latent grid `size` (f, h, w)."""
        f, h, w = size
        shape = VideoShape((f - 1) * geometry.temporal + 1, h * geometry.spatial, w * geometry.spatial, fps)
        every = all_probes(shape, Scale.of(geometry, task.reference_downscale))
        probes, not_run = split_applicable(every, reference_kind(task))
        return cls(probes, [reference(probe, task, shape) for probe in probes], not_run)

    @property
    def samples(self) -> list[ProbeSample]:
        """For one signal after the other SEEDS clips, then one with another signal's reference: its floor."""
        return [
            sample_
            for i in range(len(self.probes))
            for sample_ in (*(ProbeSample(i, i, seed) for seed in range(SEEDS)), ProbeSample(i, self._donor(i), 0))
        ]

    def _donor(self, number: int) -> int:
        names = [probe.name for probe in self.probes]
        return names.index(next(name for name in (*DONORS, *names) if name in names and name != names[number]))

    def identity(self, samples: Sequence[ProbeSample]) -> list[list[str | int]]:
        """What tells these clips from others: hashes of their references, and seeds."""
        hashes = [hashlib.sha256(clip.tobytes()).hexdigest()[:16] for clip in self.references]
        return [[hashes[sample_.donor], sample_.noise_seed] for sample_ in samples]


def split_applicable(every: Sequence[Probe], kind: str) -> tuple[list[Probe], list[dict[str, str]]]:
    """The signals that can be put to a kind of reference, and the others with the reason."""
    why = {probe.name: not_applicable(probe, kind) for probe in every}
    probes = [probe for probe in every if why[probe.name] is None]
    if kind == "tracks":
        probes = [track_by_flow(probe) for probe in probes]
    return probes, [{"signal": name, "reason": reason} for name, reason in why.items() if reason is not None]
