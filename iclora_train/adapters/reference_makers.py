"""The pair makers of an adapter's references, in its metadata: how training made each reference of a clip.

`iclora_train.signal` makes the references of a new clip by them. The key MAKERS holds a JSON list with the maker and
its arguments for each reference, in order. Another program may have written any text there, so it is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from iclora_train.adapters.references import read_json
from iclora_train.config import Task
from iclora_train.config.named_task import task_named
from iclora_train.config.no_reference import NO_REFERENCE
from iclora_train.config.official import Match

MAKERS = "reference_makers"  # key of the metadata
SUPPLIED = "given"  # the maker of references that come with the clips
_FAULTS = "degrade."  # makers that damage the clip, so that a clip in use is its own reference


@dataclass(frozen=True)
class MakerOfReference:
    """A pair maker of data_prep and its arguments."""

    maker: str
    args: Mapping[str, Any]

    @property
    def is_clip(self) -> bool:
        """Whether the reference of a clip in use is that clip: a blurred clip to sharpen, a scene by day."""
        return self.maker == SUPPLIED or self.maker.startswith(_FAULTS)

    @property
    def in_words(self) -> str:
        """E.g. `control.canny low=20.0 high=60.0`."""
        return " ".join([self.maker, *(f"{key}={json.dumps(value)}" for key, value in self.args.items())])


def makers_metadata(task: Task) -> dict[str, str]:
    """The entry of the metadata; none for a task without references.

    Of a path among the arguments, such as the folder of a depth network, only the last part is stored.
    """
    makers = _makers_of_task(task)
    entries = [{"maker": maker.maker, "args": _without_folders(maker.args)} for maker in makers]
    return {MAKERS: json.dumps(entries)} if entries else {}


def makers_of(metadata: Mapping[str, str]) -> list[MakerOfReference] | None:
    """The makers in the metadata, in the order of the references; None if there are none, or another text."""
    entries = read_json(metadata.get(MAKERS, "null"))
    if not isinstance(entries, list) or not entries:
        return None
    for entry in entries:
        known = isinstance(entry, dict) and isinstance(entry.get("maker"), str) and isinstance(entry.get("args"), dict)
        if not known:
            return None
    return [MakerOfReference(entry["maker"], entry["args"]) for entry in entries]


def makers_or_task(
    metadata: Mapping[str, str], match: Match | None
) -> tuple[list[MakerOfReference], str | None] | None:
    """The makers of an adapter's references, and where its file does not say, the command-line words of its task.

    match: the published adapter that the file is. None if neither the file nor the list of published adapters names a
    task.
    """
    if (makers := makers_of(metadata)) is not None:
        return makers, None
    if match is not None and match.official.task is not None:
        name, changes, model = match.official.task, match.official.settings, None
    else:
        name, changes, model = metadata.get("task", ""), [], metadata.get("base_model")
    task = task_named(name, changes, model)
    return None if task is None else (_makers_of_task(task), " ".join([f"conf={name}", *changes]))


def _makers_of_task(task: Task) -> list[MakerOfReference]:
    parts = [] if task.maker == NO_REFERENCE else task.for_references()
    return [MakerOfReference(part.maker, part.maker_args) for part in parts]


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and "/" in value else value
