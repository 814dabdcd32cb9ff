"""The only module that uses Hydra to start commands: compose conf/ with the command line, one-line errors.

`data_prep`, `iclora_train` and `eval` start with `run_with_config`; a command with its own settings class starts with
`run_with_schema`. Slow modules are not imported, so that --help answers at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)

from iclora_train.config.errors import ConfigError
from iclora_train.config.settings import RENAMED_KEYS, Config, to_config


def conf_dir() -> Path:
    """The folder conf/: in the package when installed, next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())


def task_names() -> list[str]:
    """The values of `conf=`."""
    return sorted(path.stem for path in (conf_dir() / "conf").glob("*.yaml"))


def register_schema(schema: type = Config) -> None:
    """Register the settings class that conf/*.yaml name as `schema`."""
    ConfigStore.instance().store(name="schema", node=schema)


def overrides() -> list[str]:
    """The overrides of the running command, which `run_module` passes on."""
    return list(HydraConfig.get().overrides.task)


def run_with_config(config_name: str, function: Callable[[Config], None]) -> None:
    """Compose conf/<config_name>.yaml with the command line, check it, and call `function` (see `run_with_schema`)."""
    run_with_schema(config_name, lambda composed: function(to_config(composed)))


def run_with_schema(config_name: str, function: Callable[[DictConfig], None], schema: type = Config) -> None:
    """Compose conf/<config_name>.yaml and the command line over `schema`, and call `function` (once per sweep job).

    A wrong setting, found here or raised as ConfigError by `function`, gives one line on stderr and exit code 2.
    """
    register_schema(schema)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # less fragmentation with many sizes
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them

    def job(composed: DictConfig) -> None:
        try:
            function(composed)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            _refuse(error)

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(error)


def _refuse(error: Exception) -> None:
    print(f"error: {explain_error(error)}", file=sys.stderr)
    raise SystemExit(2)


def explain_error(error: Exception) -> str:
    """The error in one line, with the valid choices if there are any."""
    if isinstance(error, InterpolationToMissingValueError):
        return f"no task: choose one with conf=<task>, where <task> is one of {', '.join(task_names())}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice} is not one of {', '.join(sorted(error.options))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: {str(error).splitlines()[0]}"
    cause = error.__cause__ or error.__context__
    where = str(error).split(":")[0] + ": " if str(error).startswith("In '") else ""
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        if (name := str(cause.full_key)) in RENAMED_KEYS:
            return f"{where}{name} is now called {RENAMED_KEYS[name]}"
        choices = ", ".join(sorted(str(key) for key in cause.parent_node if key != "hydra"))
        return f"{where}no setting {cause.full_key!r}; there are {choices}"
    parts = [str(error).partition("full_key:")[0]]
    if isinstance(cause, OmegaConfBaseException) and str(cause).split("\n")[0] not in parts[0]:
        parts.append(str(cause).partition("full_key:")[0])
    return " ".join(" ".join(parts).split())


def run_module(command: str, *more: str) -> None:
    """Run another command of the project with this command's overrides; if it fails, exit with its exit code.

    It is started by the path of our file, so that a package of the same name in the working folder is not run instead,
    and it ends when this process ends, even by SIGKILL.
    """
    starter = Path(__file__).resolve().parents[1] / "commands.py"
    reading, writing = os.pipe()  # only this process holds the writing end
    try:
        arguments = [sys.executable, "-P", str(starter), command, str(reading), *overrides(), *more]
        process = subprocess.run(arguments, check=False, pass_fds=[reading])
    finally:
        os.close(reading)
        os.close(writing)
    if process.returncode:
        raise SystemExit(process.returncode)
