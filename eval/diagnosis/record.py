"""The JSON record that `generate` writes next to a video, as far as a diagnosis reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from iclora_train.config import ConfigError
from iclora_train.config.paths import user_path
from iclora_train.core.records import AnyNumber, Text, read_json

T = TypeVar("T")


@dataclass(frozen=True)
class RecordSettings:
    """The recorded settings. The lists have an item for each adapter, or for each reference."""

    adapter: list[Text]
    adapter_strength: list[AnyNumber]
    reference: list[Text | None]  # None: one of several that was left out
    attention_strength: list[AnyNumber]
    attention_mask: list[Text | None]
    reference_frame: list[int | None] | None = None  # None: the adapter's


@dataclass(frozen=True)
class Record:
    """The entries of a video's JSON record (`generate.output`) that are read here."""

    settings: RecordSettings
    prompt: Text | None = None
    base: dict[Text, Any] = field(default_factory=dict)


NO_RECORD = Record(RecordSettings([], [], [], [], []))


def read_record(clip: str) -> tuple[Record, list[str]]:
    """The record next to a clip, and notes; NO_RECORD if there is none, or if it is another program's."""
    file = user_path(clip)
    path = file.with_suffix(".json") if file.name else file  # the working folder, ".", has no name
    if not path.is_file():
        return NO_RECORD, []
    try:
        return read_json(path, Record, "give the settings on the command line"), [f"settings are read from {path}"]
    except ConfigError:
        return NO_RECORD, [f"{path} is not a record of `iclora_train.generate` and is not read"]


def position_of(path: str, recorded: Sequence[str | None], only: bool = True) -> int | None:
    """The position of a file in the record. The only file of a record may have been moved; None for any other file.

    only: it is the only file of its kind that is given.
    """
    paths = [None if name is None else user_path(name).resolve() for name in recorded]
    file = user_path(path).resolve()
    if file in paths:
        return paths.index(file)
    return 0 if only and len(paths) == 1 else None


def known(setting: T | None, recorded: Sequence[T | None] | None, index: int | None) -> T | None:
    """The user's setting, else the recorded one; index: None if it is not known which of the recorded ones it is."""
    if setting is not None or index is None or index >= len(recorded or ()):
        return setting
    return (recorded or ())[index]
