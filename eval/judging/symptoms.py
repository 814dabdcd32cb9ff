"""Symptoms: common complaints about control adapters, whether this adapter has them, and what to do about each.

A symptom is computed from scores.json alone: its level, the values that decide it, and a remedy. A symptom whose values
were not measured (for example diversity, which needs two seeds) is left out; the report lists it as not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from eval.clips.conditions import BASE, judged_row
from eval.judging.finding import Finding, Level, level_if_above, level_if_below, with_interval, worst
from eval.judging.lone_windows import exchanged_clips, single_windows
from eval.judging.picture_symptoms import artefacts, flicker, frozen, noise, shifted, wrong_colours, wrong_levels
from eval.judging.window_symptoms import unlike_the_others, worse_than_input

FIDELITY = ("restoration", "colorize")  # families with one right answer

GAIN_BAD, GAIN_WARN = 0.1, 0.3  # control gain; below 0.1 the effect is hard to see
NULL_WARN, NULL_BAD = 0.5, 2.0  # levels; rounding to 8 bits alone moves a pixel by up to half a level
MONOTONE_WARN = 0.5  # Spearman of strength and adherence; seven strengths in random order exceed it 1 time in 8
RIGID_WARN, RIGID_BAD = 0.25, 0.1  # diversity over seeds relative to sampling without adapter and reference
MEMORY_WARN, MEMORY_BAD = 0.85, 0.95  # peak share of the device's memory; above it a larger clip will not fit


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


def _symptom(symptom: str, level: Level, reason: str, remedy: str) -> Symptom:
    return Symptom(symptom=symptom, level=level, reason=reason, remedy="" if level == "ok" else remedy)


def _control(scores: Mapping[str, Any]) -> Finding | None:
    """Judged by the control gain (0: the reference is ignored, 1: as good as the VAE round trip) and by the swap."""
    several = {name: entry["control"] or {} for name, entry in scores.get("controls", {}).items()}
    by_name = several or {"": scores.get("control") or {}}
    judged = [f for name, control in by_name.items() if (f := _gain_and_swap(name, control)) is not None]
    if not judged:
        return None
    return (
        worst(*(level for level, _ in judged)),
        "; ".join([*(reason for _, reason in judged), "0: the reference is ignored, 1: as good as the VAE round trip"]),
        "Train longer, or with a higher rank or learning rate. Check in the contact sheet that references match their "
        "targets, and that the task has the adapter's reference factors. If only the swap fails, the captions "
        "describe the clip too well: train with shorter or empty captions.",
    )


def _gain_and_swap(name: str, control: Mapping[str, Any]) -> tuple[Level, str] | None:
    """Level and reason of one control; name: empty in a set with one control."""
    gain, swap = control.get("gain"), control.get("swap_lost")
    if gain is None:
        return None
    level, reason = level_if_below(gain["mean"], GAIN_WARN, GAIN_BAD), f"{name} control gain {with_interval(gain)}"
    if swap is not None and swap["low"] is not None and swap["low"] <= 0:
        level = "bad"
        reason += f", the reference of another clip may work as well (loss {with_interval(swap)})"
    return level, reason.strip()


def _strength(scores: Mapping[str, Any]) -> Finding | None:
    """Judged by the null test (strength 0 must equal no reference) and by the order of the strength curve."""
    control = scores.get("control") or {}
    null, curve = control.get("null"), control.get("curve") or {}
    if null is None:
        return None
    level = level_if_above(null["mean"], NULL_WARN, NULL_BAD)
    reason = f"strength 0 differs from no reference by {with_interval(null)} levels"
    correlation = curve.get("spearman")
    if correlation is not None:
        reason += f"; rank correlation of strength and adherence {with_interval(correlation)}"
        if correlation["mean"] < MONOTONE_WARN and level == "ok":
            level = "warn"
    return (
        level,
        reason,
        "A null difference is a bug in the sampling program: update it. A curve without order means that the reference "
        "has little effect: see the symptom `control not followed`, and expect most of the effect at small strengths.",
    )


def _rigid(scores: Mapping[str, Any]) -> Finding | None:
    """Judged by the diversity over seeds relative to the base alone. Restoration and colorize need little diversity."""
    diversity = scores.get("diversity") or {}
    output, base = diversity.get(judged_row(diversity)), diversity.get(BASE)
    if output is None or base is None or base["mean"] <= 0:
        return None
    share = output["mean"] / base["mean"]
    reason = f"diversity over seeds is {share:.0%} of that without adapter and reference"
    if scores["family"] in FIDELITY:
        return "ok", f"{reason}; {scores['family']} has one right answer, so little diversity is right", ""
    s50 = ((scores.get("control") or {}).get("curve") or {}).get("s50")
    hint = "" if s50 is None else f" (half of the effect is reached at {s50:.2f})"
    return (
        level_if_below(share, RIGID_WARN, RIGID_BAD),
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
        level_if_above(share, MEMORY_WARN, MEMORY_BAD),
        f"peak {memory['peak_bytes'] / 2**30:.1f} of {memory['device_bytes'] / 2**30:.1f} GiB",
        "Lower eval.batch_size, set model.precision=fp8, or prepare smaller or shorter windows.",
    )


OF_REFERENCES = ("control not followed", "strength without effect", "worse than the input")
SYMPTOMS = {
    "control not followed": _control,
    "strength without effect": _strength,
    "worse than the input": worse_than_input,
    "outliers": unlike_the_others,
    "exchanged clips": exchanged_clips,
    "single windows": single_windows,
    "flicker": flicker,
    "frozen": frozen,
    "artefacts": artefacts,
    "noise": noise,
    "wrong levels": wrong_levels,
    "wrong colours": wrong_colours,
    "shifted picture": shifted,
    "too rigid": _rigid,
    "memory": _memory,
}
