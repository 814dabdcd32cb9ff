"""Frames that equal their target: each counts PSNR_CAP (100 dB) in the mean of its clip, and can hide the others.

The decoded clip of a model hardly ever equals its target, but black frames, copied frames and undamaged parts of an
input do. PSNR keeps its definition, so that figures stay comparable. The windows are named, and the claims are judged a
second time on the other frames, to see whether an outcome depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.judging.verdicts import Verdict
from eval.metrics.picture import PSNR_CAP

MEANS = ("psnr", "psnr_y")  # means over the frames of a clip, of which an equal one has PSNR_CAP

Scores = Mapping[str, Any]


def without_equal_frames(scores: Scores) -> dict[str, Any]:
    """The scores with PSNR and PSNR-Y over the frames that differ from their target; None for a window without such
    frames."""
    shares = scores["equal_frames"]["rows"]

    def of_rows(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {name: of_row(row, shares[name]) if name in shares else row for name, row in rows.items()}

    def of_row(row: Mapping[str, Any], share: Sequence[float]) -> dict[str, Any]:
        return {**row, **{metric: of_others(row[metric], share) for metric in MEANS if metric in row}}

    per_window = {**scores["per_window"], "conditions": of_rows(scores["per_window"]["conditions"])}
    return {**scores, "windows": of_rows(scores["windows"]), "per_window": per_window}


def of_others(values: Sequence[float | None], shares: Sequence[float]) -> list[float | None]:
    """The mean over the other frames, from that over all of them and the share of the equal ones, for each window."""
    return [
        None if value is None or share >= 1 else (value - share * PSNR_CAP) / (1 - share)
        for value, share in zip(values, shares, strict=True)
    ]


def changed_outcomes(
    scores: Scores, verdicts: Sequence[Verdict], judge_again: Callable[[Scores], Sequence[Verdict]]
) -> dict[str, str | None]:
    """Name of a claim -> its outcome without the equal frames, where it differs; None if it cannot be measured then."""
    if not scores["equal_frames"]["rows"]:
        return {}
    others = {verdict["name"]: verdict["outcome"] for verdict in judge_again(without_equal_frames(scores))}
    return {v["name"]: others.get(v["name"]) for v in verdicts if others.get(v["name"]) != v["outcome"]}
