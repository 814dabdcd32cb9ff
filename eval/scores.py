"""Assemble scores.json: all results with intervals, and their provenance. Schema: scores.schema.json."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
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
    CLASSIC,
    EMPTY_PROMPT,
    FLOOR,
    INPUT,
    SWAPPED,
)
from eval.judging.control import collect_evidence, control_scores, mask_scores
from eval.judging.verdicts import MIN_RECORDINGS, MIN_WINDOWS, Verdict, is_decided, judge, tally
from eval.metrics import Suite
from eval.scoring.scorer import Results
from eval.statistics.estimates import Estimate, Values, estimate_or_none
from iclora_train.config import Config
from iclora_train.core.fingerprint import config_hash
from iclora_train.core.scores import SCHEMA

ROWS = (ADAPTER_REFERENCE, BASE_REFERENCE, BASE, ADAPTER_ONLY, SWAPPED, EMPTY_PROMPT, INPUT, CLASSIC, CEILING, FLOOR)


def identity(source: ClipSource, suite: Suite) -> dict[str, Any]:
    """The entries of scores.json that are known before anything is sampled, and that a comparison requires equal."""
    windows, donors = source.held_out.windows, source.held_out.windows_and_donors
    return {
        "schema": SCHEMA,
        "primary": suite.primary,
        "clips": [{"key": w.key, "source": w.source, "partner": donors[w.partner].key} for w in windows],
        "seeds": source.seeds,
        "provenance": {"protocol": PROTOCOL, "shards": source.held_out.fingerprint},
    }


def assemble(config: Config, source: ClipSource, suite: Suite, results: Results) -> dict[str, Any]:
    """The content of scores.json without `flags`, `simple` and the wall-clock time."""
    windows, base, known = source.held_out.windows, source.base, identity(source, suite)
    evidence = collect_evidence(
        results, config.eval.strengths, [w.source for w in windows], suite.metrics, suite.adherence
    )
    rows = {name: results.rows[name] for name in ROWS if name in results.rows}
    thresholds = config.eval.thresholds
    return {
        "schema": known["schema"],
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
        "clips": known["clips"],
        "seeds": known["seeds"],
        "metrics": {m.key: {k: v for k, v in asdict(m).items() if k != "key"} for m in suite.metrics},
        "not_run": [asdict(missing) for missing in suite.not_run],
        "cells": {name: _estimates(row) for name, row in rows.items()},
        **_by_source(config, [w.key for w in windows], rows),
        "classic": results.classic.json_facts,
        "strength": [{"s": s, "metrics": _estimates(row)} for s, row in evidence.strengths],
        "control": control_scores(results, evidence),
        "diversity": _estimates(results.diversity),
        "mask": mask_scores(results, evidence, source.band_pixels, base.geometry.temporal),
        "verdicts": judge(config.task.family, evidence, thresholds),
        "thresholds": {**asdict(thresholds), "changed": thresholds.changed},
        "windows": {name: {metric: _numbers(values) for metric, values in row.items()} for name, row in rows.items()},
        "frames": {name: _rounded(frames) for name, frames in results.frames.items()},
        "provenance": _provenance(config, source),
        "timings": {
            "sampling_seconds": results.seconds,
            "seconds_per_clip": {name: round(s / results.clips, 4) for name, s in results.seconds.items()},
        },
    }


def _estimates(row: Mapping[str, Values]) -> dict[str, Estimate]:
    """Estimates of the metrics that were measured on at least one window."""
    estimates = {metric: estimate_or_none(values) for metric, values in row.items()}
    return {metric: value for metric, value in estimates.items() if value is not None}


def _by_source(config: Config, keys: Sequence[str], rows: Mapping[str, Mapping[str, Values]]) -> dict[str, Any]:
    """Of a run with data.sources, the entry `sources`: `cells` of the windows of each source that has windows."""
    if config.data.sources is None:
        return {}
    names = np.array([key.partition("-")[0] for key in keys])
    return {
        "sources": {
            source: {
                name: _estimates({metric: values[names == source] for metric, values in row.items()})
                for name, row in rows.items()
            }
            for source in sorted(set(names.tolist()))
        }
    }


def _numbers(values: Values) -> list[float | None]:
    return [None if np.isnan(x) else round(float(x), 6) for x in values]


def _rounded(frames: Mapping[str, list[list[float] | None]]) -> dict[str, list[list[float] | None]]:
    return {
        metric: [None if series is None else [round(x, 4) for x in series] for series in windows]
        for metric, windows in frames.items()
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
    """Peak and total GPU memory; None on a CPU."""
    if source.device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(source.device).total_memory
    return {"peak_bytes": torch.cuda.max_memory_allocated(source.device), "device_bytes": total}


def headline(scores: Mapping[str, Any]) -> list[str]:
    """Console lines: every verdict, the number of claims that hold, each source's main figure, changed thresholds."""
    verdicts = scores["verdicts"]
    changed = scores["thresholds"]["changed"]
    note = [f"thresholds changed from the defaults: {', '.join(changed)}"] if changed else []
    sources = [
        f"source {source}: {scores['primary']} {format_estimate(cells[ADAPTER_REFERENCE][scores['primary']])}"
        for source, cells in scores.get("sources", {}).items()
        if scores["primary"] in cells[ADAPTER_REFERENCE]
    ]
    if not all(map(is_decided, verdicts)):
        note.append(f"a claim is undecided below {MIN_WINDOWS} windows or {MIN_RECORDINGS} recordings")
    return [*map(verdict_line, verdicts), tally(verdicts), *sources, *note]


def verdict_line(verdict: Verdict) -> str:
    """`pass  gain_over_input  1.20 [0.90, 1.50] (n 24)  required >= 0.7 dB  p 0.0001`."""
    mark = "pass" if verdict["passed"] else "FAIL" if is_decided(verdict) else "open"
    p = "" if verdict["p_holm"] is None else f"  p {verdict['p_holm']:.2g}"
    return f"{mark}  {verdict['name']:18} {format_estimate(verdict['value'])}  required {verdict['threshold']}{p}"


def format_estimate(value: Estimate, digits: int = 3) -> str:
    """`mean [low, high] (n)`, without the interval for a single unit."""
    if value["low"] is None or value["high"] is None:
        return f"{value['mean']:.{digits}f} (n {value['n']})"
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}] (n {value['n']})"
