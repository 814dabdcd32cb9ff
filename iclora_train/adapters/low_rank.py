"""Adapters of other kinds that are converted to plain LoRA: the rank, and what the conversion leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


def squared_norm(matrix: Tensor) -> float:
    """The squared Frobenius norm."""
    return float(matrix.double().square().sum())


@dataclass
class LowRank:
    """Rank of the LoRA, and what the conversion of a file's modules leaves out: filled while they are converted.

    weight: module -> weight of the base (out,in), which a DoRA needs; None without a base. converted: called after
    every module. lost, total: module -> squared Frobenius norm of what the LoRA leaves out, and of the weight change.
    exact: the rank at which nothing would be left out.
    """

    rank: int
    generator: torch.Generator
    weight: Callable[[str], Tensor] | None = None
    converted: Callable[[], None] = lambda: None
    lost: dict[str, float] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    exact: int = 0

    def note(self, module: str, lost: float, total: float, exact: int) -> None:
        """Note what a module's LoRA leaves out."""
        self.lost[module], self.total[module], self.exact = lost, total, max(self.exact, exact)
        self.converted()

    @property
    def error(self) -> float:
        """What the LoRA leaves out of all weight changes, relative to their Frobenius norm."""
        total = sum(self.total.values())
        return (sum(self.lost.values()) / total) ** 0.5 if total else 0.0

    @property
    def worst(self) -> tuple[str, float]:
        """The module of which most is left out, relative to its weight change, and how much."""
        name = max(self.total, key=lambda name: self.lost[name] / (self.total[name] or 1.0))
        return name, (self.lost[name] / (self.total[name] or 1.0)) ** 0.5
