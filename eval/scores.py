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
import torch

from eval.cells import BASE, BASE_REFERENCE, NO_REFERENCE, OURS, SWAPPED, at_strength, sweep
from eval.metrics import CANNY
from eval.render import PROTOCOL, Renderer
from eval.scoring import CEILING, FLOOR, INPUT, Measured
from eval.statistics import Estimate, Values, estimate, ratio_units
from eval.verdicts import PRIMARY, Results, Verdict, judge
from iclora_train.config import Config
from iclora_train.files import write_whole
from iclora_train.fingerprint import config_hash

ROWS = (OURS, BASE_REFERENCE, BASE, NO_REFERENCE, SWAPPED, INPUT, CEILING, FLOOR)


def assemble(config: Config, renderer: Renderer, measured: Measured, adapter: Path, spent: float) -> dict[str, Any]:
    """The content of scores.json. `spent`: wall-clock seconds of this run, cached cells not counted again."""
    windows, base = renderer.held.windows, renderer.base
    levels = sweep(config.eval.strengths)
    strengths = [(s, measured.cells[at_strength(s).name]) for s in levels]
    return {
        "schema": 1,
        "task": config.task.name,
        "family": config.task.family,
        "primary": PRIMARY[config.task.family],
        "base": {
            "name": base.name,
            "family": base.family,
            "version": base.version,
            "fingerprint": base.fingerprint,
        },
        "adapter": {
            "path": str(adapter),
            "sha256": renderer.adapter_sha256,
            "metadata": dict(sorted(renderer.adapter.metadata.items())),
        },
        "clips": [{"key": w.key, "source": w.source, "partner": windows[w.partner].key} for w in windows],
        "seeds": list(config.eval.seeds),
        "cells": {name: _estimates(measured.cells[name]) for name in ROWS},
        "strength": [{"s": s, "metrics": _estimates(row)} for s, row in strengths],
        "mask": _mask(measured.mask, renderer.band),
        "verdicts": judge(
            config.task.family, Results(measured.cells, strengths, measured.mask, [w.source for w in windows])
        ),
        "windows": {
            name: {metric: [round(float(x), 6) for x in values] for metric, values in measured.cells[name].items()}
            for name in ROWS
        },
        "provenance": _provenance(config, renderer),
        "timings": {"wall_seconds": round(spent, 1), "sampling_seconds": measured.seconds},
    }


def _estimates(row: Mapping[str, Values]) -> dict[str, Estimate]:
    return {metric: estimate(values) for metric, values in row.items()}


def _mask(mask: Mapping[str, Values], band: int) -> dict[str, Any]:
    """Changes in levels and their ratios, as docs/evaluation.md defines them."""
    return {
        "band_pixels": band,
        "inside": estimate(mask["inside"]),
        "outside": estimate(mask["outside"]),
        "leakage": estimate(ratio_units(mask["outside"], mask["inside"])),
        "kept": estimate(mask["kept"]),
        "dropped": estimate(mask["dropped"]),
        "disturbance": estimate(ratio_units(mask["kept"], mask["dropped"])),
        "effect_kept": estimate(ratio_units(mask["inside"], mask["full_inside"])),
        "leakage_of_full": estimate(ratio_units(mask["outside"], mask["full_outside"])),
        "null_change": estimate(mask["null"]),
    }


def _provenance(config: Config, renderer: Renderer) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": {section: asdict(getattr(config, section)) for section in ("task", "data", "eval", "sample")},
        "config_hash": config_hash(config),
        "shards": renderer.held.fingerprint,
        "sigmas": renderer.sigmas,
        "canny": list(CANNY),
        "device": torch.cuda.get_device_name() if renderer.device.type == "cuda" else "cpu",
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "opencv": cv2.__version__,
            **{name: version(name) for name in ("torch", "diffusers", "peft", "numpy")},
        },
    }


def write(path: Path, scores: Mapping[str, Any]) -> None:
    """Write scores.json, whole or not at all."""
    with write_whole(path) as file:
        file.write((json.dumps(scores, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def headline(scores: Mapping[str, Any]) -> list[str]:
    """The verdicts as lines for the console."""
    return [verdict_line(verdict) for verdict in scores["verdicts"]]


def verdict_line(verdict: Verdict) -> str:
    """`pass  gain_over_input  +1.20 [0.90, 1.50] (n 24)  wanted >= 0.7 dB`."""
    mark = "pass" if verdict["passed"] else "FAIL"
    return f"{mark}  {verdict['name']:18} {show(verdict['value'])}  wanted {verdict['threshold']}"


def show(figure: Estimate, digits: int = 3) -> str:
    """`mean [low, high] (n)`, or without the interval where there is one unit."""
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['mean']:.{digits}f} (n {figure['n']})"
    return f"{figure['mean']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}] (n {figure['n']})"
