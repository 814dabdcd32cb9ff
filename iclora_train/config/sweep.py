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
_EVALUATION = ("runs_dir", "run", "adapter", "videos", "eval.label")
FOLDER = {"train": ("runs_dir", "run"), "eval": _EVALUATION, "transfer": _EVALUATION}
KEY = {"train": "run", "eval": "eval.label", "transfer": "eval.label"}  # command -> the setting that names its folder
IN_NAME = ("conf", "model", "run")  # `run` is <task>-<model> unless it is set


def check_sweep(config_name: str, conf: Path, arguments: list[str]) -> list[str]:
    """Check a sweep; returns overrides that give each evaluation of a sweep a folder of its own.

    ConfigError if two jobs would write to one folder, or if its launcher is not installed.
    """
    if not any(argument in MULTIRUN for argument in arguments):
        return []
    submitit = any(argument.lstrip("+").startswith("hydra/launcher=submitit") for argument in arguments)
    require(
        not submitit or importlib.util.find_spec("submitit") is not None,
        "hydra/launcher=submitit_slurm needs submitit: pip install 'iclora_train[slurm]'",
    )
    if config_name not in FOLDER or any(argument.startswith("hydra/sweeper=") for argument in arguments):
        return []
    shared = _shared_folder(config_name, conf, arguments)
    if shared is None:
        return []
    keys = [value.partition("=")[0].lstrip("+") for value in shared[0]]
    if config_name != "train" and not any(argument.lstrip("+").startswith("eval.label=") for argument in arguments):
        return [f"eval.label='{_label(keys, conf)}'"]
    first, second = (" ".join(value.lstrip("+") for value in values) for values in shared[:2])
    name = shared[2]
    example = _example(keys, conf) if config_name == "train" else f"'eval.label={_label(keys, conf)}'"
    raise ConfigError(
        f"two jobs of this sweep are called {KEY[config_name]}={name} ({first} and {second}): give each a name of its "
        f"own, e.g. {example}"
    )


def _shared_folder(config_name: str, conf: Path, arguments: list[str]) -> tuple[list[str], list[str], str] | None:
    """Two jobs that would write to one folder: the swept values of both, and the name that they share."""
    first: dict[tuple[str, ...], list[str]] = {}  # what names a folder -> the swept values of the first job there
    with initialize_config_dir(str(conf), version_base="1.3"):
        for job, swept in _jobs(composed_overrides(arguments)):
            settings = compose(config_name, job, return_hydra_config=True)
            HydraConfig.instance().set_config(settings)  # `run` may contain ${hydra:runtime.choices.optim}
            folder = tuple(str(OmegaConf.select(settings, key)) for key in FOLDER[config_name])
            if folder in first:
                return first[folder], swept, str(OmegaConf.select(settings, KEY[config_name]))
            first[folder] = swept
    return None


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


def _label(keys: list[str], conf: Path) -> str:
    """A name of an evaluation with the values that differ between the jobs, e.g. `steps=${sample.steps}`."""
    parts = [
        f"${{hydra:runtime.choices.{key}}}" if (conf / key).is_dir() else f"{key.rpartition('.')[2]}=${{{key}}}"
        for key in keys
    ]
    return "-".join(parts)


def _example(keys: list[str], conf: Path) -> str:
    """A name with the settings and groups that differ between the jobs."""
    names = [key.lstrip("+") for key in keys if key.lstrip("+") not in IN_NAME]
    parts = [f"${{hydra:runtime.choices.{name}}}" if (conf / name).is_dir() else f"${{{name}}}" for name in names]
    return "'run=" + "-".join(["${task.name}-${model.name}", *parts]) + "'"
