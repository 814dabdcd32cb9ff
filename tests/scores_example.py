"""A random scores.json of schema 2, and matching clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from eval.clips.conditions import FADE_MASK
from eval.clips.windows import Window
from eval.judging.harm import harm
from eval.judging.symptoms import find_symptoms
from eval.report.exhibits import CONTROL, CONTROL_TARGET, Exhibit
from eval.statistics.estimates import estimate, estimate_by_source

METRICS = {
    "psnr": {"title": "PSNR", "unit": "dB", "better": "high", "group": "picture"},
    "ssim": {"title": "SSIM", "unit": "", "better": "high", "group": "picture"},
    "flicker": {"title": "flicker", "unit": "levels", "better": "low", "group": "time"},
    "sharpness": {"title": "sharpness", "unit": "", "better": None, "group": "picture"},
    "noise": {"title": "noise", "unit": "levels", "better": "low", "group": "picture"},
    "chroma_error": {"title": "chroma error", "unit": "levels", "better": "low", "group": "colour"},
    "warp_error": {"title": "warping error", "unit": "", "better": "low", "group": "time"},
    "spatial_shift": {"title": "spatial shift", "unit": "px", "better": "low", "group": "picture"},
    "level_slope": {"title": "contrast", "unit": "", "better": None, "group": "picture"},
    "level_offset": {"title": "black", "unit": "levels", "better": None, "group": "picture"},
    "level_bend": {"title": "bend", "unit": "levels", "better": None, "group": "picture"},
    "motion": {"title": "motion", "unit": "", "better": None, "group": "time"},
}
LEVEL = {  # condition -> PSNR in dB
    **{"adapter+reference": 31.0, "base+reference": 22.0, "base": 12.0, "adapter": 14.0, "swapped": 11.0},
    **{"empty prompt": 30.0, "input": 27.0, "classic filter": 29.0, "ceiling": 39.0, "floor": 10.0},
}
STRENGTHS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05, 0.0)
FRAMES, SIDE, FPS = 9, 64, 24.0
Near = Callable[..., dict[str, Any]]  # (mean, spread) -> estimate of random values


def example(windows: int = 11) -> dict[str, Any]:
    """Scores of a successful restoration adapter; the worst window is number 3, the best number 5."""
    rng = np.random.default_rng(7)
    skill = rng.normal(0, 1, windows)
    skill[3], skill[5] = -2.5, 2.5

    def row(psnr: float, share: float = 1) -> dict[str, np.ndarray]:
        """share: of the differences between windows that are the adapter's."""
        return {
            "psnr": psnr + share * skill,
            "ssim": 0.02 * (psnr + skill),
            "flicker": 4 - psnr / 12 + rng.normal(0, 0.1, windows),
            "sharpness": psnr / 39 + rng.normal(0, 0.02, windows),
            "noise": rng.normal(0.1, 0.05, windows),
            "chroma_error": np.full(windows, 1 + (39 - psnr) / 60),
            "warp_error": rng.normal(0.1, 0.05, windows),
            "spatial_shift": np.zeros(windows),
            "level_slope": rng.normal(1, 0.01, windows),
            "level_offset": rng.normal(0, 0.5, windows),
            "level_bend": rng.normal(0, 0.5, windows),
            "motion": 1 + rng.normal(0, 0.02, windows),
        }

    table = {name: row(psnr, 0.5 if name in ("input", "classic filter") else 1) for name, psnr in LEVEL.items()}
    gain = table["adapter+reference"]["psnr"] - table["input"]["psnr"] + rng.normal(0, 0.5, windows)
    return finish(table, gain, windows, rng)


