"""The section of the report about the audio stream: which model was judged, and how far the video alone is from it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from eval.clips.conditions import VIDEO_ALONE, judged_row
from eval.judging.audio_effect import metric_differences, not_measured
from eval.report import tables

Scores = Mapping[str, Any]


def judged_streams(scores: Scores) -> str:
    """`both streams` or `the video stream alone`; empty for a base without an audio half."""
    audio = scores.get("audio", {})
    if not audio.get("in_checkpoint") or audio["stream"] is None:
        return ""
    return "both streams" if audio["stream"] == "on" else "the video stream alone"


def section(scores: Scores) -> str:
    """Which streams were sampled, modules of the adapter, and both outputs side by side in every metric; empty for a
    base without an audio half."""
    streams = judged_streams(scores)
    if not streams:
        return ""
    audio, reason = scores["audio"], not_measured(scores)
    used, unused = audio["used_modules"], audio["unused_modules"]
    modules = "The adapter has no modules in the audio stream or between the streams."
    if used or unused:
        modules = f"Modules of the adapter in the audio stream and between the streams: {used} used, {unused} not used."
    text = f"<p>Sampled: {streams}. {modules}</p>"
    if reason is not None:
        return f"{text}<p>What the audio stream changes in the video is not measured: {escape(reason)}.</p>"
    return text + _effect(scores)


def _effect(scores: Scores) -> str:
    """The PSNR between the outputs, and the metrics of both with their paired differences."""
    both, alone = (scores["cells"][row] for row in (judged_row(scores["cells"]), VIDEO_ALONE))
    rows = [
        (
            tables.metric_name(scores, metric),
            [
                *(tables.interval(row.get(metric), tables.digits(scores, metric)) for row in (both, alone)),
                tables.interval(difference, 3),
            ],
        )
        for metric, difference in metric_differences(scores).items()
    ]
    between = tables.interval(scores["audio_effect"]["psnr"])
    psnr = ("PSNR between both outputs, dB", [tables.NOT_MEASURED, tables.NOT_MEASURED, between])
    caption = (
        "The same windows, seeds, captions and noise of the video, with the audio stream and without it. Intervals are "
        "over recordings; where that of a difference contains 0, it cannot be told from chance."
    )
    return tables.table(caption, ["", "both streams", VIDEO_ALONE, "difference, paired"], [psnr, *rows])
