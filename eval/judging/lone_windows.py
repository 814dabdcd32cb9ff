"""Faults of a few windows, which a mean over all windows hides: another clip's output, noise, wrong levels, ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from eval.clips.conditions import CEILING, judged_row
from eval.judging.finding import Finding, Scores, listed_keys
from eval.judging.picture_symptoms import (
    CHROMA_BAD,
    FLICKER_BAD,
    FROZEN_BAD,
    NOISE_BAD,
    OFFSET_BAD,
    SHIFT_BAD,
    SLOPE_BAD,
    WARP_BAD,
    has_free_colours,
    is_free,
)

APART = 0.1  # likeness by which own and other have to differ; outputs that follow their control have 0.2 and more
SURE = 0.3


@dataclass(frozen=True)
class _Fault:
    """A fault of one window. value: of the metric in the output and in the VAE round trip -> the size of the fault.

    Larger than `limit` is bad: the limit that the symptom of the same metric has for the mean. free: says for which
    evaluations the metric is no fault.
    """

    name: str
    metric: str
    limit: float
    value: Callable[[float, float], float]
    free: Callable[[Scores], bool] = lambda scores: False


FAULTS = (
    _Fault("flicker", "flicker", FLICKER_BAD, lambda output, ceiling: output - ceiling),
    _Fault("flicker", "warp_error", WARP_BAD, lambda output, ceiling: output - ceiling),
    _Fault("frozen", "motion", -FROZEN_BAD, lambda output, ceiling: -output / ceiling if ceiling > 0 else -1.0),
    _Fault("noise", "noise", NOISE_BAD, lambda output, ceiling: output - ceiling),
    _Fault("wrong levels", "level_slope", SLOPE_BAD, lambda output, ceiling: abs(output - ceiling), is_free),
    _Fault("wrong levels", "level_offset", OFFSET_BAD, lambda output, ceiling: abs(output - ceiling), is_free),
    _Fault("wrong colours", "chroma_error", CHROMA_BAD, lambda output, ceiling: output - ceiling, has_free_colours),
    _Fault("shifted picture", "spatial_shift", SHIFT_BAD, lambda output, ceiling: output - ceiling, is_free),
)


def single_windows(scores: Scores) -> Finding | None:
    """Names the windows that have a fault by themselves, in a metric whose mean over all windows is not bad."""
    rows = scores["windows"].get(judged_row(scores["windows"]), {}), scores["windows"].get(CEILING, {})
    if not all(rows):
        return None
    keys = [clip["key"] for clip in scores["clips"]]
    by_window: dict[str, list[str]] = {}
    for fault in FAULTS:
        for i in () if fault.free(scores) or _is_general(fault, scores) else _with_fault(fault, *rows):
            by_window.setdefault(keys[i], []).append(fault.name)
    names = [f"{key}: {' and '.join(dict.fromkeys(faults))}" for key, faults in by_window.items()]
    reason = f"{len(by_window)} of {len(keys)} windows have a fault that the mean of the others hides"
    return (
        "warn" if by_window else "ok",
        f"{reason} ({listed_keys(names)})" if by_window else reason,
        "Look at these clips: a damaged file, or footage unlike the training clips.",
    )


def _with_fault(fault: _Fault, output: Mapping[str, list[float]], ceiling: Mapping[str, list[float]]) -> list[int]:
    """The numbers of the windows with a fault."""
    pairs = zip(output.get(fault.metric, ()), ceiling.get(fault.metric, ()), strict=False)
    return [i for i, (a, b) in enumerate(pairs) if a is not None and b is not None and fault.value(a, b) > fault.limit]


def _is_general(fault: _Fault, scores: Scores) -> bool:
    """Whether the mean over all windows has the fault: the symptom of its name says so."""
    rows = (scores["cells"].get(row, {}).get(fault.metric) for row in (judged_row(scores["cells"]), CEILING))
    means = [value["mean"] for value in rows if value is not None]
    return len(means) == 2 and fault.value(*means) > fault.limit


def exchanged_clips(scores: Scores) -> Finding | None:
    """Names the outputs that look like the target of another recording, where most others look like their own."""
    entry = scores.get("likeness")
    if not entry:
        return None
    gaps = np.array(entry["own"]) - np.array(entry["other"])
    recognised = int((gaps > 0).sum())
    reason = f"{recognised} of {len(gaps)} outputs look most like their own target"
    if np.median(gaps) <= APART:
        return "ok", f"{reason}: too few to tell a wrong file by its look", ""
    wrong = sorted(np.flatnonzero(gaps < -APART).tolist(), key=lambda i: gaps[i])
    names = [f"{scores['clips'][i]['key']} like {entry['nearest'][i]}" for i in wrong]
    return (
        "bad" if any(gaps[i] < -SURE for i in wrong) else "warn" if wrong else "ok",
        f"{reason}; {len(wrong)} look like another one ({listed_keys(names)})" if wrong else reason,
        "Look at these clips: the file of another window, or an output that ignores its reference.",
    )
