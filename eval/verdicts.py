"""Is the control followed? One line per claim: a paired figure over windows, its interval, a threshold, pass or fail.

The claims and thresholds are those fixed before any adapter was judged (docs/evaluation.md); no run may choose its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypedDict

import numpy as np

from eval.statistics import Estimate, Values, by_source, estimate, ratio_units

Table = Mapping[str, Mapping[str, Values]]  # cell -> metric -> value per window, seeds averaged

PRIMARY = {"restoration": "psnr", "colorize": "chroma_error", "structure": "edge_f1"}


class Verdict(TypedDict):
    """One claim, judged. value is over windows, by_source the same with recordings as units."""

    name: str
    claim: str
    value: Estimate
    by_source: Estimate
    threshold: str
    passed: bool


@dataclass(frozen=True)
class Results:
    """What verdicts are drawn from: values per window of every cell, of every strength, of the mask; sources."""

    cells: Table
    strengths: Sequence[tuple[float, Mapping[str, Values]]]
    mask: Mapping[str, Values]
    sources: Sequence[str] = field(default_factory=tuple)

    def difference(self, metric: str, cell: str, other: str) -> Values:
        """Paired difference of two cells, per window."""
        return self.cells[cell][metric] - self.cells[other][metric]

    def ratio(self, metric: str, cell: str, other: str) -> Values:
        """Ratio of two cells, as `ratio_units`."""
        return ratio_units(self.cells[cell][metric], self.cells[other][metric])


@dataclass(frozen=True)
class Bound:
    """What a figure must satisfy: its mean within closed or open limits, and optionally its interval above 0."""

    at_least: float = -np.inf
    at_most: float = np.inf
    above: float = -np.inf
    below: float = np.inf
    interval_above_zero: bool = False
    unit: str = ""

    def __str__(self) -> str:
        sides = (("≥", self.at_least), ("≤", self.at_most), (">", self.above), ("<", self.below))
        text = " and ".join(f"{sign} {limit:.3g} {self.unit}".strip() for sign, limit in sides if np.isfinite(limit))
        return text + (", interval above 0" if self.interval_above_zero else "")

    def holds(self, figure: Estimate) -> bool:
        """Whether an estimate satisfies it. Without an interval (one unit) nothing is above 0."""
        within = self.at_least <= figure["mean"] <= self.at_most and self.above < figure["mean"] < self.below
        positive = figure["low"] is not None and figure["low"] > 0
        return within and (positive or not self.interval_above_zero)


def judge(family: str, results: Results) -> list[Verdict]:
    """The verdicts of a task family (restoration, colorize, structure), then those that hold for every family."""
    claims = {"restoration": _restoration, "colorize": _colorize, "structure": _structure}[family]
    return [
        Verdict(
            name=name,
            claim=claim,
            value=(value := estimate(units)),
            by_source=by_source(units, results.sources),
            threshold=str(bound),
            passed=bound.holds(value),
        )
        for name, claim, units, bound in (*claims(results), *_every(results))
    ]


Claim = tuple[str, str, Values, Bound]


def _restoration(r: Results) -> Iterator[Claim]:
    gain = Bound(at_least=0.7, interval_above_zero=True, unit="dB")
    ours = "adapter+reference"
    yield "gain_over_input", "PSNR above the degraded input", r.difference("psnr", ours, "input"), gain
    yield "gain_over_base", "PSNR above base + reference", r.difference("psnr", ours, "base+reference"), gain
    swapped = r.difference("psnr", ours, "swapped")
    yield "swap_drop", "PSNR lost with another clip's reference", swapped, Bound(at_least=8, unit="dB")
    yield (
        "strength_monotone",
        "PSNR falls with strength: smallest fall between neighbouring strengths",
        _smallest_fall(r.strengths),
        Bound(above=0, unit="dB"),
    )


def _smallest_fall(strengths: Sequence[tuple[float, Mapping[str, Values]]]) -> Values:
    """Per window, PSNR at a strength minus PSNR at the next smaller one, for the pair where the mean is smallest."""
    ordered = [metrics["psnr"] for _, metrics in sorted(strengths, key=lambda entry: -entry[0])]
    return min((high - low for high, low in pairwise(ordered)), key=lambda fall: float(fall.mean()))


def _colorize(r: Results) -> Iterator[Claim]:
    ours = "adapter+reference"
    chroma = r.ratio("chroma_error", ours, "input")
    yield "chroma_ratio", "chroma error over the grey input's", chroma, Bound(at_most=0.8)
    luma = r.difference("psnr_y", ours, "ceiling")
    yield "luma_kept", "luma PSNR against the VAE round trip", luma, Bound(at_least=-3, unit="dB")
    grey = r.ratio("chroma_error", "base+reference", "input")
    yield "base_grey", "base + reference stays grey: its chroma error over the input's", grey, Bound(0.9, 1.1)


def _structure(r: Results) -> Iterator[Claim]:
    ours = "adapter+reference"
    gap = r.cells[ours]["edge_gap"]
    yield "edge_gap", "edge F1 (1 px) above that against another clip", gap, Bound(at_least=0.15)
    picture = r.difference("psnr", ours, "base+reference")
    yield "picture", "a picture, not the drawing: PSNR above base + reference", picture, Bound(at_least=3, unit="dB")


def _every(r: Results) -> Iterator[Claim]:
    disturbance = ratio_units(r.mask["kept"], r.mask["dropped"])
    claim = "half-frame mask: what it changes where it keeps the reference over what it changes where it drops it"
    yield "mask_local", claim, disturbance, Bound(below=1 / 3)