def finish(
    table: dict[str, dict[str, np.ndarray]], gain: np.ndarray, windows: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Complete scores.json from its table of conditions."""
    recordings = [f"tape {i // 3}.mov" for i in range(windows)]

    def near(mean: float, spread: float = 0.05) -> dict[str, Any]:
        return dict(estimate(rng.normal(mean, spread, windows), recordings))

    def per_frame(level: float) -> list[list[float]]:
        return [(level + rng.normal(0, 1, FRAMES)).tolist() for _ in range(windows)]

    scores = {
        "schema": 2,
        "task": "deblur <1>",
        "family": "restoration",
        "primary": "psnr",
        "adherence": "psnr",
        "base": {"name": "nano", "family": "nano", "version": "2.3", "fingerprint": "0" * 16},
        "adapter": {"path": "adapter.safetensors", "sha256": "ab" * 32, "metadata": {"rank": "4"}, "foreign": False},
        "clips": [
            {"key": f"clip-{i:05d}", "source": recordings[i], "partner": f"clip-{(i + 3) % windows:05d}"}
            for i in range(windows)
        ],
        "seeds": [0, 1],
        "metrics": METRICS,
        "not_run": [{"metric": "depth_error", "reason": "no weights: see docs/evaluation.md"}],
        "cells": {
            name: {m: dict(estimate(v, recordings)) for m, v in values.items()} for name, values in table.items()
        },
        "classic": {
            **{"filter": "Wiener, disk 3, noise 0.01", "reason": "", "windows": 8},
            "candidates": {"Wiener, disk 3, noise 0.01": 29.0, "unsharp mask": 28.0},
        },
        "strength": [
            {"s": s, "metrics": {"psnr": near(12 + 19 * s**0.3, 1), "ssim": near(0.2 + 0.4 * s**0.3)}}
            for s in STRENGTHS
        ],
        "control": control(near),
        "diversity": {"adapter+reference": near(1.5, 0.1), "base": near(30, 2)},
        "mask": mask(near),
        "verdicts": verdicts(gain, near, recordings),
        "gates": {"outcome": "inconclusive", "not_measured": ["swap_drop"]},
        "thresholds": {"gain_over_input": 0.7, "changed": ["gain_over_input"]},
        "windows": {name: {m: v.tolist() for m, v in values.items()} for name, values in table.items()},
        "frames": {
            "adapter+reference": {"psnr": [*per_frame(31)[:-1], None]},
            "base+reference": {"psnr": per_frame(22)},
        },
        "simple": None,
        "provenance": {
            **{"protocol": 1, "command": "eval conf=deblur", "versions": {"python": "3"}, "shards": {"pairs": "ab"}},
            **{"settings": {"sample": {"steps": 4}}, "precision": "fp32", "device": "cpu", "memory": None},
        },
        "timings": {"wall_seconds": 12.5, "sampling_seconds": {"base": 1.0}, "seconds_per_clip": {"base": 0.1}},
    }
    partners = [clip["partner"] for clip in scores["clips"]]
    scores["likeness"] = {"own": [0.9] * windows, "other": [0.2] * windows, "nearest": partners}
    scores["harm"] = harm(scores)
    return {**scores, "flags": find_symptoms(scores)}


def control(near: Near) -> dict[str, Any]:
    return {
        **{"gain": near(0.6), "swap_lost": near(20, 1), "swap_won": near(15, 1), "null": near(0.01, 0.001)},
        "drift": near(8, 1),
        "curve": {
            **{"spearman": near(0.97, 0.01), "isotonic_r2": near(0.99, 0.001), "page_p": 1e-6},
            **{"dead_zone": 0.0, "s50": 0.07, "saturation": 0.75, "largest_step": 0.41},
        },
    }


def mask(near: Near) -> dict[str, Any]:
    return {
        **{"band_pixels": 8, "band_frames": 4},
        "half": {
            **{"inside": near(20, 2), "outside": near(3, 1), "leakage": near(0.15), "kept": near(2, 0.5)},
            **{"dropped": near(18, 2), "disturbance": near(0.1), "effect_kept": near(0.95)},
            **{"leakage_of_full": near(0.16), "null_change": near(0.01, 0.001)},
        },
        "fade": {
            "correlation": near(0.95, 0.02),
            "blocks": [{"weight": w, "effect": near(w**0.5, 0.1)} for w in (0.0, 0.5, 1.0)],
        },
    }


def verdicts(gain: np.ndarray, near: Near, recordings: list[str]) -> list[dict[str, Any]]:
    """A gate that holds and a diagnostic that fails."""
    return [
        {
            **{"name": "gain_over_input", "kind": "gate", "claim": "PSNR above the <degraded> input"},
            **{"value": estimate(gain, recordings), "by_source": estimate_by_source(gain, recordings)},
            **{"threshold": "≥ 0.7 dB", "outcome": "holds", "passed": True, "p": 1e-5, "p_holm": 2e-5},
        },
        {
            **{"name": "mask_local", "kind": "diagnostic", "claim": "the mask acts where it is"},
            **{"value": near(0.4), "by_source": near(0.4), "threshold": "< 1/3"},
            **{"outcome": "fails", "passed": False, "p": None, "p_holm": None},
        },
    ]


def clip(seed: int, shift: int = 0) -> np.ndarray:
    """Coloured blocks that move by two pixels per frame, from left to right: uint8 (F,H,W,3)."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (8, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([picture[:, 2 * t + shift : 2 * t + shift + SIDE] for t in range(FRAMES)])


def exhibits(scores: dict[str, Any]) -> Iterator[Exhibit]:
    """Clips for every window; worse conditions are darker, so that conditions can be distinguished."""
    brightness = {"reference": 0.8, "target": 1.0, "half mask": 0.7, FADE_MASK: 0.7, CONTROL: 0.4, CONTROL_TARGET: 0.5}
    brightness |= {
        name: LEVEL[name] / 39 for name in ("adapter+reference", "base+reference", "base", "swapped", "ceiling")
    }
    brightness |= {f"strength {s:g}": 0.3 + 0.5 * s for s in STRENGTHS if s < 1}
    for i, facts in enumerate(scores["clips"]):
        window = Window(i, facts["key"], facts["source"], "64x64x9", (i + 3) % len(scores["clips"]))
        clips = {name: (clip(i) * level).astype(np.uint8) for name, level in brightness.items()}
        yield Exhibit(window, FPS, f"blocks <{i}>", clips)
