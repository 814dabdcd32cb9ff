"""The published adapters of Lightricks: a file of conf/official for each, with the facts that the adapter files lack.

Official adapter files declare neither base nor trigger, and no reference factor of 1. A file is recognised by its name,
or by its size in bytes where that is published. No torch import: `python -m eval` chooses the task by it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iclora_train.config.errors import ConfigError, require
from iclora_train.config.hydra_app import conf_dir, task_names
from iclora_train.config.paths import expand_home


@dataclass
class Official:
    """Facts about a published adapter. None, or an empty list, stands for what is not published.

    base: version of LTX-2, or the name of another model. files: beginnings of the names of its files. metadata: keys
    that its files have. also_on: other versions on which Lightricks uses it. trigger: "" if it needs none. prompt: form
    of the prompt. rank, modules: of the LoRA. sizes: width x height x frames. sample: settings of `sample`; a list is a
    range. strength: of the adapter, lowest and highest. task, settings: the task of conf/conf that makes references
    like its own, and settings besides. reference: the same in words. unconfirmed: fields that are inferred from file
    sizes or names, or told by others than Lightricks.
    """

    title: str = MISSING
    base: str = MISSING
    files: list[str] = MISSING
    size_in_bytes: int | None = None
    metadata: list[str] = field(default_factory=list)
    also_on: list[str] = field(default_factory=list)
    trigger: str | None = None
    prompt: str | None = None
    reference_downscale: int | None = None
    audio_reference: str | None = None  # its placement
    rank: int | None = None
    modules: str | None = None
    sizes: list[str] = field(default_factory=list)
    fps: float | None = None
    sample: dict[str, Any] = field(default_factory=dict)
    strength: list[float] = field(default_factory=list)
    task: str | None = None
    settings: list[str] = field(default_factory=list)
    reference: str | None = None
    note: str | None = None
    unconfirmed: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        """The model that it was made for, as in text."""
        return f"LTX-{self.base}" if self.base[0].isdecimal() else self.base

    @property
    def supported(self) -> bool:
        """Whether this project has the model that it was made for."""
        return self.base[0].isdecimal()


@dataclass(frozen=True)
class Match:
    """A file that was recognised: name of the file in conf/official, its facts, and by what it was recognised."""

    name: str
    official: Official
    by: str


@cache
def registry() -> dict[str, Official]:
    """All files of conf/official by name. ConfigError names a file that is wrong."""
    return {path.stem: _read(path) for path in sorted((conf_dir() / "official").glob("*.yaml"))}


def _read(path: Path) -> Official:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Official), OmegaConf.load(path))
        official = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {' '.join(str(error).partition('full_key')[0].split())}") from error
    assert isinstance(official, Official)
    return official


def match_file(path: Path) -> Match | None:
    """The published adapter of a file: by its name, else by its size in bytes. None if it is none of them."""
    name = re.sub(r"[ _]", "-", path.name.lower().removesuffix(".safetensors"))
    by_name = [
        (len(start), key, official)
        for key, official in registry().items()
        for start in official.files
        if re.match(rf"{re.escape(start)}(?![a-z0-9])", name)
    ]
    if by_name:
        _, key, official = max(by_name, key=lambda entry: entry[0])
        return Match(key, official, "its name")
    size = path.stat().st_size if path.is_file() else None
    for key, official in registry().items():
        if size is not None and official.size_in_bytes == size:
            return Match(key, official, f"its size of {size} bytes")
    return None


def match_metadata(keys: set[str]) -> Match | None:
    """The published adapter whose files, and only its, have one of these metadata keys."""
    by_keys = {name: marks for name, official in registry().items() if (marks := keys & set(official.metadata))}
    if len(by_keys) != 1:
        return None
    name, marks = next(iter(by_keys.items()))
    return Match(name, registry()[name], f"its metadata {min(marks)}")


def with_task(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments of a command with the task of the official adapter that they name, and a line that says so.

    Arguments that name a task, or no official adapter, are returned as they are. ConfigError if no task makes
    references like those of the adapter.
    """
    values = {key: value for key, _, value in map(_split, arguments)}
    if "conf" in values or "adapter" not in values or {"-h", "--help", "-m", "--multirun"} & set(arguments):
        return list(arguments), None
    path = Path(expand_home(values["adapter"].strip("'\"")))
    match = match_file(path)
    if match is None:
        return list(arguments), None
    official = match.official
    require(
        official.task is not None,
        f"adapter={path} is {official.title} for {official.model} (by {match.by}), and no task of this project makes "
        "its references: set conf=<task>, one with maker `given` such as conf=day_to_night, for pairs of your own",
    )
    more = [f"conf={official.task}", *official.settings]
    line = f"{path} is {official.title} for {official.model} (by {match.by}): evaluated with {' '.join(more)}"
    return [*more, *arguments], line


def _split(argument: str) -> tuple[str, str, str]:
    return argument.lstrip("+").partition("=")


def task_settings(name: str) -> dict[str, Any] | None:
    """The section `task` of conf/conf/<name>.yaml as {"task": {...}}, unresolved; None if there is no such file.

    Includes the sections of the tasks that its defaults name, as `/conf/canny`.
    """
    if name not in task_names():
        return None
    settings = OmegaConf.load(conf_dir() / "conf" / f"{name}.yaml")
    assert isinstance(settings, DictConfig)
    entries = [str(entry).removeprefix("/conf/") for entry in settings.get("defaults", [])]
    inherited = [section for entry in entries if (section := task_settings(entry)) is not None]
    return {"task": OmegaConf.merge(*(section["task"] for section in inherited), settings.task)}
