"""Log an evaluation to Weights & Biases. The first page is that of the report: the answer, the claims, three examples.

Keys and columns are the same in every run and for every task, so that runs can be compared; a task with several
references has more columns. As in training, `logger=`
selects wandb (online or offline, see `wandb_run.start_run`) or none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.clips.conditions import (
    ADAPTER_ONLY,
    ADAPTER_REFERENCE,
    BASE,
    BASE_REFERENCE,
    CEILING,
    EMPTY_PROMPT,
    FADE_MASK,
    HALF_MASK,
    SWAPPED,
    VIDEO_ALONE,
    at_strength,
    is_of_one_reference,
    judged_row,
)
from eval.judging.answer import answer
from eval.judging.ranking import first_examples, ranking
from eval.report import wandb_summary
from eval.report.exhibits import REFERENCE, REFERENCE_PREFIX, TARGET
from eval.report.media import Media
from iclora_train.config import Config
from iclora_train.core import wandb_run

CONDITIONS = (  # columns of the table of clips, before the strengths below 1
    REFERENCE,
    TARGET,
    BASE_REFERENCE,
    ADAPTER_REFERENCE,
    SWAPPED,
    BASE,
    ADAPTER_ONLY,
    EMPTY_PROMPT,
    HALF_MASK,
    FADE_MASK,
    CEILING,
)
EXAMPLES = ("example", "window", "recording", "place", "of", "metric", "gain", "over")  # columns before the players
PLAYERS = {  # column of the examples -> clip
    "reference": REFERENCE,
    "without adapter": BASE_REFERENCE,
    "with adapter": ADAPTER_REFERENCE,
    "target": TARGET,
}
PLAYERS_PLAIN = {"without adapter": BASE, "with adapter": ADAPTER_ONLY}  # in a task without references
CLAIM = ("claim", "outcome", "value", "low", "high", "kind", "required", "name", "windows", "recordings")
STRENGTH = ("strength", "metric", "mean", "low", "high", "n")
SETS = ("condition", "minus", "metric", "mean", "low", "high", "clips", "targets", "network")
PARTS = ("part", "name", "condition", "metric", "mean", "low", "high", "n")
Scores = Mapping[str, Any]


def enabled(config: Config) -> bool:
    """Whether `logger` includes Weights & Biases."""
    return bool(config.logger.get("wandb"))


def log(media: Media, scores: Scores, config: Config) -> None:
    """Log the folder of an evaluation: scores.json (given as `scores`), report.html, its clips (`media`), the adapter.

    Does nothing unless `logger` includes wandb. A second call continues the same W&B run. An error of W&B is printed.
    """
    if not enabled(config):
        return
    with wandb_run.failures_printed("logging the evaluation", f"its results are complete in {media.folder}"):
        _log(media, scores, config)


def _log(media: Media, scores: Scores, config: Config) -> None:
    folder = media.folder
    name = f"{config.run}-{folder.name}"
    run = wandb_run.start_run(folder, name, asdict(config), config.logger["wandb"], job_type="eval", group=config.run)
    if run is None:
        return
    run.log(
        {
            "report/answer": wandb_run.table(("task", "run", "answer"), [[scores["task"], name, answer(scores)]]),
            "report/claims": wandb_run.table(CLAIM, list(claim_rows(scores))),
            "report/examples": wandb_run.table(example_columns(scores), list(example_rows(media, scores))),
        }
    )
    run.log({"clips": wandb_run.table(clip_columns(scores), list(clip_rows(media, scores)))})
    run.log({"strength": wandb_run.table(STRENGTH, list(strength_rows(scores)))})
    run.log({"sets": wandb_run.table(SETS, list(set_rows(scores)))})
    run.log({"parts": wandb_run.table(PARTS, list(part_rows(scores)))})
    run.log(curves(scores))
    run.summary.update(wandb_summary.summary(scores))
    run.log_artifact(wandb_run.artifact(_safe_name(f"{name}-evaluation"), "evaluation", _files(media), {}))
    if scores["adapter"]["sha256"] is not None:  # None for the base alone and for a folder of videos
        adapter = Path(scores["adapter"]["path"])
        facts = {**scores["adapter"]["metadata"], "sha256": scores["adapter"]["sha256"]}
        run.log_artifact(wandb_run.artifact(_safe_name(f"{name}-adapter"), "model", {adapter.name: adapter}, facts))
    run.finish()


def claim_rows(scores: Scores) -> Iterator[list[Any]]:
    """A row per claim, gates first."""
    for verdict in scores["verdicts"]:
        value = [verdict["value"][key] for key in ("mean", "low", "high")]
        counts = [verdict["value"]["n"], verdict["by_source"]["n"]]
        facts = [verdict["kind"], verdict["threshold"], verdict["name"]]
        yield [verdict["claim"], verdict["outcome"], *value, *facts, *counts]


def example_columns(scores: Scores) -> list[str]:
    """Columns of the table of examples: those of every task, then further references."""
    return [*EXAMPLES, *PLAYERS, *_further_references(scores)]


def example_rows(media: Media, scores: Scores) -> Iterator[list[Any]]:
    """The rows of the report's first screen: the windows of worst, median and best gain, with small clips."""
    ranked = ranking(scores)
    for example in first_examples(scores):
        clip = scores["clips"][example.number]
        facts = [example.title, clip["key"], clip["source"], example.rank, example.of]
        clips = PLAYERS if judged_row(scores["windows"]) == ADAPTER_REFERENCE else {**PLAYERS, **PLAYERS_PLAIN}
        shown = (*clips.values(), *_further_references(scores))
        players = [media.file(example.number, condition, preview=True) for condition in shown]
        yield [*facts, ranked.metric, ranked.values[example.number], ranked.over, *players]


