"""What is claimed of an adapter, by family: a figure per window, and what it must reach (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from eval.clips.conditions import ADAPTER_REFERENCE, BASE, BASE_REFERENCE, CEILING, FLOOR, INPUT, SWAPPED
from eval.judging.strength_curve import StrengthCurve, isotonic_r2
from eval.statistics.estimates import Estimate, Values, ratio_per_unit
from eval.statistics.significance import signed_rank
from iclora_train.config import Thresholds

INSIDE, OUTSIDE = "psnr_inside", "psnr_outside"  # of the edited part, and of what the edit must leave alone
COARSE = (1.0, 0.5, 0.1, 0.0)  # strengths between which a fall must show; finer steps lie within the noise
Table = Mapping[str, Mapping[str, Values]]  # row -> metric -> value per window, seeds averaged; NaN: not measured


@dataclass(frozen=True)
class Evidence:
    """What claims are drawn from. strengths: (strength, its row); adherence: the metric of how the reference is
    followed (`Suite.adherence`); effects (windows, strengths): that metric, rising with strength; fade: per window the
    share of the effect in each latent frame; lower: metrics of which less is better.
    """

    rows: Table
    strengths: Sequence[tuple[float, Mapping[str, Values]]]
    changes: Mapping[str, Values]
    sources: Sequence[str]
    adherence: str
    effects: Values | None = None
    curve: StrengthCurve | None = None
    fade: Values | None = None
    lower: frozenset[str] = field(default_factory=frozenset)

    def difference(self, metric: str, row: str, other: str) -> Values | None:
        """How much better a row is than another, per window; None where one of them was not measured."""
        if metric not in self.rows.get(row, {}) or metric not in self.rows.get(other, {}):
            return None
        sign = -1 if metric in self.lower else 1
        return sign * (self.rows[row][metric] - self.rows[other][metric])

    def ratio(self, metric: str, row: str, other: str) -> Values | None:
        """Ratio of two rows, as `ratio_units`."""
        if metric not in self.rows.get(row, {}) or metric not in self.rows.get(other, {}):
            return None
        return ratio_per_unit(self.rows[row][metric], self.rows[other][metric])

    def share(self, metric: str, row: str, start: str, end: str) -> Values | None:
        """How far a row lies on the way from row `start` (0) to row `end` (1), as `ratio_units`."""
        gone, way = self.difference(metric, row, start), self.difference(metric, end, start)
        return None if gone is None or way is None else ratio_per_unit(gone, way)


@dataclass(frozen=True)
class Bound:
    """What a figure must satisfy: its mean within limits (open ones if `strict`); with `significant` also an interval
    above 0 and a p below the level. effect: the value that would be no effect, against which p is taken; None: the
    limits themselves."""

    low: float = -np.inf
    high: float = np.inf
    strict: bool = False
    effect: float | None = None
    significant: bool = False
    unit: str = ""

    def __str__(self) -> str:
        signs = (">", "<") if self.strict else ("≥", "≤")
        sides = [(signs[0], self.low), (signs[1], self.high)]
        text = " and ".join(f"{sign} {limit:.3g} {self.unit}".strip() for sign, limit in sides if np.isfinite(limit))
        return text + (", interval above 0, significant" if self.significant else "")

    def p(self, units: Values) -> float | None:
        """One-sided signed-rank p that the units lie on the good side; of two limits the larger one."""
        sides = []
        if np.isfinite(self.low):
            sides.append(signed_rank(units - (self.low if self.effect is None else self.effect)))
        if np.isfinite(self.high):
            sides.append(signed_rank((self.high if self.effect is None else self.effect) - units))
        known = [p for p in sides if p is not None]
        return max(known) if known else None

    def holds(self, figure: Estimate, p: float | None, level: float) -> bool:
        """Whether an estimate satisfies it; p after Holm. Without an interval (one unit) nothing is above 0."""
        mean = figure["mean"]
        within = self.low < mean < self.high if self.strict else self.low <= mean <= self.high
        if not self.significant:
            return within
        positive = figure["low"] is not None and figure["low"] > 0
        return within and positive and p is not None and p < level


@dataclass(frozen=True)
class Claim:
    """units: the figure per window, or None where it was not measured; p: where it is not the signed-rank test's."""

    name: str
    text: str
    units: Values | None
    bound: Bound
    p: float | None = None


def claims(family: str, e: Evidence, t: Thresholds) -> Iterator[Claim]:
    """The claims of a family (restoration, colorize, structure, edit), then those that hold for every one."""
    of_family: dict[str, Callable[[Evidence, Thresholds], Iterator[Claim]]] = {
        "restoration": _restoration,
        "colorize": _colorize,
        "structure": _structure,
        "edit": _edit,
    }
    yield from of_family[family](e, t)
    yield from _every(e, t)


