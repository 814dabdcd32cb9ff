"""What is to be made for the simple signals: which are put to a task, with which references, which noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from eval.synthetic.probes import Scale, Signal, by_following, signals
from eval.synthetic.references import kind_of, reference, unasked
from eval.synthetic.shapes import Clip
from iclora_train.config.settings import Task
from iclora_train.core.types import Geometry, VideoShape

GIVERS = ("line", "dot")  # whose reference is given for a signal's floor: the first that is not its own
SEEDS = 3  # clips made of every signal, whose median error counts


@dataclass(frozen=True)
class Order:
    """One clip to make: places of its signal and of the signal whose reference is given, and which of SEEDS it is."""

    signal: int
    giver: int
    seed: int

    @property
    def noise_seed(self) -> int:
        """Seed of the noise: the same with the own and with another reference."""
        return self.signal * SEEDS + self.seed


@dataclass(frozen=True)
class Plan:
    """The signals that are asked and their references; those that cannot be, each with the reason."""

    asked: list[Signal]
    references: list[Clip]
    not_run: list[dict[str, str]]

    @classmethod
    def of(cls, task: Task, geometry: Geometry, size: tuple[int, int, int], fps: float) -> Plan:
        """For clips on the latent grid `size` (f, h, w)."""
        f, h, w = size
        shape = VideoShape((f - 1) * geometry.temporal + 1, h * geometry.spatial, w * geometry.spatial, fps)
        every = signals(shape, Scale.of(geometry, task.reference_downscale))
        asked, not_run = requests(every, kind_of(task))
        return cls(asked, [reference(signal, task, shape) for signal in asked], not_run)

    @property
    def orders(self) -> list[Order]:
        """For one signal after the other SEEDS clips, then one with another signal's reference: its floor."""
        return [
            order
            for i in range(len(self.asked))
            for order in (*(Order(i, i, seed) for seed in range(SEEDS)), Order(i, self._giver(i), 0))
        ]

    def _giver(self, number: int) -> int:
        names = [signal.name for signal in self.asked]
        return names.index(next(name for name in (*GIVERS, *names) if name in names and name != names[number]))

    def identity(self, orders: Sequence[Order]) -> list[list[str | int]]:
        """What tells these clips from others: hashes of their references, and seeds."""
        hashes = [hashlib.sha256(clip.tobytes()).hexdigest()[:16] for clip in self.references]
        return [[hashes[order.giver], order.noise_seed] for order in orders]


def requests(every: Sequence[Signal], kind: str) -> tuple[list[Signal], list[dict[str, str]]]:
    """The signals that can be put to a kind of reference, and the others with the reason."""
    why = {signal.name: unasked(signal, kind) for signal in every}
    asked = [signal for signal in every if why[signal.name] is None]
    if kind == "tracks":
        asked = [by_following(signal) for signal in asked]
    return asked, [{"signal": name, "reason": reason} for name, reason in why.items() if reason is not None]
