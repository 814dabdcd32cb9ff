"""scores.json: all that was measured, as numbers with intervals, and on what. Its schema is scores.schema.json."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from eval.clips.clip_source import PROTOCOL, ClipSource
from eval.clips.conditions import (
    ADAPTER_ONLY,
    ADAPTER_REFERENCE,
    BASE,
    BASE_REFERENCE,
    CEILING,
    EMPTY_PROMPT,
    FLOOR,
    INPUT,
    SWAPPED,
)
from eval.judging.control import collect_evidence, control_figures, estimate_or_none, mask_figures
from eval.judging.verdicts import Verdict, judge
from eval.metrics import Suite
from eval.scoring.scorer import Results
from eval.statistics.estimates import Estimate, Values
from iclora_train.config import Config
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.fingerprint import config_hash

ROWS = (ADAPTER_REFERENCE, BASE_REFERENCE, BASE, ADAPTER_ONLY, SWAPPED, EMPTY_PROMPT, INPUT, CEILING, FLOOR)


def assemble(config: Config, source: ClipSource, suite: Suite, results: Results) -> dict[str, Any]:
    """The content of scores.json but for `flags`, `simple` and the wall-clock time."""
    windows, base = source.held_out.windows, source.base
    found = collect_evidence(
        results, config.eval.strengths, [w.source for w in windows], suite.metrics, suite.adherence
    )
    rows = {name: results.rows[name] for name in ROWS if name in results.rows}
    thresholds = config.eval.thresholds
    return {
        "schema": 2,
        "task": config.task.name,
        "family": config.task.family,
        "primary": suite.primary,
        "adherence": suite.adherence,
        "base": {
            "name": base.name,
            "family": base.family,
            "version": base.version,
            "fingerprint": base.fingerprint,
        },
        "adapter": source.judged.json_facts,
        "clips": [{"key": w.key, "source": w.source, "partner": windows[w.partner].key} for w in windows],
        "seeds": source.seeds,
        "metrics": {m.key: {k: v for k, v in asdict(m).items() if k != "key"} for m in suite.metrics},
        "not_run": [asdict(absent) for absent in suite.not_run],
        "cells": {name: _estimates(row) for name, row in rows.items()},
        "strength": [{"s": s, "metrics": _estimates(row)} for s, row in found.strengths],
        "control": control_figures(results, found),
        "diversity": _estimates(results.diversity),
        "mask": mask_figures(results, found, source.band_pixels, base.geometry.temporal),
        "verdicts": judge(config.task.family, found, thresholds),
        "thresholds": {**asdict(thresholds), "changed": thresholds.changed},
        "windows": {name: {metric: _numbers(units) for metric, units in row.items()} for name, row in rows.items()},
        "frames": {name: _rounded(frames) for name, frames in results.frames.items()},
        "provenance": _provenance(config, source),
        "timings": {
            "sampling_seconds": results.seconds,
            "seconds_per_clip": {name: round(s / results.clips, 4) for name, s in results.seconds.items()},
        },
    }


def _estimates(row: Mapping[str, Values]) -> dict[str, Estimate]:
    """Of every metric that was measured on some window."""
    found = {metric: estimate_or_none(units) for metric, units in row.items()}
    return {metric: figure for metric, figure in found.items() if figure is not None}


def _numbers(units: Values) -> list[float | None]:
    return [None if np.isnan(x) else round(float(x), 6) for x in units]


def _rounded(frames: Mapping[str, list[list[float] | None]]) -> dict[str, list[list[float] | None]]:
    return {
        metric: [None if series is None else [round(x, 4) for x in series] for series in of_windows]
        for metric, of_windows in frames.items()
    }


def _provenance(config: Config, source: ClipSource) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": {section: asdict(getattr(config, section)) for section in ("task", "data", "eval", "sample")},
        "config_hash": config_hash(config),
        "shards": source.held_out.fingerprint,
        "sigmas": source.sigmas,
        "precision": source.precision,
        "note": source.judged.note,
        "device": torch.cuda.get_device_name() if source.device.type == "cuda" else "cpu",
        "memory": _memory(source),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "opencv": cv2.__version__,
            **{name: version(name) for name in ("torch", "diffusers", "peft", "numpy")},
        },
    }


def _memory(source: ClipSource) -> dict[str, int] | None:
    """Peak and size of the GPU's memory; None on a CPU."""
    if source.device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(source.device).total_memory
    return {"peak_bytes": torch.cuda.max_memory_allocated(source.device), "device_bytes": total}


def write(path: Path, scores: Mapping[str, Any]) -> None:
    """Write scores.json, whole or not at all."""
    with write_atomic(path) as file:
        file.write((json.dumps(scores, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def headline(scores: Mapping[str, Any]) -> list[str]:
    """The verdicts as lines for the console, and what they count."""
    verdicts = scores["verdicts"]
    changes = scores["thresholds"]["changed"]
    note = [f"thresholds that are not the usual ones: {', '.join(changes)}"] if changes else []
    return [*map(verdict_line, verdicts), f"{sum(v['passed'] for v in verdicts)} of {len(verdicts)} claims hold", *note]


def verdict_line(verdict: Verdict) -> str:
    """`pass  gain_over_input  +1.20 [0.90, 1.50] (n 24)  wanted >= 0.7 dB  p 0.0001`."""
    mark = "pass" if verdict["passed"] else "FAIL"
    p = "" if verdict["p_holm"] is None else f"  p {verdict['p_holm']:.2g}"
    return f"{mark}  {verdict['name']:18} {show(verdict['value'])}  wanted {verdict['threshold']}{p}"


def show(figure: Estimate, digits: int = 3) -> str:
    """`mean [low, high] (n)`, or without the interval where there is one unit."""
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['mean']:.{digits}f} (n {figure['n']})"
    return f"{figure['mean']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}] (n {figure['n']})"