def _restoration(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    over_input = Bound(t.gain_over_input, effect=0, significant=True, unit="dB")
    yield Claim(
        "gain_over_input", "PSNR above the degraded input", e.difference("psnr", ADAPTER_REFERENCE, INPUT), over_input
    )
    over_base = Bound(t.gain_over_base, effect=0, significant=True, unit="dB")
    yield Claim(
        "gain_over_base",
        "PSNR above base + reference",
        e.difference("psnr", ADAPTER_REFERENCE, BASE_REFERENCE),
        over_base,
    )
    swapped = e.difference("psnr", ADAPTER_REFERENCE, SWAPPED)
    yield Claim(
        "swap_drop", "PSNR lost with another clip's reference", swapped, Bound(t.swap_drop, effect=0, unit="dB")
    )
    text = "PSNR falls with strength: smallest fall between neighbours of 1, .5, .1, 0"
    yield Claim("strength_monotone", text, _smallest_fall(e), Bound(t.strength_monotone, strict=True, unit="dB"))
    yield _gain(e, t)


def _smallest_fall(e: Evidence) -> Values | None:
    """Per window, PSNR at a strength minus PSNR at the next smaller one, for the pair where the mean is smallest."""
    ordered = sorted((s, row["psnr"]) for s, row in e.strengths if s in COARSE)
    falls = [high - low for (_, low), (_, high) in pairwise(ordered)]
    return min(falls, key=lambda fall: float(np.nanmean(fall))) if falls else None


def _colorize(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    chroma = e.ratio("chroma_error", ADAPTER_REFERENCE, INPUT)
    less = Bound(high=t.chroma_ratio, effect=1)
    yield Claim("chroma_ratio", "chroma error over the grey input's", chroma, less)
    luma = e.difference("psnr_y", ADAPTER_REFERENCE, CEILING)
    yield Claim("luma_kept", "luma PSNR against the VAE round trip", luma, Bound(t.luma_kept, unit="dB"))
    grey = e.ratio("chroma_error", BASE_REFERENCE, INPUT)
    text = "base + reference stays grey: its chroma error over the input's"
    yield Claim("base_grey", text, grey, Bound(1 - t.base_grey, 1 + t.base_grey))
    swapped = e.difference("psnr_y", ADAPTER_REFERENCE, SWAPPED)
    text = "luma PSNR lost with another clip's reference"
    yield Claim("swap_drop", text, swapped, Bound(t.swap_drop, effect=0, unit="dB"))


def _structure(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    if e.adherence == "edge_f1":
        gap = e.rows[ADAPTER_REFERENCE].get("edge_gap")
        text = "edge F1 (1 px) above that against another clip"
        yield Claim("edge_gap", text, gap, Bound(t.edge_gap, effect=0))
    else:
        way = e.share(e.adherence, ADAPTER_REFERENCE, FLOOR, CEILING)
        text = f"{e.adherence}: share of the way from another clip's target to the VAE round trip"
        yield Claim("follows", text, way, Bound(t.follows, effect=0, significant=True))
    picture = e.difference("psnr", ADAPTER_REFERENCE, BASE_REFERENCE)
    text = "a picture, not the drawing: PSNR above base + reference"
    yield Claim("picture", text, picture, Bound(t.picture, effect=0, unit="dB"))
    left = e.share(e.adherence, SWAPPED, FLOOR, ADAPTER_REFERENCE)
    text = f"{e.adherence}: share of the way from the floor that another clip's reference leaves"
    yield Claim("swap_floor", text, left, Bound(high=t.swap_floor, effect=1))
    yield _gain(e, t)


def _edit(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    """Of tasks that know where they edit, what is inside is to be made and what is outside to be kept."""
    inside, outside = (INSIDE, OUTSIDE) if OUTSIDE in e.rows[ADAPTER_REFERENCE] else (e.adherence, e.adherence)
    for name, row, threshold in (
        ("gain_over_input", INPUT, t.gain_over_input),
        ("gain_over_base", BASE_REFERENCE, t.gain_over_base),
    ):
        bound = Bound(threshold, effect=0, significant=True, unit="dB")
        yield Claim(name, f"{inside} above that of {row}", e.difference(inside, ADAPTER_REFERENCE, row), bound)
    kept = e.difference(outside, ADAPTER_REFERENCE, CEILING)
    yield Claim("preserved", f"{outside} against the VAE round trip", kept, Bound(t.preserved, unit="dB"))
    swapped = e.difference(outside, ADAPTER_REFERENCE, SWAPPED)
    text = f"{outside} lost with another clip's reference"
    yield Claim("swap_drop", text, swapped, Bound(t.swap_drop, effect=0, unit="dB"))


def _gain(e: Evidence, t: Thresholds) -> Claim:
    gain = e.share(e.adherence, ADAPTER_REFERENCE, BASE, CEILING)
    text = f"control gain: {e.adherence}, share of the way from the base without reference to the VAE round trip"
    return Claim("control_gain", text, gain, Bound(t.control_gain, effect=0, significant=True))


def _every(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    if e.effects is not None and e.effects.shape[1] > 2 and e.curve is not None:
        explained = np.array([np.nan if np.isnan(row).any() else isotonic_r2(row) for row in e.effects])
        text = f"{e.adherence} rises with strength: what a monotone curve explains; p is Page's"
        rises = Bound(t.curve_monotone, effect=0, significant=True)
        yield Claim("curve_monotone", text, explained, rises, e.curve["page_p"])
    if e.changes:
        disturbance = ratio_per_unit(e.changes["kept"], e.changes["dropped"])
        text = "half-frame mask: what it changes where it keeps the reference over what it changes where it drops it"
        yield Claim("mask_local", text, disturbance, Bound(high=t.mask_local, strict=True))
        text = "fade-in mask: share of the reference's effect in the last latent frame less that in the first"
        rise = None if e.fade is None else e.fade[:, -1] - e.fade[:, 0]
        yield Claim("fade_follows", text, rise, Bound(t.fade_follows, effect=0))
        text = "strength 0 equals no reference: what differs"
        yield Claim("null_change", text, e.changes["null"], Bound(high=t.null_change, unit="levels"))
