"""Settings files choose values; they run no code.

Hydra calls what a file names in `hydra.callbacks`, `hydra.launcher`, `hydra.sweeper` and logging factories, and sets
the variables of `hydra.job.env_set`. A task file from elsewhere could run a program in this way, so the composed
settings are checked before Hydra uses them. On the command line these settings are the user's own and are allowed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from iclora_train.config.errors import ConfigError

NO_RUN = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")


def refuse_code(config_name: str, conf: Path, arguments: list[str]) -> None:
    """ConfigError if a file in `conf` or --config-dir, composed with the command line, makes Hydra call something."""
    if any(argument.partition("=")[0] in NO_RUN for argument in arguments):
        return
    name = _option(("--config-name", "-cn"), arguments) or config_name
    with initialize_config_dir(str(conf), version_base="1.3"):
        for variant in _without_sweeps(composed_overrides(arguments)):
            _refuse(compose(name, variant, return_hydra_config=True).hydra)


def composed_overrides(arguments: list[str]) -> list[str]:
    """The overrides among the arguments of a command, without those for Hydra itself, for `hydra.compose`."""
    settings = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    overrides = [argument for argument in settings if not argument.lstrip("+").startswith(("hydra.", "hydra/"))]
    overrides += [argument for argument in arguments if argument.startswith("~")]
    return [*overrides, f"hydra.searchpath={_search_path(arguments)}"]


def _search_path(arguments: list[str]) -> str:
    """The folders of --config-dir and hydra.searchpath, as a list in Hydra's grammar."""
    chosen = _option(("--config-dir", "-cd"), arguments)
    folders = [f"file://{os.path.abspath(chosen)}"] if chosen is not None and os.path.isdir(chosen) else []
    for argument in arguments:
        if argument.lstrip("+").startswith("hydra.searchpath="):
            value = OverridesParser.create().parse_override(argument).value()
            folders += [str(folder) for folder in (value if isinstance(value, list) else [value])]
    return f"[{','.join(QuotedString(folder, Quote.single).with_quotes() for folder in folders)}]"


def _option(names: tuple[str, ...], arguments: list[str]) -> str | None:
    """The value of an option: `name value` or `name=value`."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            return value if equals else next(iter(arguments[i + 1 :]), None)
    return None


def _without_sweeps(overrides: list[str]) -> Iterator[list[str]]:
    """Overrides without sweeps, so that each value of each sweep is in one of them."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides(overrides)
    sweeps = {
        i: [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        for i, override in enumerate(parsed)
        if override.is_sweep_override()
    }
    first = [sweeps[i][0] if i in sweeps else override for i, override in enumerate(overrides)]
    yield first
    for i, values in sweeps.items():
        yield from ([*first[:i], value, *first[i + 1 :]] for value in values[1:])


def _refuse(settings: DictConfig) -> None:
    """Check the composed section `hydra`."""
    for key in ("callbacks", "job.env_set"):
        if OmegaConf.select(settings, key):
            raise ConfigError(f"hydra.{key} is set in a settings file: a settings file must not run code. Remove it")
    for key in ("launcher._target_", "sweeper._target_", "job_logging", "hydra_logging"):
        value: Any = OmegaConf.select(settings, key)
        value = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value
        called = [value] if isinstance(value, str) else list(_factories(value))
        foreign = [name for name in called if not name.startswith(PLUGINS)]
        if foreign:
            raise ConfigError(f"hydra.{key} names {foreign[0]} in a settings file: a settings file must not run code")


def _factories(logging: Any) -> Iterator[str]:
    """What a logging configuration would call."""
    if isinstance(logging, list):
        for item in logging:
            yield from _factories(item)
    if isinstance(logging, dict):
        for key, value in logging.items():
            if key in ("()", "class") and not str(value).startswith("logging."):
                yield str(value)
            yield from _factories(value)
