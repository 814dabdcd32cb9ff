"""How long a run has trained (`training.json` in its folder), and the budget of an evaluation that follows from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iclora_train.config import Config
from iclora_train.core.atomic_files import write_json
from iclora_train.core.records import NonNegative, read_json

SHARE = 0.25  # of the training time that the evaluation may take unless eval.budget says otherwise
LEAST = 60.0  # seconds; below it the measured speed says little
NAME = "training.json"


@dataclass(frozen=True)
class _TrainingTime:
    seconds: NonNegative


@contextmanager
def count_training_time(folder: Path) -> Iterator[None]:
    """Add the seconds of the `with` block to those of earlier sessions of the run, however the block ends."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = (training_seconds(folder) or 0.0) + time.monotonic() - started
        write_json(folder / NAME, {"seconds": round(seconds, 1)})


def training_seconds(folder: Path) -> float | None:
    """Seconds that the run in `folder` has trained; None for a run of an earlier version. DamagedFileError."""
    path = folder / NAME
    if not path.exists():
        return None
    return read_json(path, dict[str, NonNegative], f"delete it and set eval.budget (it limits {folder}/eval)")[
        "seconds"
    ]


def quarter(seconds: float) -> float:
    """The budget of an evaluation after `seconds` of training."""
    return max(LEAST, SHARE * seconds)


def evaluation_budget(config: Config, embedded: bool, trained: float | None = None) -> float | None:
    """Seconds of eval.budget; None without a limit. embedded: the base is nano. trained: seconds of the training, by
    default those of the run's folder.

    auto limits only the evaluation of a run's own adapter. A comparison needs the windows of the earlier evaluation, so
    auto does not limit it either, nor one that stops by itself (eval.sequential).
    """
    if config.eval.budget != "auto":
        return config.eval.budget_seconds
    of_run = config.adapter is None and config.videos is None and config.eval.against is None
    if not of_run or embedded or config.eval.sequential:
        return None
    trained = training_seconds(Path(config.runs_dir, config.run)) if trained is None else trained
    return None if trained is None else quarter(trained)
