"""What the figures say about the complaints that are heard most about control adapters, and what to do about each.

A flag is drawn from scores.json alone: a symptom, how bad it is, the figure that says so, and the remedy. A symptom
whose figure was not measured (diversity needs two seeds, say) has no flag; the report lists it as not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from eval.clips.conditions import ADAPTER_REFERENCE, BASE, CEILING
from eval.statistics.estimates import Estimate

NOT_FOLLOWED, FIDELITY = "control not followed", ("restoration", "colorize")

GAIN_BAD, GAIN_WARN = 0.1, 0.3  # share of the way from the base to the ceiling; under a tenth is hard to see at all
NULL_WARN, NULL_BAD = 0.5, 2.0  # levels; rounding to 8 bits alone moves a pixel by up to half a level
MONOTONE_WARN = 0.5  # Spearman of strength and adherence; seven strengths in random order exceed it 1 time in 8
FLICKER_WARN, FLICKER_BAD = 1.0, 4.0  # levels of luma above the ceiling; one is the smallest step of a display
SHARP_WARN, SHARP_BAD = 1.5, 2.5  # Laplacian variance over the ceiling's, or under it; a blur of 0.5 px: 2.2 under
RIGID_WARN, RIGID_BAD = 0.25, 0.1  # diversity over seeds as a share of that without a reference
MEMORY_WARN, MEMORY_BAD = 0.85, 0.95  # share of the device's memory at the peak; a larger clip will not fit

Level = Literal["ok", "warn", "bad"]


class Symptom(TypedDict):
    """One symptom, judged. reason: the figure that decided; remedy: what to try, empty when all is well."""

    symptom: str
    level: Level
    reason: str
    remedy: str


def find_symptoms(scores: Mapping[str, Any]) -> list[Symptom]:
    """The symptoms that can be judged from scores.json (schema 2), in the order of `SYMPTOMS`."""
    judged = ((symptom, judge(scores)) for symptom, judge in SYMPTOMS.items())
    return [_flag(symptom, *found) for symptom, found in judged if found is not None]


Found = tuple[Level, str, str]  # level, reason, remedy


def _flag(symptom: str, level: Level, reason: str, remedy: str) -> Symptom:
    return Symptom(symptom=symptom, level=level, reason=reason, remedy="" if level == "ok" else remedy)


def _above(value: float, warn: float, bad: float) -> Level:
    """How bad a value is that should be small."""
    return "bad" if value > bad else "warn" if value > warn else "ok"


def _below(value: float, warn: float, bad: float) -> Level:
    """How bad a value is that should be large."""
    return "bad" if value < bad else "warn" if value < warn else "ok"


def _span(figure: Estimate) -> str:
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['mean']:.2f}"
    return f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def _mean(scores: Mapping[str, Any], row: str, metric: str) -> float | None:
    figure = scores["cells"].get(row, {}).get(metric)
    return None if figure is None else float(figure["mean"])


def _control(scores: Mapping[str, Any]) -> Found | None:
    """By the gain G (0: the reference is ignored, 1: as good as can be measured) and by the swap test."""
    control = scores.get("control") or {}
    gain, swap = control.get("gain"), control.get("swap_lost")
    if gain is None:
        return None
    reason = f"control gain {_span(gain)}: 0 is a reference that is ignored, 1 what can be measured at best"
    level = _below(gain["mean"], GAIN_WARN, GAIN_BAD)
    if swap is not None and swap["low"] is not None and swap["low"] <= 0:
        level = "bad"
        reason += f"; another clip's reference does as well ({_span(swap)} lost)"
    return (
        level,
        reason,
        "Train longer or with a higher rank or learning rate; check in the contact sheet that references fit their "
        "targets, and that the reference factors are those of the adapter. If only the swap fails, the captions tell "
        "too much: train with shorter or empty ones.",
    )


def _strength(scores: Mapping[str, Any]) -> Found | None:
    """By the null test (strength 0 must equal no reference) and by the order of the strength curve."""
    control = scores.get("control") or {}
    null, curve = control.get("null"), control.get("curve") or {}
    if null is None:
        return None
    level = _above(null["mean"], NULL_WARN, NULL_BAD)
    reason = f"strength 0 differs from no reference by {_span(null)} levels"
    order = curve.get("spearman")
    if order is not None:
        reason += f"; rank correlation of strength and adherence {_span(order)}"
        if order["mean"] < MONOTONE_WARN and level == "ok":
            level = "warn"
    return (
        level,
        reason,
        "A null difference is a fault of the program that samples: update it. A curve without order means that the "
        "reference acts little; see control not followed, and expect most of the effect at small strengths.",
    )


def _flicker(scores: Mapping[str, Any]) -> Found | None:
    """By luma flicker beyond that of the VAE round trip."""
    ours, ceiling = _mean(scores, ADAPTER_REFERENCE, "flicker"), _mean(scores, CEILING, "flicker")
    if ours is None or ceiling is None:
        return None
    return (
        _above(ours - ceiling, FLICKER_WARN, FLICKER_BAD),
        f"luma flicker {ours:.2f} levels, {ceiling:.2f} at the ceiling",
        "Train on longer windows, sample with more steps, and look for flicker in the references (auto exposure, "
        "per-frame extraction): the adapter copies it.",
    )


def _artefacts(scores: Mapping[str, Any]) -> Found | None:
    """By sharpness against the ceiling's, either way: invented detail or blur."""
    ours, ceiling = _mean(scores, ADAPTER_REFERENCE, "sharpness"), _mean(scores, CEILING, "sharpness")
    if ours is None or ceiling is None or min(ours, ceiling) <= 0:
        return None
    ratio = ours / ceiling
    remedy = (
        "Detail that is not in the target: lower the learning rate or the rank, stop earlier, lower guidance."
        if ratio > 1
        else "Blur: train longer, sample with more steps, and check that the targets themselves are sharp."
    )
    level = _above(max(ratio, 1 / ratio), SHARP_WARN, SHARP_BAD)
    return level, f"sharpness {ratio:.2f} of the ceiling's (1 is right, above: invented detail, below: blur)", remedy