def clip_columns(scores: Scores) -> list[str]:
    """Columns of the table of clips: the clip, its value of the primary metric, and a player per condition."""
    return [
        "clip",
        "source",
        "partner",
        f"{scores['primary']} ({judged_row(scores['windows'])})",
        *_players(scores),
    ]


def clip_rows(media: Media, scores: Scores) -> Iterator[list[Any]]:
    """A row per clip, in the order of scores.json; None for a clip that the report does not show."""
    values = scores["windows"][judged_row(scores["windows"])][scores["primary"]]
    for number, (clip, value) in enumerate(zip(scores["clips"], values, strict=True)):
        players = [media.file(number, condition) for condition in _players(scores)]
        yield [clip["key"], clip["source"], clip["partner"], value, *players]


def _players(scores: Scores) -> list[str]:
    """The clips of the table of clips: those of every task, strengths, those of several references, then the
    video stream alone where both were sampled."""
    others = [name for name in scores["windows"] if is_of_one_reference(name) or name == VIDEO_ALONE]
    return [*CONDITIONS, *_strengths(scores), *_further_references(scores), *others]


def _further_references(scores: Scores) -> list[str]:
    """The clips of the references after the first."""
    return [f"{REFERENCE_PREFIX}{name}" for name in [*scores.get("references", {})][1:]]


def _strengths(scores: Scores) -> list[str]:
    return [at_strength(point["s"]).name for point in scores["strength"] if point["s"] < 1]


def strength_rows(scores: Scores) -> Iterator[list[Any]]:
    """A row per strength and metric."""
    for point in scores["strength"]:
        for metric, estimate in point["metrics"].items():
            yield [point["s"], metric, *(estimate[key] for key in ("mean", "low", "high", "n"))]


def set_rows(scores: Scores) -> Iterator[list[Any]]:
    """FVD and KVD: a row per condition and metric, then the paired differences to another condition (`minus`). None
    without them."""
    if (sets := scores.get("sets")) is None:
        return
    labelled = [((row, None), estimates) for row, estimates in sets["rows"].items()]
    labelled += [((judged_row(scores["windows"]), other), estimates) for other, estimates in sets["paired"].items()]
    for (condition, minus), estimates in labelled:
        for metric, estimate in estimates.items():
            values = [estimate[key] for key in ("mean", "low", "high", "clips")]
            yield [condition, minus, metric, *values, sets["targets"], sets["network"]]


def part_rows(scores: Scores) -> Iterator[list[Any]]:
    """The figures of parts of the windows: a row per source (`data.sources`) or control of a set with several,
    condition and metric."""
    parts = [("source", name, cells) for name, cells in scores.get("sources", {}).items()]
    parts += [("control", name, control["cells"]) for name, control in scores.get("controls", {}).items()]
    for part, name, cells in parts:
        for condition, metrics in cells.items():
            for metric, estimate in metrics.items():
                yield [part, name, condition, metric, *(estimate[key] for key in ("mean", "low", "high", "n"))]


def curves(scores: Scores) -> dict[str, Any]:
    """`strength/<metric>` -> a chart of mean and interval over strength."""
    rising = sorted(scores["strength"], key=lambda point: float(point["s"]))
    charts, judged = {}, judged_row(scores["windows"])
    strength = "attention strength" if judged == ADAPTER_REFERENCE else "adapter strength"
    for metric in dict.fromkeys(metric for point in rising for metric in point["metrics"]):
        points = [(point["s"], point["metrics"][metric]) for point in rising if metric in point["metrics"]]
        series = {end: [estimate[end] for _, estimate in points] for end in ("mean", "low", "high")}
        complete = {end: values for end, values in series.items() if None not in values}
        charts[f"strength/{metric}"] = wandb_run.line_chart([s for s, _ in points], complete, metric, strength)
    return charts


def _files(media: Media) -> dict[str, Path]:
    """Artifact path -> file: scores.json, the report and its clips."""
    paths = [media.folder / "scores.json", media.folder / "report.html", *sorted(media.files())]
    return {path.relative_to(media.folder).as_posix(): path for path in paths if path.exists()}


def _safe_name(name: str) -> str:
    """The name with only characters that file systems and W&B accept."""
    return re.sub(r"[^\w.-]", "_", name)
