"""Log an evaluation to Weights & Biases: a table of clips (row per window, column per condition), curves, files.

Keys and columns are the same in every run, so that runs can be compared. As in training, `logger=` selects wandb
(online or offline, see `wandb_run.start_run`) or none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
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
    at_strength,
)
from eval.report.exhibits import REFERENCE, TARGET, Exhibit
from iclora_train.config import Config
from iclora_train.core import wandb_run
from iclora_train.core.atomic_files import write_atomic
from iclora_train.media.shard_clip import encode_clip

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

Scores = Mapping[str, Any]


def enabled(config: Config) -> bool:
    """Whether `logger` includes Weights & Biases."""
    return bool(config.logger.get("wandb"))


def save_clips(exhibits: Iterable[Exhibit], folder: Path, config: Config) -> Iterator[Exhibit]:
    """Pass the exhibits through; with W&B enabled, also write their clips to `folder`/clips/*.mp4 for `log`."""
    for exhibit in exhibits:
        for condition, clip in exhibit.clips.items() if enabled(config) else ():
            with write_atomic(clip_path(folder, exhibit.window.key, condition)) as file:
                file.write(encode_clip(clip, exhibit.fps, lossless=False))
        yield exhibit


def clip_path(folder: Path, key: str, condition: str) -> Path:
    """Path of the mp4 file of a window under a condition."""
    return folder / "clips" / _safe_name(key) / f"{_safe_name(condition)}.mp4"


def log(folder: Path, scores: Scores, config: Config) -> None:
    """Log the folder of an evaluation: scores.json (given as `scores`), report.html, clips (`save_clips`), adapter.

    Does nothing unless `logger` includes wandb. A second call continues the same W&B run. An error of W&B is printed.
    """
    if not enabled(config):
        return
    with wandb_run.failures_printed("logging the evaluation", f"its results are complete in {folder}"):
        _log(folder, scores, config)


def _log(folder: Path, scores: Scores, config: Config) -> None:
    name = f"{config.run}-{folder.name}"
    run = wandb_run.start_run(folder, name, asdict(config), config.logger["wandb"], job_type="eval", group=config.run)
    if run is None:
        return
    run.log({"clips": wandb_run.table(clip_columns(scores), list(clip_rows(folder, scores)))})
    run.log({"verdicts": wandb_run.table(VERDICT, list(verdict_rows(scores)))})
    run.log({"strength": wandb_run.table(STRENGTH, list(strength_rows(scores)))})
    run.log(curves(scores))
    run.summary.update(summary(scores))
    run.log_artifact(wandb_run.artifact(_safe_name(f"{name}-evaluation"), "evaluation", _files(folder), {}))
    if scores["adapter"]["sha256"] is not None:  # None for the base alone and for a folder of videos
        adapter = Path(scores["adapter"]["path"])
        facts = {**scores["adapter"]["metadata"], "sha256": scores["adapter"]["sha256"]}
        run.log_artifact(wandb_run.artifact(_safe_name(f"{name}-adapter"), "model", {adapter.name: adapter}, facts))
    run.finish()


VERDICT = ("name", "kind", "claim", "mean", "low", "high", "n", "threshold", "outcome", "passed")
STRENGTH = ("strength", "metric", "mean", "low", "high", "n")


def clip_columns(scores: Scores) -> list[str]:
    """Columns of the table of clips: the clip, its value of the primary metric, and a player per condition."""
    return ["clip", "source", "partner", f"{scores['primary']} ({ADAPTER_REFERENCE})", *CONDITIONS, *_strengths(scores)]


def clip_rows(folder: Path, scores: Scores) -> Iterator[list[Any]]:
    """A row per clip, in the order of scores.json; None for a missing file or value."""
    values = scores["windows"][ADAPTER_REFERENCE][scores["primary"]]
    for clip, value in zip(scores["clips"], values, strict=True):
        paths = [clip_path(folder, clip["key"], condition) for condition in (*CONDITIONS, *_strengths(scores))]
        players = [path if path.exists() else None for path in paths]
        yield [clip["key"], clip["source"], clip["partner"], value, *players]


def _strengths(scores: Scores) -> list[str]:
    return [at_strength(point["s"]).name for point in scores["strength"] if point["s"] < 1]


def verdict_rows(scores: Scores) -> Iterator[list[Any]]:
    """A row per claim."""
    for verdict in scores["verdicts"]:
        value = [verdict["value"][key] for key in ("mean", "low", "high", "n")]
        head = [verdict["name"], verdict["kind"], verdict["claim"]]
        yield [*head, *value, verdict["threshold"], verdict["outcome"], verdict["passed"]]


def strength_rows(scores: Scores) -> Iterator[list[Any]]:
    """A row per strength and metric."""
    for point in scores["strength"]:
        for metric, estimate in point["metrics"].items():
            yield [point["s"], metric, *(estimate[key] for key in ("mean", "low", "high", "n"))]


def curves(scores: Scores) -> dict[str, Any]:
    """`strength/<metric>` -> a chart of mean and interval over attention strength."""
    rising = sorted(scores["strength"], key=lambda point: float(point["s"]))
    charts = {}
    for metric in dict.fromkeys(metric for point in rising for metric in point["metrics"]):
        points = [(point["s"], point["metrics"][metric]) for point in rising if metric in point["metrics"]]
        series = {end: [estimate[end] for _, estimate in points] for end in ("mean", "low", "high")}
        complete = {end: values for end, values in series.items() if None not in values}
        charts[f"strength/{metric}"] = wandb_run.line_chart(
            [s for s, _ in points], complete, metric, "attention strength"
        )
    return charts


def summary(scores: Scores) -> dict[str, Any]:
    """`<row>/<metric>` -> {mean, low, high, n}; control, verdicts, probes, and counts of the claims that hold."""
    estimates = {
        f"{row}/{metric}": dict(value) for row, metrics in scores["cells"].items() for metric, value in metrics.items()
    }
    control_scores = scores["control"] or {}
    control = {f"control/{name}": dict(value) for name, value in control_scores.items() if value and "mean" in value}
    passed = {f"verdict/{verdict['name']}": verdict["passed"] for verdict in scores["verdicts"]}
    probe_scores = scores["simple"]
    probes = {f"simple/{p['name']}": p["value"] for p in probe_scores["signals"]} if probe_scores else {}
    outcomes = {f"outcome/{verdict['name']}": verdict["outcome"] for verdict in scores["verdicts"]}
    counts = {"verdicts/passed": sum(passed.values()), "verdicts/of": len(passed)}
    holding = [verdict["passed"] for verdict in scores["verdicts"] if verdict["kind"] == "gate"]
    gates = {
        "gates/outcome": scores["gates"]["outcome"],
        "gates/passed": sum(holding),
        "gates/of": len(holding) + len(scores["gates"]["not_measured"]),
    }
    return {**estimates, **control, **passed, **outcomes, **probes, **counts, **gates}


def _files(folder: Path) -> dict[str, Path]:
    """Artifact path -> file: scores.json, the report with its media, and the clips."""
    paths = [folder / "scores.json", folder / "report.html", *sorted((folder / "media").rglob("*.*"))]
    paths += sorted((folder / "clips").rglob("*.mp4"))
    return {path.relative_to(folder).as_posix(): path for path in paths if path.exists()}


def _safe_name(name: str) -> str:
    """The name with only characters that file systems and W&B accept."""
    return re.sub(r"[^\w.-]", "_", name)
