"""A task by its name, without composing a whole run."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from iclora_train.config.errors import ConfigError
from iclora_train.config.hydra_app import conf_dir
from iclora_train.config.official import task_settings
from iclora_train.config.task import Task


def task_named(name: str, changes: Sequence[str], model: str | None = None) -> Task | None:
    """The task of conf/conf/<name>.yaml with changes such as `task.reference_downscale=4`; None if there is none.

    model: the name of a base, whose tuned settings (conf/tuned) are part of the task.
    """
    loaded = task_settings(name)
    if loaded is None:
        return None
    tuned = conf_dir() / "tuned" / f"{name}-{model}.yaml"
    more = OmegaConf.load(tuned) if model in _models() and tuned.is_file() else OmegaConf.create()
    assert isinstance(more, DictConfig)
    merged = OmegaConf.merge(
        {"task": OmegaConf.structured(Task)},
        loaded,
        {"task": more.get("task", {})},
        OmegaConf.from_dotlist(list(changes)),
    )
    task = OmegaConf.to_object(merged)
    if not isinstance(task, dict) or not isinstance(task["task"], Task):
        raise ConfigError(f"conf={name} has no task")
    return task["task"]


def _models() -> list[str]:
    return [path.stem for path in (conf_dir() / "model").glob("*.yaml")]
