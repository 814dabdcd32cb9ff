"""Start a command with Hydra: compose conf/ with the command line and explain what is wrong with it.

`data_prep`, `iclora_train` and `eval` start with `run_with_config`; a command with its own settings class starts with
`run_with_schema`. Slow modules are not imported, so that --help answers at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)

from iclora_train.config.command_line import as_typed
from iclora_train.config.endings import TerminatedError, one_line_ending
from iclora_train.config.errors import ConfigError
from iclora_train.config.settings import RENAMED_KEYS, Config, to_config
from iclora_train.config.sweep import check_sweep
from iclora_train.config.trust import refuse_code


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


def run_with_config(config_name: str, function: Callable[[Config], None], resume: str) -> None:
    """Compose conf/<config_name>.yaml with the command line, check it, and call `function` (see `run_with_schema`)."""
    run_with_schema(config_name, lambda composed: function(to_config(composed)), resume)


def run_with_schema(
    config_name: str, function: Callable[[DictConfig], None], resume: str, schema: type = Config
) -> None:
    """Compose conf/<config_name>.yaml and the command line over `schema`, and call `function` (once per sweep job).

    An error or a signal ends the command as `one_line_ending` describes, with `resume` after an interruption.
    """
    register_schema(schema)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # less fragmentation with many sizes
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    # conf/hydra/launcher/submitit_slurm.yaml has the name of submitit's own settings, on purpose: its values replace
    # them. Hydra 1.3 warns that such a match is deprecated.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/submitit_slurm' is validated against ConfigStore")

    def job(composed: DictConfig) -> None:
        # Hydra prints exceptions that leave a job, so this one ends the command first.
        with one_line_ending(resume, lambda: _folder_settings(composed)), _hydra_errors_explained():
            function(composed)

    with one_line_ending(resume), _hydra_errors_explained():
        sys.argv[1:] = as_typed(sys.argv[1:], schema, _groups())
        refuse_code(config_name, conf_dir(), sys.argv[1:])
        sys.argv += check_sweep(config_name, conf_dir(), sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()


def _groups() -> list[str]:
    return [path.name for path in conf_dir().iterdir() if path.is_dir()]


def _folder_settings(composed: DictConfig) -> dict[str, str]:
    """The settings that choose where files are written, by their folder."""
    folders = {}
    for key in ("runs_dir", "data.root", "captioner.out", "cache"):
        with contextlib.suppress(OmegaConfBaseException):
            if isinstance(folder := OmegaConf.select(composed, key), str):
                folders[folder] = f"{key}=<folder>"
    return folders


@contextlib.contextmanager
def _hydra_errors_explained() -> Iterator[None]:
    """Raise errors of Hydra, OmegaConf and YAML as ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain_error(error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(_explain_yaml_error(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"a settings file (*.yaml) is not UTF-8 text ({error}): save it as UTF-8") from error


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


def _explain_yaml_error(error: yaml.YAMLError) -> str:
    """The file and line of a syntax error, and the problem."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"a settings file is not YAML: {' '.join(str(error).split())}"
    mark = error.problem_mark
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: this is not YAML, {error.problem}"


def run_module(command: str, *more: str, environment: Mapping[str, str] | None = None) -> None:
    """Run another command of the project with this command's overrides; if it fails, exit with its exit code.

    environment: its environment variables, if not those of this one.
    """
    run_arguments(command, *overrides(), *more, environment=environment)


def run_arguments(command: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Run another command of the project with these arguments; if it fails, exit with its exit code.

    It ends when this process ends, even by SIGKILL.
    """
    reading, writing = os.pipe()  # only this process holds the writing end
    try:
        child = subprocess.Popen(_started(command, reading, *arguments), pass_fds=[reading], env=environment)
        code = _wait(child)
    finally:
        os.close(reading)
        os.close(writing)
    if code < 0:
        print(f"error: python -m {command} was ended by {signal.Signals(-code).name}", file=sys.stderr)
        code = 128 - code
    if code:
        raise SystemExit(code)


def child_command(command: str, pipe: int, *more: str) -> list[str]:
    """The command line of a child process that runs a command of the project with this command's overrides.

    It is started by the path of our file, so that a package of the same name in the working folder is not run instead.
    pipe: the reading end of a pipe of this process, whose end ends the child.
    """
    return _started(command, pipe, *overrides(), *more)


def _started(command: str, pipe: int, *arguments: str) -> list[str]:
    """`child_command` with these arguments and no others."""
    starter = Path(__file__).resolve().parents[1] / "commands.py"
    return [sys.executable, "-P", str(starter), command, str(pipe), *arguments]


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a child. A signal to this process ends the child first, which then prints the line about it."""
    try:
        return process.wait()
    except KeyboardInterrupt as interrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A terminal sends Ctrl-C to the child, too. `kill` sends a signal to this process only.
            process.wait(0 if isinstance(interrupt, TerminatedError) else 2)
        if process.poll() is None:
            process.terminate()
        process.wait()
        raise SystemExit(getattr(interrupt, "exit_code", 128 + signal.SIGINT)) from None