def _rigid(scores: Mapping[str, Any]) -> Found | None:
    """By what seeds still change under control, as a share of what they change without; wanted in restoration."""
    diversity = scores.get("diversity") or {}
    ours, free = diversity.get(ADAPTER_REFERENCE), diversity.get(BASE)
    if ours is None or free is None or free["mean"] <= 0:
        return None
    share = ours["mean"] / free["mean"]
    reason = f"seeds change {share:.0%} of what they change without adapter and reference"
    if scores["family"] in FIDELITY:
        return "ok", f"{reason}; {scores['family']} has one right answer, so that little is wanted", ""
    half = ((scores.get("control") or {}).get("curve") or {}).get("s50")
    at = "" if half is None else f" (half of the effect is reached at {half:.2f})"
    return (
        _below(share, RIGID_WARN, RIGID_BAD),
        reason,
        f"Sample at a lower strength{at}, stop training earlier or lower the rank, vary the captions.",
    )


def _memory(scores: Mapping[str, Any]) -> Found | None:
    """By the peak of this evaluation against what the device has."""
    memory = scores["provenance"].get("memory")
    if memory is None:
        return None
    share = memory["peak_bytes"] / memory["device_bytes"]
    return (
        _above(share, MEMORY_WARN, MEMORY_BAD),
        f"peak {memory['peak_bytes'] / 2**30:.1f} of {memory['device_bytes'] / 2**30:.1f} GiB",
        "Lower eval.batch_size, choose model.precision=fp8, or prepare smaller or shorter windows.",
    )


SYMPTOMS = {
    NOT_FOLLOWED: _control,
    "strength without effect": _strength,
    "flicker": _flicker,
    "artefacts": _artefacts,
    "too rigid": _rigid,
    "memory": _memory,
}
