"""Sets with several controls: `controls` of scores.json, each control by its own metric, and their comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.clips.conditions import ADAPTER_REFERENCE, judged_row
from eval.judging.control import control_scores, mask_scores
from eval.judging.evidence import Evidence
from eval.judging.verdicts import Verdict, are_few, gates_outcome, unmeasured_gates
from eval.scoring.common_scale import ControlScale, with_agreement
from eval.scoring.tables import read_tables
from eval.statistics.estimates import Values, estimates_of, format_estimate
from iclora_train.config import Thresholds


def judged_controls(
    scores: Mapping[str, Any],
    evidence: Evidence,
    verdicts: Sequence[Verdict],
    thresholds: Thresholds,
    resolution: tuple[int, int],
) -> dict[str, Any]:
    """The entry `controls` with estimates and outcomes of each; nothing for a set with one control.

    resolution: of a mask in pixels and frames. too_few: the control has too few windows or recordings to be decided.
    """
    results, judged = read_tables(scores), {}
    for name, facts in scores.get("controls", {}).items():
        of_control, measured = evidence.controls[name].evidence, results.of_windows(facts["windows"])
        recordings = len(set(of_control.sources))
        has_mask = (
            len(of_control.sources) > 0 and "kept" in measured.changes and not np.isnan(measured.changes["kept"]).all()
        )
        judged[name] = {
            **facts,
            "recordings": recordings,
            "too_few": are_few(len(of_control.sources), recordings),
            "outcome": gates_outcome(
                [verdict for verdict in verdicts if verdict.get("control") == name],
                unmeasured_gates(scores["family"], of_control, thresholds),
            ),
            "cells": {row: estimates_of(measured.rows[row], of_control.sources) for row in scores["windows"]},
            "control": control_scores(measured, of_control),
            "mask": mask_scores(measured, of_control, *resolution) if has_mask else None,
        }
    return {"controls": judged} if judged else {}


def control_lines(scores: Mapping[str, Any]) -> list[str]:
    """Console lines: each control with its own metric, its windows, and whether its gates hold."""
    lines = []
    for name, control in scores.get("controls", {}).items():
        value = control["cells"][ADAPTER_REFERENCE].get(control["metric"])
        text = f"{control['metric']} {'not measured' if value is None else format_estimate(value)}"
        count = f"{len(control['windows'])} windows of {control['recordings']} recordings"
        few = ", too few to decide" if control["too_few"] else ""
        apart = "" if control["in_agreement"] else "; left out of `agreement`: ceiling and floor do not differ"
        lines.append(f"control {name}: {text}, {count}{few}; gates: {control['outcome']}{apart}")
    return lines


def own_key(metric: str, control: str) -> str:
    """The name of a control's own metric on its own windows: `edge_f1.canny`."""
    return f"{metric}.{control}"


def own_keys(scores: Mapping[str, Any]) -> list[str]:
    """The names of all controls' own metrics; empty for a set with one control."""
    return [own_key(control["metric"], name) for name, control in scores.get("controls", {}).items()]


def comparable_metrics(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`metrics` of scores.json, with the own metric of each control as a metric of its own."""
    metrics = dict(scores["metrics"])
    for name, control in scores.get("controls", {}).items():
        facts = metrics[control["metric"]]
        metrics[own_key(control["metric"], name)] = {**facts, "title": f"{facts['title']}, {name}"}
    return metrics


def comparable_row(scores: Mapping[str, Any], scales: Mapping[str, ControlScale]) -> dict[str, Values]:
    """The judged row: metric -> value per window, NaN where not measured, as `comparable_metrics` lists them.

    scales: the common scale of `agreement`. Two evaluations must share one, and that of another base differs.
    """
    stored = {
        key: np.array(values, np.float64) for key, values in scores["windows"][judged_row(scores["windows"])].items()
    }
    row = with_agreement(stored, scales)
    for name, scale in scales.items():
        if scale.metric in row:
            spread = np.full_like(row[scale.metric], np.nan)
            spread[list(scale.windows)] = row[scale.metric][list(scale.windows)]
            row[own_key(scale.metric, name)] = spread
    return row
