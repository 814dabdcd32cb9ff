"""The claims about an adapter, by task family: a value per window and its bound (docs/evaluation.md lists them).

The gates of a family decide whether an adapter is good: the output is better than the input, better than the base with
the same reference, and follows its own reference. The other claims are diagnostics. They describe strength, masks and
the null test, and can hold without a trained adapter, because a base that copies its reference meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from eval.clips.conditions import (
    ADAPTER_ONLY,
    ADAPTER_REFERENCE,
    BASE,
    BASE_REFERENCE,
    CEILING,
    CLASSIC,
    FLOOR,
    INPUT,
    SWAPPED,
    swapped,
)
from eval.judging.evidence import Evidence
from eval.judging.strength_curve import isotonic_r2
from eval.metrics.held_out_loss import VELOCITY_LOSS
from eval.statistics.estimates import Values, mean_of_measured, recording_means
from eval.statistics.significance import p_above
from iclora_train.config import Thresholds

INSIDE, OUTSIDE = "psnr_inside", "psnr_outside"  # PSNR of the edited region, and of the part that must stay unchanged
COARSE_STRENGTHS = (1.0, 0.5, 0.1, 0.0)  # PSNR must fall between these; finer steps lie within the noise
NULL_CHANGE = "null_change"
Kind = Literal["gate", "diagnostic"]


@dataclass(frozen=True)
class Bound:
    """The limits within which the mean of a claim must lie (exclusive if `strict`)."""

    low: float = -np.inf
    high: float = np.inf
    strict: bool = False
    unit: str = ""

    def __str__(self) -> str:
        signs = (">", "<") if self.strict else ("≥", "≤")
        limits = [(signs[0], self.low), (signs[1], self.high)]
        return " and ".join(f"{sign} {limit:.3g} {self.unit}".strip() for sign, limit in limits if np.isfinite(limit))

    def contains(self, value: float) -> bool:
        """Whether a value lies within the limits."""
        return self.low < value < self.high if self.strict else self.low <= value <= self.high

    def excludes(self, low: float, high: float) -> bool:
        """Whether the whole interval from `low` to `high` lies beyond one of the limits."""
        if self.strict:
            return high <= self.low or low >= self.high
        return high < self.low or low > self.high

    def p(self, values: Values, recordings: Sequence[str]) -> float | None:
        """One-sided p that the mean lies within the limits (`p_above`); with two limits the larger p."""
        one_sided = []
        if np.isfinite(self.low):
            one_sided.append(p_above(values, recordings, self.low))
        if np.isfinite(self.high):
            one_sided.append(p_above(-values, recordings, -self.high))
        p_values = [p for p in one_sided if p is not None]
        return max(p_values) if p_values else None


@dataclass(frozen=True)
class Claim:
    """One claim. values: per window, None if not measured. p: replaces the p of the bound if given. control: of a set
    with several controls, the one that it is about; it is part of the name."""

    name: str
    text: str
    values: Values | None
    bound: Bound
    kind: Kind = "diagnostic"
    p: float | None = None
    control: str | None = None


def claims(family: str, e: Evidence, t: Thresholds) -> Iterator[Claim]:
    """The claims of a family (restoration, colorize, structure, edit, style), then the claims of every family.

    Of a set with several controls, each control's, by the metric of the control; all of them have to hold. A mean over
    controls would hide one that is not followed.
    """
    if e.controls:
        yield from _of_controls(family, e, t)
        return
    claims_of: dict[str, Callable[[Evidence, Thresholds], Iterator[Claim]]] = {
        "restoration": _restoration,
        "colorize": _colorize,
        "structure": _structure,
        "edit": _edit,
        "style": _style,
    }
    yield from claims_of[family](e, t)
    yield from _shared(e, t)
    yield from _of_references(e, t)


def _of_controls(family: str, e: Evidence, t: Thresholds) -> Iterator[Claim]:
    """The claims of every control, then those about all windows together."""
    for name, control in e.controls.items():
        for claim in claims(family, control.evidence, t):
            if claim.name != NULL_CHANGE:  # the null test does not depend on the control
                values = None if claim.values is None else control.spread(claim.values, len(e.sources))
                full_name, text = f"{claim.name}.{name}", f"{name}: {claim.text}"
                yield replace(claim, name=full_name, text=text, values=values, control=name)
    text = "follows its own reference better than another clip's, in the metric of each control: share of windows"
    yield Claim("own_over_swapped", text, _own_over_swapped(e), Bound(t.own_over_swapped, strict=True))
    yield _null_change(e, t)
    yield from _of_references(e, t)


def _of_references(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    """Of several references, that each is followed: swapping it alone loses a share of the gain over the floor."""
    for name, metric in e.references.items():
        kept = e.kept(metric, swapped(name), FLOOR, ADAPTER_REFERENCE)
        text = (
            f"reference {name} is used: share of the gain in {e.title(metric)} over another clip's target that is lost "
            "if this reference alone is another clip's"
        )
        yield Claim(f"follows {name}", text, None if kept is None else 1 - kept, Bound(t.reference_drop))


def _own_over_swapped(e: Evidence) -> Values | None:
    """Per window 1 if its own control is followed better with the own reference than with another clip's, else 0.

    Ties count half, so chance is 0.5. Ranks need no common unit: the probability of improvement of Agarwal et al. 2021
    (arXiv 2108.13264). A window of several controls counts by its mean.
    """
    wins = []
    for control in e.controls.values():
        better = control.evidence.difference(control.evidence.adherence, ADAPTER_REFERENCE, SWAPPED)
        if better is not None:
            wins.append(control.spread((1 + np.sign(better)) / 2, len(e.sources)))
    return mean_of_measured(wins) if wins else None


def _restoration(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    gain = e.difference("psnr", ADAPTER_REFERENCE, INPUT)
    text = "PSNR gain over the degraded input"
    yield Claim("gain_over_input", text, gain, Bound(t.gain_over_input, unit="dB"), "gate")
    yield from _over_classic("psnr", e, t)
    gain = e.difference("psnr", ADAPTER_REFERENCE, BASE_REFERENCE)
    text = "PSNR gain over base + reference (no adapter)"
    yield Claim("gain_over_base", text, gain, Bound(t.gain_over_base, unit="dB"), "gate")
    swapped = e.difference("psnr", ADAPTER_REFERENCE, SWAPPED)
    text = "PSNR drop with the reference of another clip"
    yield Claim("swap_drop", text, swapped, Bound(t.swap_drop, unit="dB"), "gate")
    text = "PSNR falls with attention strength: smallest drop between strengths 1, 0.5, 0.1, 0"
    yield Claim("strength_monotone", text, _smallest_drop(e), Bound(t.strength_monotone, strict=True, unit="dB"))
    yield _gain(e, t)


def _over_classic(metric: str, e: Evidence, t: Thresholds) -> Iterator[Claim]:
    """Not made for a task that no classic filter can do."""
    if CLASSIC in e.rows:
        gain = e.difference(metric, ADAPTER_REFERENCE, CLASSIC)
        text = f"{e.title(metric)}: gain over the best classic filter (no network)"
        yield Claim("gain_over_classic", text, gain, Bound(t.gain_over_classic, unit="dB"), "gate")


def _smallest_drop(e: Evidence) -> Values | None:
    """Per window, the PSNR drop from a strength to the next smaller one, for the pair with the smallest mean drop."""
    ordered = sorted((s, row["psnr"]) for s, row in e.strengths if s in COARSE_STRENGTHS)
    drops = [high - low for (_, low), (_, high) in pairwise(ordered)]
    return min(drops, key=lambda drop: float(recording_means(drop, e.sources).mean())) if drops else None


def _colorize(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    chroma = e.ratio("chroma_error", ADAPTER_REFERENCE, INPUT)
    text = "chroma error relative to the grey input"
    yield Claim("chroma_ratio", text, chroma, Bound(high=t.chroma_ratio), "gate")
    chroma = e.ratio("chroma_error", ADAPTER_REFERENCE, BASE_REFERENCE)
    text = "chroma error relative to base + reference (no adapter)"
    yield Claim("chroma_over_base", text, chroma, Bound(high=t.chroma_ratio), "gate")
    luma = e.difference("psnr_y", ADAPTER_REFERENCE, CEILING)
    yield Claim("luma_kept", "luma PSNR relative to the VAE round trip", luma, Bound(t.luma_kept, unit="dB"))
    grey = e.ratio("chroma_error", BASE_REFERENCE, INPUT)
    text = "base + reference stays grey: chroma error relative to the input"
    yield Claim("base_grey", text, grey, Bound(1 - t.base_grey, 1 + t.base_grey))
    swapped = e.difference("psnr_y", ADAPTER_REFERENCE, SWAPPED)
    text = "luma PSNR drop with the reference of another clip"
    yield Claim("swap_drop", text, swapped, Bound(t.swap_drop, unit="dB"), "gate")


def _structure(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    if e.adherence == "edge_f1":
        gap = e.rows[ADAPTER_REFERENCE].get("edge_gap")
        text = "edge F1 (1 px) above the edge F1 against another clip"
        yield Claim("edge_gap", text, gap, Bound(t.edge_gap), "gate")
    else:
        share = e.share(e.adherence, ADAPTER_REFERENCE, FLOOR, CEILING)
        text = f"{e.title(e.adherence)} follows the reference: 0 is another clip's target, 1 is the VAE round trip"
        yield Claim("follows", text, share, Bound(t.follows), "gate")
    gain = e.difference("psnr", ADAPTER_REFERENCE, BASE_REFERENCE)
    text = "output is a picture, not the drawing: PSNR gain over base + reference (no adapter)"
    yield Claim("picture", text, gain, Bound(t.picture, unit="dB"), "gate")
    share = e.kept(e.adherence, SWAPPED, FLOOR, ADAPTER_REFERENCE)
    text = f"{e.title(e.adherence)} with the reference of another clip: 0 is the floor, 1 is the right reference"
    yield Claim("swap_floor", text, share, Bound(high=t.swap_floor), "gate")
    yield _gain(e, t)


def _edit(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    """Claims about the inside and the outside of the edited region. Without a region both use the adherence metric."""
    inside, outside = (INSIDE, OUTSIDE) if OUTSIDE in e.rows[ADAPTER_REFERENCE] else (e.adherence, e.adherence)
    for name, row, threshold in (
        ("gain_over_input", INPUT, t.gain_over_input),
        ("gain_over_base", BASE_REFERENCE, t.gain_over_base),
    ):
        gain = e.difference(inside, ADAPTER_REFERENCE, row)
        yield Claim(name, f"{e.title(inside)}: gain over {row}", gain, Bound(threshold, unit="dB"), "gate")
    yield from _over_classic(inside, e, t)
    loss = e.difference(outside, ADAPTER_REFERENCE, CEILING)
    yield Claim("preserved", f"{e.title(outside)} relative to the VAE round trip", loss, Bound(t.preserved, unit="dB"))
    shown = INSIDE if e.adherence == INSIDE else outside  # a painted reference shows the outside of the region
    swapped = e.difference(shown, ADAPTER_REFERENCE, SWAPPED)
    text = f"{e.title(shown)}: drop with the reference of another clip"
    yield Claim("swap_drop", text, swapped, Bound(t.swap_drop, unit="dB"), "gate")


def _style(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    """A plain LoRA has no reference to follow: it has to predict held-out clips better.

    Where parts of the target are given, they determine much of the rest, so the rest has to be nearer to the target.
    """
    kind: Kind = "gate"
    if INSIDE in e.rows[ADAPTER_ONLY]:
        gain = e.difference(INSIDE, ADAPTER_ONLY, BASE)
        text = f"{e.title(INSIDE)}, the part that is not given: gain over the base"
        yield Claim("part_gain", text, gain, Bound(t.part_gain, strict=True, unit="dB"), "gate")
        kind = "diagnostic"
    removed = e.difference(VELOCITY_LOSS.key, ADAPTER_ONLY, BASE)
    share = None if removed is None else 100 * e.quotient(removed, e.rows[BASE][VELOCITY_LOSS.key])
    text = "share of the base's velocity loss on held-out windows that the adapter removes"
    yield Claim("adapter_gain", text, share, Bound(t.adapter_gain, strict=True, unit="%"), kind)


def _gain(e: Evidence, t: Thresholds) -> Claim:
    gain = e.share(e.adherence, ADAPTER_REFERENCE, BASE, CEILING)
    text = f"control gain: {e.title(e.adherence)}, 0 is the base without a reference, 1 is the VAE round trip"
    return Claim("control_gain", text, gain, Bound(t.control_gain))


def _shared(e: Evidence, t: Thresholds) -> Iterator[Claim]:
    if e.effects is not None and e.effects.shape[1] > 2 and e.curve is not None:
        explained = np.array([np.nan if np.isnan(row).any() else isotonic_r2(row) for row in e.effects])
        verb = "rises" if ADAPTER_REFERENCE in e.rows else "improves"
        text = f"{e.title(e.adherence)} {verb} with strength: R² of the best monotone curve (p by Page's trend test)"
        yield Claim("curve_monotone", text, explained, Bound(t.curve_monotone), p=e.curve["page_p"])
    if "kept" in e.changes:
        disturbance = e.quotient(e.changes["kept"], e.changes["dropped"])
        text = "half-frame mask: change in the half that keeps the reference / change in the other half"
        yield Claim("mask_local", text, disturbance, Bound(high=t.mask_local, strict=True))
    if ADAPTER_REFERENCE not in e.rows:
        return
    text = "fade-in mask: effect of the reference in the last latent frame minus that in the first"
    rise = None if e.fade is None else e.fade[:, -1] - e.fade[:, 0]
    yield Claim("fade_follows", text, rise, Bound(t.fade_follows))
    yield _null_change(e, t)


def _null_change(e: Evidence, t: Thresholds) -> Claim:
    text = "strength 0 equals no reference: mean difference"
    return Claim(NULL_CHANGE, text, e.changes.get("null"), Bound(high=t.null_change, unit="levels"))
