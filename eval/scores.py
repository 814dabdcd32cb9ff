"""Assemble scores.json: all results with intervals, and their provenance. Schema: scores.schema.json."""

from __future__ import annotations

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
from eval.clips.conditions import judged_row
from eval.clips.windows import Window
from eval.judging.audio_effect import audio_effect, audio_lines
from eval.judging.control import control_scores, mask_scores, recorded_evidence
from eval.judging.equal_frames import changed_outcomes
from eval.judging.paired import paired_differences
from eval.judging.several_controls import control_lines, judged_controls
from eval.judging.stopping import stopping_line
from eval.judging.verdicts import (
    MIN_RECORDINGS,
    MIN_WINDOWS,
    Verdict,
    diagnostics,
    gates_outcome,
    is_small,
    judge,
    tally,
    unmeasured_gates,
)
from eval.metrics import DEFINITIONS, Suite
from eval.metrics.extra import versions_and_weights
from eval.scoring.results import Results
from eval.scoring.tables import looks_of_outputs, read_tables, tables
from eval.statistics.estimates import estimates_of, format_estimate
from eval.statistics.sequential import Looks
from eval.suites import metric_of_each_reference
from iclora_train.config import Config, Thresholds
from iclora_train.core.fingerprint import config_hash
from iclora_train.core.scores import SCHEMA
from iclora_train.data.controls import joint_name


def identity(source: ClipSource, suite: Suite) -> dict[str, Any]:
    """The entries of scores.json that are known before anything is sampled, and that a comparison requires equal."""
    windows, donors = source.held_out.windows, source.held_out.windows_and_donors
    return {
        "schema": SCHEMA,
        "primary": suite.primary,
        "clips": [
            {"key": w.key, "source": w.source, "partner": donors[w.partner].key, **_control_of(source, suite, w)}
            for w in windows
        ],
        "seeds": source.seeds,
        "readers": dict(suite.readers),
        "provenance": {
            "protocol": PROTOCOL,
            "shards": source.held_out.fingerprint,
            **_loss_sigmas(source.config),
            "settings": {"task": asdict(source.config.task), "eval": asdict(source.config.eval)},
        },
    }


def _loss_sigmas(config: Config) -> dict[str, list[float]]:
    """The noise levels of the velocity loss, in a task without a reference."""
    return {} if config.task.has_reference else {"loss_sigmas": list(config.validation.sigmas)}


def _control_of(source: ClipSource, suite: Suite, window: Window) -> dict[str, str]:
    """The entry `control` of a clip, in a set with several controls."""
    controls = [control.name for control in source.held_out.controls[window.key]]
    return {"control": joint_name(controls)} if suite.controls else {}


