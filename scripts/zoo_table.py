"""The page of results that `scripts.zoo` makes of the scores of its tasks."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from eval.clips.conditions import ADAPTER_REFERENCE, BASE_REFERENCE
from eval.judging.answer import answer
from eval.judging.ranking import first_examples
from eval.report.media import FOLDER as MEDIA
from eval.statistics.estimates import format_estimate
from iclora_train.core.atomic_files import write_atomic
from iclora_train.media.clip import read_clip

CLIPS = ("reference", BASE_REFERENCE, ADAPTER_REFERENCE, "target")  # of a picture, from left to right
MARKS = {"holds": "", "fails": " **fails**", "inconclusive": " (undecided)"}
COLUMNS = {  # column -> the claims that it shows, without the name of a control
    "control gain": ("control_gain",),
    "swap": ("swap_drop", "swap_floor", "edge_gap", "follows"),
    "strength curve, R²": ("curve_monotone",),
    "mask": ("mask_local",),
}
INTRODUCTION = """# What the tasks reach on nano

Read this page to see what kind of adapter each task makes, and where it fails. `python -m scripts.zoo FOLDER --table
docs/results.md` trains and judges all of them and writes this page. nano is a small base for tests
([nano.md](nano.md)): the numbers compare the tasks, and say nothing about LTX-2. The pairs of day_to_night, water,
shave and cross_eyed are drawn by `scripts/zoo_pairs.py`.

A gate decides whether an adapter is good; a diagnostic describes it ([evaluation.md](evaluation.md)). "Control gain"
is the share of the way from the base without a reference (0) to the VAE round trip of the target (1). "Swap" is what
is lost with another clip's reference. "Mask" is the change in the half that keeps its reference over the change in
the other half. "Worse" is the share of windows that are worse than their input. A value that misses its threshold is
marked; intervals are over recordings.
"""


@dataclass(frozen=True)
class NotRun:
    """A task without scores, and why."""

    task: str
    reason: str


def write_table(path: Path, scores: Mapping[str, Path], not_run: Sequence[NotRun]) -> None:
    """Write the page. scores: task -> its scores.json. Pictures are written into `zoo/` beside the page."""
    read = {task: json.loads(file.read_text()) for task, file in sorted(scores.items())}
    pictures = {task: _picture(path.parent / "zoo", task, read[task], file) for task, file in scores.items()}
    text = io.StringIO()
    text.write(INTRODUCTION)
    text.write(f"\n| task | gates that hold | {' | '.join(COLUMNS)} | worse |\n|{'---|' * (len(COLUMNS) + 3)}\n")
    for task, values in read.items():
        cells = [_cell(values, names) for names in COLUMNS.values()]
        text.write(f"| [{task}](#{task}) | {_gates(values)} | {' | '.join(cells)} | {_worse(values)} |\n")
    for task in not_run:
        text.write(f"| {task.task} | not judged: {_one_line(task.reason)} |{' |' * (len(COLUMNS) + 1)}\n")
    for task, values in read.items():
        text.write(_section(task, values, pictures[task]))
    with write_atomic(path) as file:
        file.write(text.getvalue().encode())


def _section(task: str, scores: Mapping[str, Any], picture: Path | None) -> str:
    """The answer, a picture, and the gates of a task."""
    lines = [f"\n## {task}\n", f"{answer(scores)}\n"]
    if picture is not None:
        shown = "reference, without the adapter, with it, target: middle frame of the window of median gain"
        lines.append(f"![{shown}](zoo/{picture.name})\n")
    lines += ["| gate | value | threshold | |", "|---|---|---|---|"]
    for verdict in _gate_verdicts(scores):
        value = format_estimate(verdict["value"])
        lines.append(f"| {verdict['claim']} | {value} | {verdict['threshold']} | {verdict['outcome']} |")
    lines += [f"| {name} | not measured | | |" for name in scores["gates"]["not_measured"]]
    device, torch = scores["provenance"]["device"], scores["provenance"]["versions"].get("torch", "of unknown version")
    lines.append(f"\n{len(scores['clips'])} windows, {len(scores['seeds'])} seeds; {device}, torch {torch}.")
    return "\n".join(lines) + "\n"


def _gate_verdicts(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [verdict for verdict in scores["verdicts"] if verdict["kind"] == "gate"]


def _gates(scores: Mapping[str, Any]) -> str:
    gates = _gate_verdicts(scores)
    of = len(gates) + len(scores["gates"]["not_measured"])
    return f"{sum(verdict['outcome'] == 'holds' for verdict in gates)} of {of}"


def _cell(scores: Mapping[str, Any], names: Sequence[str]) -> str:
    """The values of some claims; those of a set with several controls name the control."""
    parts = []
    for verdict in scores["verdicts"]:
        name, _, control = verdict["name"].partition(".")
        if name in names:
            unit = " dB" if verdict["threshold"].endswith("dB") else ""
            value = f"{verdict['value']['mean']:.2f}{unit}{MARKS[verdict['outcome']]}"
            parts.append(f"{control} {value}".strip())
    return ", ".join(parts) or "not measured"


def _worse(scores: Mapping[str, Any]) -> str:
    harm = scores["harm"]
    return f"{harm['share']:.0%}" if harm and harm.get("share") is not None else ""


def _picture(folder: Path, task: str, scores: Mapping[str, Any], file: Path) -> Path | None:
    """Write the middle frames of the window of median gain side by side; None if the report has no such clips."""
    examples = first_examples(scores)
    number = examples[len(examples) // 2].number
    frames = []
    for name in CLIPS:
        clips = sorted((file.parent / MEDIA).glob(f"{number:03d}-{re.sub('[^a-z+]', '-', name)}-*.mp4"))
        if not clips:
            return None
        clip = list(read_clip(clips[0]))
        frames.append(clip[len(clip) // 2])
    height, width = frames[-1].shape[:2]
    resized = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_NEAREST) for frame in frames]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(np.hstack(resized), cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 88))
    picture = folder / f"{task}.jpg"
    with write_atomic(picture) as out:
        out.write(data.tobytes())
    return picture


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
