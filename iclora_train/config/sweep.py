"""What is checked before a sweep (`-m`) starts or submits its first job."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from iclora_train.config.errors import ConfigError, require
from iclora_train.config.trust import composed_overrides

MULTIRUN = ("-m", "--multirun", "hydra.mode=MULTIRUN")
IN_NAME = ("conf", "model", "run")  # `run` is <task>-<model> unless it is set


def check_sweep(config_name: str, conf: Path, arguments: list[str]) -> None:
    """ConfigError if two jobs of a sweep would write to one folder of a run, or if its launcher is not installed."""
    if not any(argument in MULTIRUN for argument in arguments):
        return
    submitit = any(argument.lstrip("+").startswith("hydra/launcher=submitit") for argument in arguments)
    require(
        not submitit or importlib.util.find_spec("submitit") is not None,
        "hydra/launcher=submitit_slurm needs submitit: pip install 'iclora_train[slurm]'",
    )
    if config_name == "train" and not any(argument.startswith("hydra/sweeper=") for argument in arguments):
        _require_distinct_runs(config_name, conf, arguments)


def _require_distinct_runs(config_name: str, conf: Path, arguments: list[str]) -> None:
    first: dict[Path, str] = {}  # the folder of a run -> the swept values of the first job that writes there
    with initialize_config_dir(str(conf), version_base="1.3"):
        for job, swept in _jobs(composed_overrides(arguments)):
            settings = compose(config_name, job, return_hydra_config=True)
            HydraConfig.instance().set_config(settings)  # `run` may contain ${hydra:runtime.choices.optim}
            folder = Path(OmegaConf.select(settings, "runs_dir"), OmegaConf.select(settings, "run"))
            values = " ".join(swept)
            if folder in first:
                keys = [value.partition("=")[0] for value in swept]
                raise ConfigError(
                    f"two jobs of this sweep are called run={folder.name} ({first[folder]} and {values}): give each a "
                    f"name of its own, e.g. {_example(keys, conf)}"
                )
            first[folder] = values


def _jobs(overrides: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """The overrides of each job of a sweep, and those of them that differ between the jobs."""
    parsed = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    choices = {
        i: [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        for i, override in enumerate(parsed)
        if override.is_sweep_override()
    }
    for values in itertools.product(*choices.values()):
        job = list(overrides)
        for i, value in zip(choices, values, strict=True):
            job[i] = value
        yield job, [value for i, value in zip(choices, values, strict=True) if len(choices[i]) > 1]


def _example(keys: list[str], conf: Path) -> str:
    """A name with the settings and groups that differ between the jobs."""
    names = [key.lstrip("+") for key in keys if key.lstrip("+") not in IN_NAME]
    parts = [f"${{hydra:runtime.choices.{name}}}" if (conf / name).is_dir() else f"${{{name}}}" for name in names]
    return "'run=" + "-".join(["${task.name}-${model.name}", *parts]) + "'"
