"""The page of results that `scripts.zoo` makes of the scores of its tasks."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from eval.clips.conditions import ADAPTER_ONLY, ADAPTER_REFERENCE, BASE, BASE_REFERENCE, CEILING, CLASSIC, INPUT
from eval.judging.answer import answer
from eval.judging.ranking import Example, first_examples
from eval.report.exhibits import REFERENCE, REFERENCE_PREFIX
from eval.report.media import FOLDER as MEDIA
from eval.report.media import clip_name
from eval.statistics.estimates import format_estimate
from iclora_train.core.atomic_files import write_atomic
from iclora_train.media.clip import read_clip

CLIPS = (BASE_REFERENCE, ADAPTER_REFERENCE, "target")  # of a picture, from left to right, after the references
CLIPS_PLAIN = (BASE, ADAPTER_ONLY, "target")  # of a task without references
ROWS = {  # rows that an adapter with references is compared with, and their names on the page
    INPUT: "input",
    CLASSIC: "best classic filter",
    BASE_REFERENCE: "base with the reference",
    ADAPTER_REFERENCE: "adapter with the reference",
    CEILING: "the target after the VAE",
}
MARKS = {"holds": "", "fails": " **fails**", "inconclusive": " (undecided)"}
COLUMNS = {  # column -> the claims that it shows, without the name of a control
    "control gain": ("control_gain",),
    "follows": ("edge_gap", "follows"),
    "lost when swapped": ("swap_drop",),
    "left when swapped": ("swap_floor",),
    "strength curve, R²": ("curve_monotone",),
    "mask": ("mask_local",),
}
INTRODUCTION = """# What the tasks reach on nano

Read this page to see what kind of adapter each task makes, and where it fails. `python -m scripts.zoo FOLDER --table
docs/results.md` trains and judges all of them and writes this page. nano is a small base for tests
(docs/nano.md): the numbers compare the tasks, and say nothing about LTX-2. The pairs of day_to_night, water,
shave and cross_eyed are drawn by `scripts/zoo_pairs.py`.

A gate decides whether an adapter is good; a diagnostic describes it (docs/evaluation.md). "Control gain" is the share
of the way from the base without a reference (0) to the VAE round trip of the target (1). "Follows" is the agreement
with the reference above that of another clip. "Lost when swapped" and "left when swapped" are what another clip's
reference takes away, and the agreement that is left with it (low is good). "Mask" is the change in the half that
keeps its reference over the change in the other half (low is good). "Worse" is the share of windows that lose more
than 0.5 dB against their input. A value that misses its threshold is marked; a claim that a task does not make is
empty; intervals are over the five held-out recordings.
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
        references = ", ".join(_references(scores))
        clips = f"{references and f'{references}, '}without the adapter, with it, target"
        shown = f"{clips}: middle frame, {_example(scores).title}"
        lines.append(f"![{shown}](zoo/{picture.name})\n")
    lines += ["| gate | value | threshold | |", "|---|---|---|---|"]
    for verdict in _gate_verdicts(scores):
        value = format_estimate(verdict["value"])
        lines.append(f"| {verdict['claim']} | {value} | {verdict['threshold']} | {verdict['outcome']} |")
    lines += [f"| {name} | not measured | | |" for name in scores["gates"]["not_measured"]]
    lines.append(f"\n{_levels(scores)}")
    lines += _of_each_reference(scores)
    device, torch = scores["provenance"]["device"], scores["provenance"]["versions"].get("torch", "of unknown version")
    lines.append(f"{len(scores['clips'])} windows, {len(scores['seeds'])} seeds; {device}, torch {torch}.")
    return "\n".join(lines) + "\n"


def _references(scores: Mapping[str, Any]) -> list[str]:
    """The names of the clips of the references; none in a task without."""
    if ADAPTER_REFERENCE not in scores["windows"]:
        return []
    return [REFERENCE, *(f"{REFERENCE_PREFIX}{name}" for name in [*scores.get("references", {})][1:])]


def _of_each_reference(scores: Mapping[str, Any]) -> list[str]:
    """Of several references, a line that says whether each is followed; none for a single one."""
    claims = {verdict["name"]: verdict for verdict in scores["verdicts"]}
    claimed = [
        (name, claims[f"follows {name}"]) for name in scores.get("references", {}) if f"follows {name}" in claims
    ]
    if not claimed:
        return []
    values = [f"{name} {format_estimate(v['value'])}{MARKS[v['outcome']]}" for name, v in claimed]
    return [f"Share of the gain lost if one reference alone is swapped: {', '.join(values)}."]


def _levels(scores: Mapping[str, Any]) -> str:
    """The mean of the primary metric of each row that an adapter is compared with: what there was to gain."""
    metric, names = scores["metrics"][scores["primary"]], [*ROWS, *(name for name in CLIPS_PLAIN if name != "target")]
    cells = {name: scores["cells"].get(name, {}).get(scores["primary"]) for name in dict.fromkeys(names)}
    values = [f"{ROWS.get(name, name)} {cell['mean']:.4g}" for name, cell in cells.items() if cell]
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    return f"{metric['title']}{unit}: {', '.join(values)}." if values else ""


def _gate_verdicts(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [verdict for verdict in scores["verdicts"] if verdict["kind"] == "gate"]


def _gates(scores: Mapping[str, Any]) -> str:
    gates = _gate_verdicts(scores)
    of = len(gates) + len(scores["gates"]["not_measured"])
    return f"{sum(verdict['outcome'] == 'holds' for verdict in gates)} of {of}"


def _cell(scores: Mapping[str, Any], names: Sequence[str]) -> str:
    """The values of some claims, with the name of the control in a set with several; empty if none is made."""
    parts = []
    for verdict in scores["verdicts"]:
        name, _, control = verdict["name"].partition(".")
        if name in names:
            unit = " dB" if verdict["threshold"].endswith("dB") else ""
            value = f"{verdict['value']['mean']:.2f}{unit}{MARKS[verdict['outcome']]}"
            parts.append(f"{control} {value}".strip())
    return ", ".join(parts)


def _worse(scores: Mapping[str, Any]) -> str:
    harm = scores["harm"]
    return f"{harm['share']:.0%}" if harm and harm.get("share") is not None else ""


def _example(scores: Mapping[str, Any]) -> Example:
    """The window that stands for a task: of median gain if there are three or more."""
    examples = first_examples(scores)
    return examples[len(examples) // 2]


def _picture(folder: Path, task: str, scores: Mapping[str, Any], file: Path) -> Path | None:
    """Write the middle frames of `_example` side by side; None if the report has no such clips."""
    number, frames = _example(scores).number, []
    for name in (*_references(scores), *CLIPS) if ADAPTER_REFERENCE in scores["windows"] else CLIPS_PLAIN:
        clips = sorted((file.parent / MEDIA).glob(f"{clip_name(number, name)}-{'[0-9a-f]' * 8}.mp4"))
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
