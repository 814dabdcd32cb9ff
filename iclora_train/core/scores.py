"""scores.json of an evaluation, as far as cards, the end of a run and `eval.compare` read it again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from iclora_train.config import ConfigError
from iclora_train.core.fingerprint import digest
from iclora_train.core.records import AnyNumber, Count, DamagedFileError, Text, as_type, read_json

REMEDY = "run eval again"
SCHEMA = 2
ADAPTER_ROWS = ("adapter+reference", "adapter")  # the row of `windows` that a comparison reads: the first there is
# The results. Times, paths and versions differ between two runs with equal results.
VALUES = (
    *("task", "family", "primary", "adherence", "clips", "seeds", "metrics", "cells", "sources", "strength"),
    *("paired", "sets", "controls", "control", "diversity", "mask", "verdicts", "windows", "frames", "harm"),
    *("equal_frames", "references", "audio_effect", "likeness"),
)


@dataclass(frozen=True)
class _Estimate:
    mean: AnyNumber
    low: AnyNumber | None
    high: AnyNumber | None
    n: Count | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError("only one end of the interval is given")


@dataclass(frozen=True)
class _Level:
    s: AnyNumber
    metrics: dict[Text, _Estimate]


@dataclass(frozen=True)
class _Results:
    """The entries that a card shows."""

    task: Text
    primary: Text
    clips: list[dict[Text, Text]]
    seeds: list[Count]
    cells: dict[Text, dict[Text, _Estimate]]
    strength: list[_Level]


@dataclass(frozen=True)
class _Clip:
    key: Text
    source: Text


@dataclass(frozen=True)
class _Metric:
    title: Text
    unit: Text
    better: Text | None


@dataclass(frozen=True)
class _Control:
    """A control of a set with several: its metric, its windows, and the ends of its scale."""

    metric: Text
    windows: list[Count]
    floor: AnyNumber | None
    ceiling: AnyNumber | None


@dataclass(frozen=True)
class _Condition:
    p: AnyNumber


@dataclass(frozen=True)
class _Task:
    conditions: list[_Condition] = field(default_factory=list)


@dataclass(frozen=True)
class _Settings:
    sample: Any
    task: _Task = field(default_factory=_Task)
    eval: dict[Text, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Shards:
    pairs: Text


@dataclass(frozen=True)
class _Provenance:
    protocol: Any
    settings: _Settings
    shards: _Shards
    precision: Any
    device: Any
    versions: Any
    definitions: Count = 1
    weights: dict[Text, Any] = field(default_factory=dict)
    loss_sigmas: list[AnyNumber] | None = None


@dataclass(frozen=True)
class _Audio:
    stream: Text | None = "off"


@dataclass(frozen=True)
class _Comparable:
    """The entries that a comparison of two evaluations reads."""

    schema: Count
    primary: Text
    clips: list[_Clip]
    seeds: list[Count]
    base: dict[str, Any]
    metrics: dict[Text, _Metric]
    windows: dict[Text, dict[Text, list[AnyNumber | None]]]
    provenance: _Provenance
    controls: dict[Text, _Control] = field(default_factory=dict)
    readers: dict[Text, Text] = field(default_factory=dict)
    audio: _Audio = field(default_factory=_Audio)


@dataclass(frozen=True)
class _Judged:
    sha256: Text | None = None


@dataclass(frozen=True)
class _Header:
    adapter: _Judged = field(default_factory=_Judged)


def as_json(scores: Mapping[str, Any]) -> bytes:
    """The content of scores.json."""
    return (json.dumps(scores, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def values_digest(scores: Mapping[str, Any]) -> str:
    """The entry `digest`: a hash of the results, which shows whether they were changed by hand."""
    return digest({key: value for key, value in scores.items() if key in VALUES})


def read_scores(path: Path) -> dict[str, Any]:
    """scores.json with the results that a card shows. DamagedFileError if it is damaged or another file."""
    return _read(path, _Results)


def find_scores(path: Path) -> Path:
    """scores.json: a file, in a folder, in the `eval` folder in it, or in its only other evaluation (`eval-quick`).

    ConfigError if there is none, or if there are several others.
    """
    candidates = [path, path / "scores.json", path / "eval" / "scores.json"]
    others = sorted(path.glob("eval-*/scores.json"))
    file = next((place for place in candidates if place.is_file()), others[0] if len(others) == 1 else None)
    if file is None:
        elsewhere = f" of its own, but {', '.join(str(other.parent) for other in others)}" if others else ""
        raise ConfigError(
            f"{path} contains no scores.json{elsewhere}: give a scores.json, or the folder of a run or of an evaluation"
        )
    return file


def read_comparable_scores(path: Path) -> dict[str, Any]:
    """scores.json with the results and the values of every window. DamagedFileError as in `read_scores`."""
    scores = _read(path, _Comparable)
    count, windows = len(scores["clips"]), scores["windows"]
    row = next((windows[name] for name in ADAPTER_ROWS if windows.get(name)), None)
    values = [value for metrics in scores["windows"].values() for value in metrics.values()]
    problems = {
        "its windows and clips differ in number": any(len(value) != count for value in values),
        "it has no clips": count == 0,
        f"it has no values of {ADAPTER_ROWS[0]}": row is None,
        "a value is not finite": any(x is not None and not isfinite(x) for value in values for x in value),
        f"its primary metric {scores['primary']} is not among its metrics": scores["primary"] not in scores["metrics"],
        "a control has a metric or windows that it does not list": any(
            control["metric"] not in scores["metrics"] or max(control["windows"], default=0) >= count
            for control in scores.get("controls", {}).values()
        ),
        "a metric has another direction than high, low or null": any(
            metric["better"] not in ("high", "low", None) for metric in scores["metrics"].values()
        ),
    }
    for problem, applies in problems.items():
        if applies:
            raise DamagedFileError(f"{path} is damaged ({problem}): {REMEDY}")
    if scores.get("digest") not in (None, values_digest(scores)):
        print(
            f"warning: {path} was changed after the evaluation wrote it (its digest differs): {REMEDY} to be sure",
            file=sys.stderr,
        )
    return scores


def judged_adapter(path: Path) -> str | None:
    """sha256 of the adapter that was judged; None for an evaluation without one. DamagedFileError as above."""
    scores = _read(path, _Results, _Header)
    return as_type(scores, _Header).adapter.sha256


def _read(path: Path, *kinds: Any) -> dict[str, Any]:
    scores = read_json(path, dict[str, Any], REMEDY)
    schema = scores.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise DamagedFileError(f"{path} has schema {str(schema)[:20]}, not {SCHEMA}: {REMEDY}")
    try:
        for kind in kinds:
            as_type(scores, kind)
    except ValueError as error:
        raise DamagedFileError(f"{path} is not a scores.json of `python -m eval` ({error}): {REMEDY}") from error
    return scores
