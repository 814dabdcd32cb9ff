"""What the audio stream changes in the video: the judged condition with both streams against the video stream alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.clips.conditions import VIDEO_ALONE
from eval.scoring.condition_changes import AUDIO_PSNR
from eval.scoring.results import Row
from eval.statistics.estimates import Estimate, estimate_or_none, format_estimate

Scores = Mapping[str, Any]


def audio_effect(changes: Row, recordings: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """The entry `audio_effect` of scores.json: the PSNR between the outputs with and without the audio stream, dB.

    Nothing if it was not measured. The differences of the metrics are the row of VIDEO_ALONE in `paired`.
    """
    psnr = estimate_or_none(changes.get(AUDIO_PSNR), recordings)
    return {} if psnr is None else {"audio_effect": {"psnr": psnr}}


def metric_differences(scores: Scores) -> dict[str, Estimate]:
    """Metric -> both streams minus the video stream alone, paired over windows: the task's own metrics first."""
    paired: dict[str, Estimate] = scores.get("paired", {}).get(VIDEO_ALONE, {})
    first = [scores["primary"], scores["adherence"], "psnr"]
    return {metric: paired[metric] for metric in dict.fromkeys([*first, *paired]) if metric in paired}


def not_measured(scores: Scores) -> str | None:
    """Why the effect of an audio stream that the checkpoint has was not measured; None if it was, and for others."""
    audio = scores.get("audio", {})
    if not audio.get("in_checkpoint") or "audio_effect" in scores or audio["stream"] is None:
        return None
    return audio["reason"] or "the condition is not part of the plan (eval.budget)"


def audio_lines(scores: Scores) -> list[str]:
    """Console lines: how far the outputs are apart, in the metrics that lead the report; or why that is not known."""
    if (reason := not_measured(scores)) is not None:
        return [f"audio stream: what it changes in the video is not measured: {reason}"]
    if "audio_effect" not in scores:
        return []
    shown = dict.fromkeys([scores["primary"], scores["adherence"], "psnr"])
    differences = metric_differences(scores)
    parts = [f"{metric} {format_estimate(differences[metric])}" for metric in shown if metric in differences]
    psnr = format_estimate(scores["audio_effect"]["psnr"], 2)
    between = f"audio stream: PSNR between the outputs with and without it {psnr} dB"
    return [f"{between}; with it minus without, {', '.join(parts)}" if parts else between]
