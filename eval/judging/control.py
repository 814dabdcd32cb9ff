"""Is control respected: what the reference gains, what a wrong one loses, how strength and masks act. Draws the
evidence for the claims from the results, and writes `control` and `mask` of scores.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.clips.attention_masks import fade_weights
from eval.clips.conditions import ADAPTER_REFERENCE, BASE, CEILING, FADE_MASK, SWAPPED, at_strength, strength_sweep
from eval.judging.claims import Evidence
from eval.judging.strength_curve import fade_correlation, response_curve
from eval.metrics import Metric
from eval.scoring.scorer import Results
from eval.statistics.estimates import Estimate, Values, drop_nan, estimate, ratio_per_unit


def collect_evidence(
    results: Results, strengths: Sequence[float], sources: Sequence[str], metrics: Sequence[Metric], adherence: str
) -> Evidence:
    """All that claims are drawn from. strengths: as set; sources: the recording of each window."""
    levels = [s for s in strength_sweep(strengths) if at_strength(s).name in results.rows]  # falling
    rows = [(s, results.rows[at_strength(s).name]) for s in levels]
    lower = frozenset(metric.key for metric in metrics if metric.better == "low")
    effects = None
    if len(rows) > 1 and all(adherence in row for _, row in rows):
        sign = -1 if adherence in lower else 1
        effects = np.stack([sign * row[adherence] for _, row in reversed(rows)], axis=1)  # (windows, strengths)
    return Evidence(
        rows=results.rows,
        strengths=rows,
        changes=results.changes,
        sources=sources,
        adherence=adherence,
        effects=effects,
        curve=None if effects is None else response_curve(levels[::-1], effects),
        fade=_fade_effects(results),
        lower=lower,
    )


def _fade_effects(results: Results) -> Values | None:
    """Share of the reference's effect on adherence that is there under the fade mask, (windows, latent frames); NaN in
    latent frames where the reference has none: tracks begin where they are asked to, with it or without."""
    if FADE_MASK not in results.by_latent_frame:
        return None
    faded, none, full = (results.by_latent_frame[name] for name in (FADE_MASK, at_strength(0).name, ADAPTER_REFERENCE))
    whole = full - none  # (windows, latent frames)
    shares = [ratio_per_unit(faded[:, k] - none[:, k], whole[:, k]) for k in range(full.shape[1])]
    acts = (np.nan_to_num(whole) != 0).any(axis=0)  # (latent frames,)
    return np.where(acts, np.stack(shares, axis=1), np.nan)


def control_figures(results: Results, found: Evidence) -> dict[str, Any] | None:
    """gain: share of the way from the base without reference to the ceiling; swap_lost: adherence lost with
    another recording's reference; swap_won: by how much that output is nearer to the clip whose reference it was given
    than to its own; null, drift: levels. None for clips of which one condition is known."""
    if SWAPPED not in results.rows:
        return None
    name, sign = found.adherence, -1 if found.adherence in found.lower else 1
    swapped, donor = results.rows[SWAPPED].get(name), results.donor.get(name)
    return {
        "gain": estimate_or_none(found.share(name, ADAPTER_REFERENCE, BASE, CEILING)),
        "swap_lost": estimate_or_none(found.difference(name, ADAPTER_REFERENCE, SWAPPED)),
        "swap_won": estimate_or_none(None if swapped is None or donor is None else sign * (donor - swapped)),
        "null": estimate(results.changes["null"]),
        "drift": estimate(results.changes["drift"]),
        "curve": found.curve,
    }


def mask_figures(results: Results, found: Evidence, band: int, temporal: int) -> dict[str, Any] | None:
    """Changes in levels and their ratios, as docs/evaluation.md defines them. None for clips without masked cells."""
    row = results.changes
    if not row:
        return None
    half = {name: estimate(row[name]) for name in ("inside", "outside", "kept", "dropped")}
    ratios = {
        "leakage": ("outside", "inside"),
        "disturbance": ("kept", "dropped"),
        "effect_kept": ("inside", "full_inside"),
        "leakage_of_full": ("outside", "full_outside"),
    }
    half |= {name: estimate(ratio_per_unit(row[above], row[below])) for name, (above, below) in ratios.items()}
    return {
        "band_pixels": band,
        "band_frames": temporal,
        "half": {**half, "null_change": estimate(row["null"])},
        "fade": None if found.fade is None else _fade(found.fade),
    }


def _fade(effects: Values) -> dict[str, Any]:
    weights = fade_weights(effects.shape[1])
    return {
        "correlation": estimate_or_none(fade_correlation(weights, effects)),
        "blocks": [
            {"weight": w, "effect": estimate_or_none(of_block)} for w, of_block in zip(weights, effects.T, strict=True)
        ],
    }


def estimate_or_none(units: Values | None) -> Estimate | None:
    """An estimate, or None where nothing was measured."""
    return None if units is None or len(drop_nan(units)) == 0 else estimate(units)
