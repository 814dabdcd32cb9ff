"""Symptoms: common complaints about control adapters, whether this adapter has them, and what to do about each.

A symptom is computed from scores.json alone: its level, the values that decide it, and a remedy. A symptom whose values
were not measured (for example diversity, which needs two seeds) is left out; the report lists it as not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from eval.clips.conditions import ADAPTER_REFERENCE, BASE, CEILING
from eval.statistics.estimates import Estimate

FIDELITY = ("restoration", "colorize")  # families with one right answer

GAIN_BAD, GAIN_WARN = 0.1, 0.3  # control gain; below 0.1 the effect is hard to see
NULL_WARN, NULL_BAD = 0.5, 2.0  # levels; rounding to 8 bits alone moves a pixel by up to half a level
MONOTONE_WARN = 0.5  # Spearman of strength and adherence; seven strengths in random order exceed it 1 time in 8
FLICKER_WARN, FLICKER_BAD = 1.0, 4.0  # levels of luma above the ceiling; one is the smallest step of a display
SHARP_WARN, SHARP_BAD = 1.5, 2.5  # Laplacian variance of output / ceiling or its inverse; a 0.5 px blur gives 2.2
RIGID_WARN, RIGID_BAD = 0.25, 0.1  # diversity over seeds relative to sampling without adapter and reference
MEMORY_WARN, MEMORY_BAD = 0.85, 0.95  # peak share of the device's memory; above it a larger clip will not fit

Level = Literal["ok", "warn", "bad"]


class Symptom(TypedDict):
    """One symptom. reason: the values that decided its level; remedy: what to try, empty if the level is ok."""

    symptom: str
    level: Level
    reason: str
    remedy: str


def find_symptoms(scores: Mapping[str, Any]) -> list[Symptom]:
    """The symptoms that can be judged from scores.json (schema 2), in the order of `SYMPTOMS`."""
    findings = ((symptom, check(scores)) for symptom, check in SYMPTOMS.items())
    return [_symptom(symptom, *finding) for symptom, finding in findings if finding is not None]


Finding = tuple[Level, str, str]  # level, reason, remedy


def _symptom(symptom: str, level: Level, reason: str, remedy: str) -> Symptom:
    return Symptom(symptom=symptom, level=level, reason=reason, remedy="" if level == "ok" else remedy)


def _level_if_above(value: float, warn: float, bad: float) -> Level:
    """The level of a value that should be small."""
    return "bad" if value > bad else "warn" if value > warn else "ok"


def _level_if_below(value: float, warn: float, bad: float) -> Level:
    """The level of a value that should be large."""
    return "bad" if value < bad else "warn" if value < warn else "ok"


def _with_interval(value: Estimate) -> str:
    if value["low"] is None or value["high"] is None:
        return f"{value['mean']:.2f}"
    return f"{value['mean']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def _mean(scores: Mapping[str, Any], row: str, metric: str) -> float | None:
    value = scores["cells"].get(row, {}).get(metric)
    return None if value is None else float(value["mean"])


def _control(scores: Mapping[str, Any]) -> Finding | None:
    """Judged by the control gain (0: the reference is ignored, 1: as good as the VAE round trip) and by the swap."""
    control = scores.get("control") or {}
    gain, swap = control.get("gain"), control.get("swap_lost")
    if gain is None:
        return None
    reason = f"control gain {_with_interval(gain)}; 0: the reference is ignored, 1: as good as the VAE round trip"
    level = _level_if_below(gain["mean"], GAIN_WARN, GAIN_BAD)
    if swap is not None and swap["low"] is not None and swap["low"] <= 0:
        level = "bad"
        reason += f"; the reference of another clip works as well (loss {_with_interval(swap)})"
    return (
        level,
        reason,
        "Train longer, or with a higher rank or learning rate. Check in the contact sheet that references match their "
        "targets, and that the task has the adapter's reference factors. If only the swap fails, the captions "
        "describe the clip too well: train with shorter or empty captions.",
    )


def _strength(scores: Mapping[str, Any]) -> Finding | None:
    """Judged by the null test (strength 0 must equal no reference) and by the order of the strength curve."""
    control = scores.get("control") or {}
    null, curve = control.get("null"), control.get("curve") or {}
    if null is None:
        return None
    level = _level_if_above(null["mean"], NULL_WARN, NULL_BAD)
    reason = f"strength 0 differs from no reference by {_with_interval(null)} levels"
    correlation = curve.get("spearman")
    if correlation is not None:
        reason += f"; rank correlation of strength and adherence {_with_interval(correlation)}"
        if correlation["mean"] < MONOTONE_WARN and level == "ok":
            level = "warn"
    return (
        level,
        reason,
        "A null difference is a bug in the sampling program: update it. A curve without order means that the reference "
        "has little effect: see the symptom `control not followed`, and expect most of the effect at small strengths.",
    )


def _flicker(scores: Mapping[str, Any]) -> Finding | None:
    """Judged by luma flicker beyond the flicker of the VAE round trip."""
    output, ceiling = _mean(scores, ADAPTER_REFERENCE, "flicker"), _mean(scores, CEILING, "flicker")
    if output is None or ceiling is None:
        return None
    return (
        _level_if_above(output - ceiling, FLICKER_WARN, FLICKER_BAD),
        f"luma flicker {output:.2f} levels, VAE round trip {ceiling:.2f}",
        "Train on longer windows, sample with more steps, and check the references for flicker (auto exposure, "
        "per-frame extraction): the adapter copies it.",
    )


def _artefacts(scores: Mapping[str, Any]) -> Finding | None:
    """Judged by sharpness relative to the VAE round trip: above is invented detail, below is blur."""
    output, ceiling = _mean(scores, ADAPTER_REFERENCE, "sharpness"), _mean(scores, CEILING, "sharpness")
    if output is None or ceiling is None or min(output, ceiling) <= 0:
        return None
    ratio = output / ceiling
    remedy = (
        "Detail that is not in the target: lower the learning rate or the rank, stop earlier, lower guidance."
        if ratio > 1
        else "Blur: train longer, sample with more steps, and check that the targets themselves are sharp."
    )
    level = _level_if_above(max(ratio, 1 / ratio), SHARP_WARN, SHARP_BAD)
    reason = f"sharpness {ratio:.2f} of the VAE round trip (1 is right, above 1: invented detail, below 1: blur)"
    return level, reason, remedy


def _rigid(scores: Mapping[str, Any]) -> Finding | None:
    """Judged by the diversity over seeds relative to the base alone. Restoration and colorize need little diversity."""
    diversity = scores.get("diversity") or {}
    output, base = diversity.get(ADAPTER_REFERENCE), diversity.get(BASE)
    if output is None or base is None or base["mean"] <= 0:
        return None
    share = output["mean"] / base["mean"]
    reason = f"diversity over seeds is {share:.0%} of that without adapter and reference"
    if scores["family"] in FIDELITY:
        return "ok", f"{reason}; {scores['family']} has one right answer, so little diversity is right", ""
    s50 = ((scores.get("control") or {}).get("curve") or {}).get("s50")
    hint = "" if s50 is None else f" (half of the effect is reached at {s50:.2f})"
    return (
        _level_if_below(share, RIGID_WARN, RIGID_BAD),
        reason,
        f"Sample at a lower strength{hint}, stop training earlier or lower the rank, vary the captions.",
    )


def _memory(scores: Mapping[str, Any]) -> Finding | None:
    """Judged by the peak memory of this evaluation relative to the memory of the device."""
    memory = scores["provenance"].get("memory")
    if memory is None:
        return None
    share = memory["peak_bytes"] / memory["device_bytes"]
    return (
        _level_if_above(share, MEMORY_WARN, MEMORY_BAD),
        f"peak {memory['peak_bytes'] / 2**30:.1f} of {memory['device_bytes'] / 2**30:.1f} GiB",
        "Lower eval.batch_size, set model.precision=fp8, or prepare smaller or shorter windows.",
    )


SYMPTOMS = {
    "control not followed": _control,
    "strength without effect": _strength,
    "flicker": _flicker,
    "artefacts": _artefacts,
    "too rigid": _rigid,
    "memory": _memory,
}
