"""The references of a finished clip: which file is which, how each was made and where it belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.diagnosis.record import RecordSettings, known, position_of
from eval.diagnosis.settings import DiagnoseSettings, as_list
from iclora_train.adapters.metadata import DOWNSCALE, FRAME, TEMPORAL, factor, metadata_findings, reference_frame
from iclora_train.adapters.references import ReferenceLayout, more_layouts
from iclora_train.config import Task, require
from iclora_train.config.places import frame_in_file, frame_in_words
from iclora_train.config.references import FIRST


@dataclass(frozen=True)
class ReferenceFacts:
    """What is known about one reference. None: not known, or for `frame`: it runs along the whole clip.

    name: empty for the only one. task: as if the reference were its only one.
    """

    name: str
    path: str
    task: Task | None
    layout: ReferenceLayout
    attention_strength: float | None
    attention_mask: str | None


def references_of(
    settings: DiagnoseSettings, recorded: RecordSettings, task: Task | None, metadata: Mapping[str, str]
) -> tuple[list[ReferenceFacts], list[str]]:
    """The given references in the adapter's order, and the names of those that are left out.

    The settings come before the record. metadata: of the adapter file. ConfigError for more references than the adapter
    or the task has.
    """
    places = _places(settings, recorded)
    layouts = _layouts(task, metadata)
    names = [layout.name for layout in layouts]
    require(
        len(layouts) == 1 or max(places) < len(layouts),
        f"reference has {max(places) + 1} items, and there are {len(layouts)} references: {', '.join(names)}. Give one "
        "for each, in this order; null leaves one out",
    )
    several = len(layouts) > 1 or len(places) > 1
    facts = []
    for place, path in places.items():
        layout = layouts[place] if len(layouts) > 1 else layouts[0]
        name = "" if not several else layout.name if len(layouts) > 1 else str(place + 1)
        position = position_of(path, recorded.reference, len(places) == 1)
        facts.append(_facts(settings, recorded, task, layout, name, place, position, path))
    return facts, [name for place, name in enumerate(names) if several and len(layouts) > 1 and place not in places]


def _places(settings: DiagnoseSettings, recorded: RecordSettings) -> dict[int, str]:
    """Place in the adapter's order -> file, of the references that are given.

    A single file of the settings that the record names has the place that it has there. ConfigError without any.
    """
    if isinstance(settings.reference, str):
        return {position_of(settings.reference, recorded.reference) or 0: settings.reference}
    paths = recorded.reference if settings.reference is None else as_list(settings.reference)
    places = {place: path for place, path in enumerate(paths) if path is not None}
    require(
        bool(places),
        "reference must be set: the video, folder or image that the clip should follow (there is no record of "
        "`generate` next to the clip that names one)",
    )
    return places


def _layouts(task: Task | None, metadata: Mapping[str, str]) -> list[ReferenceLayout]:
    """The layout of each reference: of the adapter's file where it says so, else of the task, else the usual one."""
    layout_task = task or Task(name="unknown", maker="given")
    is_valid = {key: key in metadata and not metadata_findings({key: metadata[key]}) for key in (DOWNSCALE, TEMPORAL)}
    at_frame = FRAME in metadata and not metadata_findings({FRAME: metadata[FRAME]})
    first = ReferenceLayout(
        FIRST,
        factor(metadata, DOWNSCALE) if is_valid[DOWNSCALE] else layout_task.reference_downscale,
        factor(metadata, TEMPORAL) if is_valid[TEMPORAL] else layout_task.reference_temporal_scale,
        reference_frame(metadata) if at_frame else frame_in_file(layout_task.reference_frame),
    )
    return [
        first,
        *(more_layouts(metadata) or [ReferenceLayout(**more.layout()) for more in layout_task.more_references]),
    ]


def _facts(
    settings: DiagnoseSettings,
    recorded: RecordSettings,
    task: Task | None,
    layout: ReferenceLayout,
    name: str,
    place: int,
    position: int | None,
    path: str,
) -> ReferenceFacts:
    """The facts of the reference at `place` of the settings and at `position` of the record."""

    def value(key: str) -> Any:
        return known(_item(getattr(settings, key), place), getattr(recorded, key), position)

    if (frame := value("reference_frame")) is not None:
        layout = replace(layout, frame=frame, temporal_scale=1)
    require(
        not layout.is_drawn,
        f"reference_frame is not set for {path}: the adapter was trained with a picture at "
        f"{frame_in_words(layout.frame)}; say where it stands in this clip, e.g. reference_frame=24",
    )
    return ReferenceFacts(
        name, path, _task_of(task, layout.name), layout, value("attention_strength"), value("attention_mask")
    )


def _item(setting: Any, place: int) -> Any:
    """The value for the reference at `place`, of a list or of a single value for all."""
    if not isinstance(setting, list):
        return setting
    return setting[place] if place < len(setting) else None


def _task_of(task: Task | None, name: str) -> Task | None:
    """The task as if the reference of this name were its only one; None if the task does not know it."""
    names: Sequence[str] = [] if task is None else task.reference_names or [FIRST]
    return task.of_reference(names.index(name)) if task is not None and name in names else None
