"""Settings of a command that reads the task of `conf=<task>`, and none of the sections for training and sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from iclora_train.config.errors import require
from iclora_train.config.task import Task


@dataclass
class WithTask:
    """The task, and the sections of its file that are not read: they may be set, and are null."""

    task: Any = None  # of conf=<task>
    model: Any = None
    data: Any = None
    flow: Any = None
    optim: Any = None
    sample: Any = None
    validation: Any = None
    eval: Any = None
    checks: Any = None
    trainer: Any = None
    logger: Any = None


def clear_other_sections(composed: DictConfig) -> None:
    """Set the sections that are not read to null."""
    for section in WithTask.__dataclass_fields__:
        if section != "task":
            composed[section] = None


def to_typed_task(composed: DictConfig) -> None:
    """Give `task` the types of `Task`. ConfigError names settings of it that are missing."""
    if composed.task is not None:
        composed.task = OmegaConf.merge(OmegaConf.structured(Task), composed.task)
        missing = sorted(OmegaConf.missing_keys(composed))
        require(not missing, f"{', '.join(missing)} must be set: choose a task with conf=<task>")