def assemble(
    config: Config, source: ClipSource, suite: Suite, results: Results, sequential: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The content of scores.json without `flags`, `simple` and the wall-clock time.

    sequential: the entry of that name. Verdicts and estimates are computed from the values per window as they are
    written, so that anyone can do it again.
    """
    base, known = source.base, identity(source, suite)
    scores = {
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
        "audio": _audio(source),
        "clips": known["clips"],
        "seeds": known["seeds"],
        **({} if sequential is None else {"sequential": sequential}),
        "metrics": {m.key: {k: v for k, v in asdict(m).items() if k != "key"} for m in suite.metrics},
        "not_run": [asdict(missing) for missing in suite.not_run],
        "readers": known["readers"],
        **_references(config, suite),
        **_controls(suite, results),
        "classic": results.classic.json_facts,
        **tables(results),
        "thresholds": {**asdict(config.eval.thresholds), "changed": config.eval.thresholds.changed},
        **looks_of_outputs(results),
    }
    return {
        **scores,
        **_by_source(config, scores),
        **({} if results.sets is None else {"sets": results.sets}),
        **_judged_twice(scores, source.band_pixels, base.geometry.temporal),
        "frames": {name: _rounded(frames) for name, frames in results.frames.items()},
        "provenance": _provenance(config, source),
        "timings": {
            "sampling_seconds": results.seconds,
            "seconds_per_clip": {name: round(s / results.clips, 4) for name, s in results.seconds.items()},
        },
    }


def _audio(source: ClipSource) -> dict[str, Any]:
    """The entry `audio`: whether the audio stream was sampled, unknown for clips of another program, and the adapter's
    modules that belong to it."""
    choice = source.audio_choice
    facts = {"stream": None, "reason": None, "in_checkpoint": source.base.has_audio_half}
    return {**(facts if choice is None else choice.json_facts), **source.judged.audio_modules}


def _judged_twice(scores: Mapping[str, Any], band: int, temporal: int) -> dict[str, Any]:
    """As `judged`, with `equal_frames`: the claims that have another outcome without these frames."""
    entries = judged(scores, band, temporal)
    changed = changed_outcomes(scores, entries["verdicts"], lambda others: judged(others, band, temporal)["verdicts"])
    return {"equal_frames": {**scores["equal_frames"], "changed": changed}, **entries}


def _references(config: Config, suite: Suite) -> dict[str, Any]:
    """The entry `references`; none for a task with a single reference."""
    metrics, task = metric_of_each_reference(config.task, suite), config.task
    makers = {name: part.maker for name, part in zip(task.reference_names, task.for_references(), strict=True)}
    return {"references": {n: {"maker": makers[n], "metric": m} for n, m in metrics.items()}} if metrics else {}


def _controls(suite: Suite, results: Results) -> dict[str, Any]:
    """The entry `controls`, before it is judged; none for a set with one control."""
    if not suite.controls:
        return {}
    return {
        "controls": {
            name: {
                "metric": scale.metric,
                "reader": suite.readers[name],
                "windows": list(scale.windows),
                "floor": scale.floor,
                "ceiling": scale.ceiling,
                "in_agreement": scale.is_usable,
            }
            for name, scale in results.scales.items()
        }
    }


def judged(scores: Mapping[str, Any], band: int, temporal: int) -> dict[str, Any]:
    """All entries that follow from the values per window: estimates, verdicts and gates.

    band, temporal: the resolution of a mask in pixels and frames, `mask.band_pixels` and `mask.band_frames`.
    """
    results, evidence, recordings = read_tables(scores), recorded_evidence(scores), _recordings(scores)
    thresholds = Thresholds(**{k: v for k, v in scores["thresholds"].items() if k != "changed"})
    verdicts = judge(scores["family"], evidence, thresholds, _looks(scores))
    unmeasured = unmeasured_gates(scores["family"], evidence, thresholds)
    return {
        "cells": {name: estimates_of(results.rows[name], recordings) for name in scores["windows"]},
        "paired": paired_differences(results.rows, recordings),
        "strength": [{"s": s, "metrics": estimates_of(row, recordings)} for s, row in evidence.strengths],
        "control": control_scores(results, evidence),
        **audio_effect(results.changes, recordings),
        "diversity": estimates_of(results.diversity, recordings),
        "mask": mask_scores(results, evidence, band, temporal),
        "verdicts": verdicts,
        "gates": {"outcome": gates_outcome(verdicts, unmeasured), "not_measured": unmeasured},
        **judged_controls(scores, evidence, verdicts, thresholds, (band, temporal)),
    }


def _looks(scores: Mapping[str, Any]) -> Looks | None:
    """The looks of a sequential evaluation."""
    if (entry := scores.get("sequential")) is None:
        return None
    return Looks(tuple(look["recordings"] for look in entry["looks"]), entry["planned_recordings"])


def _recordings(scores: Mapping[str, Any]) -> list[str]:
    return [clip["source"] for clip in scores["clips"]]


def _by_source(config: Config, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run with data.sources, the entry `sources`: `cells` of the windows of each source that has windows."""
    if config.data.sources is None:
        return {}
    names = np.array([clip["key"].partition("-")[0] for clip in scores["clips"]])
    recordings, rows = np.array(_recordings(scores)), read_tables(scores).rows
    return {
        "sources": {
            source: {
                name: estimates_of(
                    {metric: values[names == source] for metric, values in rows[name].items()},
                    recordings[names == source].tolist(),
                )
                for name in scores["windows"]
            }
            for source in sorted(set(names.tolist()))
        }
    }


def _rounded(frames: Mapping[str, list[list[float] | None]]) -> dict[str, list[list[float] | None]]:
    return {
        metric: [None if series is None else [round(x, 4) for x in series] for series in windows]
        for metric, windows in frames.items()
    }


def _provenance(config: Config, source: ClipSource) -> dict[str, Any]:
    versions, weights = versions_and_weights(config.eval)
    return {
        "protocol": PROTOCOL,
        "definitions": DEFINITIONS,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": {section: asdict(getattr(config, section)) for section in ("task", "data", "eval", "sample")},
        "config_hash": config_hash(config),
        "shards": source.held_out.fingerprint,
        "sigmas": source.sigmas,
        **_loss_sigmas(config),
        "precision": source.precision,
        "note": source.judged.remarks,
        "device": torch.cuda.get_device_name() if source.device.type == "cuda" else "cpu",
        "memory": _memory(source),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "opencv": cv2.__version__,
            **{name: version(name) for name in ("torch", "diffusers", "peft", "numpy")},
            **versions,
        },
        **({"weights": weights} if weights else {}),
    }


def _memory(source: ClipSource) -> dict[str, int] | None:
    """Peak and total GPU memory; None on a CPU."""
    if source.device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(source.device).total_memory
    return {"peak_bytes": torch.cuda.max_memory_allocated(source.device), "device_bytes": total}


def headline(scores: Mapping[str, Any]) -> list[str]:
    """Console lines: every verdict, the gates and diagnostics in numbers, each source's main figure, notes."""
    verdicts = scores["verdicts"]
    changed = scores["thresholds"]["changed"]
    note = [f"thresholds changed from the defaults: {', '.join(changed)}"] if changed else []
    sources = [
        f"source {source}: {scores['primary']} {format_estimate(cells[judged_row(cells)][scores['primary']])}"
        for source, cells in scores.get("sources", {}).items()
        if scores["primary"] in cells[judged_row(cells)]
    ]
    sources += [*control_lines(scores), *audio_lines(scores)]
    if "sequential" in scores:
        note.append(stopping_line(scores["sequential"]))
    if any(map(is_small, verdicts)):
        note.append(f"below {MIN_WINDOWS} windows or {MIN_RECORDINGS} recordings a claim is inconclusive")
    return [*map(verdict_line, verdicts), tally(scores), diagnostics(verdicts), *sources, *note]


def verdict_line(verdict: Verdict) -> str:
    """`holds         gate        gain_over_input  1.20 [0.90, 1.50] (n 24)  required >= 0.7 dB  p 0.0001`.

    p: of a gate after Holm's correction, of a diagnostic uncorrected.
    """
    p_value = verdict["p"] if verdict["p_holm"] is None else verdict["p_holm"]
    p = "" if p_value is None else f"  p {p_value:.2g}"
    required = f"required {verdict['threshold']}"
    mark = verdict["outcome"] if verdict["outcome"] != "fails" else "FAILS"
    return f"{mark:12}  {verdict['kind']:10}  {verdict['name']:18} {format_estimate(verdict['value'])}  {required}{p}"
