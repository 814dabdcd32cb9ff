"""Collect the evidence for the claims from the results, and compute `control` and `mask` of scores.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eval.clips.attention_masks import fade_weights
from eval.clips.conditions import (
    ADAPTER_REFERENCE,
    BASE,
    CEILING,
    FADE_MASK,
    STRENGTH_PREFIX,
    SWAPPED,
    at_strength,
    strength_sweep,
)
from eval.judging.evidence import ControlEvidence, Evidence
from eval.judging.strength_curve import fade_correlation, response_curve
from eval.metrics import Metric
from eval.scoring.common_scale import ControlScale, recorded_scales
from eval.scoring.results import Results
from eval.scoring.tables import read_tables
from eval.statistics.estimates import Values, estimate, estimate_or_none, mean_of_measured, ratio_per_unit


def collect_evidence(
    results: Results, strengths: Sequence[float], sources: Sequence[str], metrics: Sequence[Metric], adherence: str
) -> Evidence:
    """The evidence for all claims. strengths: `eval.strengths`; sources: the recording of each window."""
    reference = ADAPTER_REFERENCE in results.rows
    names = {s: at_strength(s, reference).name for s in strength_sweep(strengths)}
    falling = [s for s, name in names.items() if name in results.rows]
    rows = [(s, results.rows[names[s]]) for s in falling]
    lower_is_better = frozenset(metric.key for metric in metrics if metric.better == "low")
    effects = None
    if len(rows) > 1 and all(adherence in row for _, row in rows):
        sign = -1 if adherence in lower_is_better else 1
        effects = np.stack([sign * row[adherence] for _, row in reversed(rows)], axis=1)  # (windows, strengths)
    return Evidence(
        rows=results.rows,
        strengths=rows,
        changes=results.changes,
        sources=sources,
        adherence=adherence,
        effects=effects,
        curve=None if effects is None else response_curve(falling[::-1], effects, sources),
        fade=_fade_effects(results, sources),
        lower_is_better=lower_is_better,
        titles={metric.key: metric.title for metric in metrics},
    )


def recorded_evidence(scores: Mapping[str, Any]) -> Evidence:
    """The evidence for all claims from scores.json: `windows`, `per_window`, `clips`, `metrics`, `adherence`,
    `controls`, `references`."""
    results = read_tables(scores)
    names = [name.removeprefix(STRENGTH_PREFIX) for name in results.rows if name.startswith(STRENGTH_PREFIX)]
    metrics = [Metric(key, **facts) for key, facts in scores["metrics"].items()]
    sources = [clip["source"] for clip in scores["clips"]]
    strengths = [float(name) for name in names]
    evidence = collect_evidence(results, strengths, sources, metrics, scores["adherence"])
    references = {name: facts["metric"] for name, facts in scores.get("references", {}).items()}
    evidence = replace(evidence, references=references)
    return with_controls(evidence, results, strengths, metrics, recorded_scales(scores))


def with_controls(
    together: Evidence,
    results: Results,
    strengths: Sequence[float],
    metrics: Sequence[Metric],
    scales: Mapping[str, ControlScale],
) -> Evidence:
    """The evidence of a set with several controls, with that of each control: its windows, by its own metric.

    The fade is put together from the controls, because its shares have no unit. Unchanged for a set with one control.
    """
    if not scales:
        return together
    controls = {}
    for name, scale in scales.items():
        sources = [together.sources[i] for i in scale.windows]
        of_control = collect_evidence(results.of_windows(scale.windows), strengths, sources, metrics, scale.metric)
        controls[name] = ControlEvidence(scale.windows, of_control)
    fade = together.fade
    if fade is not None:
        parts = [np.full_like(fade, np.nan) for _ in controls]
        for part, control in zip(parts, controls.values(), strict=True):
            part[list(control.windows)] = np.nan if control.evidence.fade is None else control.evidence.fade
        fade = mean_of_measured(parts)
    return replace(together, controls=controls, fade=fade)


def _fade_effects(results: Results, recordings: Sequence[str]) -> Values | None:
    """Share of the reference's effect on adherence that remains under the fade mask, (windows, latent frames).

    NaN in latent frames in which the reference has no effect. For example, tracks start at the requested point with or
    without a reference.
    """
    names = (FADE_MASK, at_strength(0).name, ADAPTER_REFERENCE)
    if not results.by_latent_frame.keys() >= set(names):
        return None
    faded, none, full = (results.by_latent_frame[name] for name in names)
    full_effect = full - none  # (windows, latent frames)
    effects = zip((faded - none).T, full_effect.T, strict=True)  # of each latent frame, (windows,)
    shares = [ratio_per_unit(faded_effect, whole, recordings) for faded_effect, whole in effects]
    has_effect = (np.nan_to_num(full_effect) != 0).any(axis=0)  # (latent frames,)
    return np.where(has_effect, np.stack(shares, axis=1), np.nan)


def control_scores(results: Results, evidence: Evidence) -> dict[str, Any] | None:
    """`control` of scores.json; None for clips of another program, which have a single condition. A task without
    references has the drift and the curve of the adapter's strength.

    gain: adherence on a scale from the base without reference (0) to the ceiling (1). swap_lost: adherence lost with
    the reference of another recording. swap_won: how much nearer that output is to the clip of its reference than to
    its own target. null, drift: levels.
    """
    if ADAPTER_REFERENCE not in results.rows:
        drift = estimate_or_none(results.changes.get("drift"), evidence.sources)
        of_reference = dict.fromkeys(("gain", "swap_lost", "swap_won", "null"))
        return {**of_reference, "drift": drift, "curve": evidence.curve}
    if SWAPPED not in results.rows:
        return None
    metric, sign = evidence.adherence, -1 if evidence.adherence in evidence.lower_is_better else 1
    swapped, donor, of = results.rows[SWAPPED].get(metric), results.donor.get(metric), evidence.sources
    return {
        "gain": estimate_or_none(evidence.share(metric, ADAPTER_REFERENCE, BASE, CEILING), of),
        "swap_lost": estimate_or_none(evidence.difference(metric, ADAPTER_REFERENCE, SWAPPED), of),
        "swap_won": estimate_or_none(None if swapped is None or donor is None else sign * (donor - swapped), of),
        "null": estimate_or_none(results.changes.get("null"), of),
        "drift": estimate_or_none(results.changes.get("drift"), of),
        "curve": evidence.curve,
    }


def mask_scores(results: Results, evidence: Evidence, band: int, temporal: int) -> dict[str, Any] | None:
    """`mask` of scores.json (docs/evaluation.md defines the keys); None for clips without masked conditions."""
    changes = results.changes
    if "kept" not in changes:
        return None
    of = evidence.sources
    half = {name: estimate(changes[name], of) for name in ("inside", "outside", "kept", "dropped")}
    ratios = {
        "leakage": ("outside", "inside"),
        "disturbance": ("kept", "dropped"),
        "effect_kept": ("inside", "full_inside"),
        "leakage_of_full": ("outside", "full_outside"),
    }
    half |= {name: estimate(evidence.quotient(changes[a], changes[b]), of) for name, (a, b) in ratios.items()}
    return {
        "band_pixels": band,
        "band_frames": temporal,
        "half": {**half, "null_change": estimate(changes["null"], of)},
        "fade": None if evidence.fade is None else _fade(evidence.fade, of),
    }


def _fade(effects: Values, recordings: Sequence[str]) -> dict[str, Any]:
    """`mask.fade` from effects (windows, latent frames)."""
    weights = fade_weights(effects.shape[1])
    blocks = [
        {"weight": weight, "effect": estimate_or_none(effect, recordings)}
        for weight, effect in zip(weights, effects.T, strict=True)
    ]
    return {"correlation": estimate_or_none(fade_correlation(weights, effects), recordings), "blocks": blocks}
