"""Which control made the reference of a window. A set may hold several: canny in one window, pose in the next.

The record of a pair names the maker of its reference, and for the maker `union` the one that was chosen. A pair with
several references lists them under `references`. Of those of `task.more_references` in a structure task, the ones that
no control made, such as a picture of the appearance, are left out. An adapter that follows one control says nothing
about another, so each window is measured by the metric of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from iclora_train.config import Task

UNION = "union"
CONTROL_PREFIX = "control."
JOINT = " + "  # between the names of the controls of a window with several references


@dataclass(frozen=True)
class Control:
    """The maker of a reference, with its arguments."""

    maker: str
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name in scores.json: the maker without `control.`."""
        return self.maker.removeprefix(CONTROL_PREFIX)

    def task(self, task: Task) -> Task:
        """A task as if this control made all of its references."""
        single = replace(task, more_references=[], reference_slots=False)
        return replace(single, maker=self.maker, maker_args=dict(self.args))


def controls_of(task: Task, record: Mapping[str, Any]) -> tuple[Control, ...]:
    """The controls of a pair, in the order of its references; each once. A pair that names none has the task's."""
    parts = reference_records(record)
    if task.family == "structure" and task.more_references:
        parts = [part for part in parts if is_control(part.get("maker", task.maker))] or parts[:1]
    return tuple({control.name: control for control in (_control(task, part) for part in parts)}.values())


def is_control(maker: str) -> bool:
    """Whether the references of a maker are controls: drawings of the structure, no pictures."""
    return maker == UNION or maker.startswith(CONTROL_PREFIX)


def leading_reference(task: Task) -> int:
    """The number of the reference by whose control a structure task is measured: the first that is a control."""
    if task.family != "structure":
        return 0
    return next((number for number, part in enumerate(task.for_references()) if is_control(part.maker)), 0)


def reference_records(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What the record of a pair says of each of its references."""
    return record.get("references") or [record]


def _control(task: Task, part: Mapping[str, Any]) -> Control:
    maker, args = part.get("maker", task.maker), part.get("args", task.maker_args)
    chosen = part.get("drawn", {}).get("control")
    if maker != UNION or chosen is None:
        return Control(maker, args)
    return dict(_leaves(args)).get(chosen) or Control(chosen)


def _leaves(args: Mapping[str, Any]) -> Iterator[tuple[str, Control]]:
    """Maker -> control, of all makers that a union chooses from. A union may contain unions."""
    for maker, settings in args.get("controls", {}).items():
        inner = settings.get("args", {})
        if maker == UNION:
            yield from _leaves(inner)
        else:
            yield maker, Control(maker, inner)


def drawn_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the makers of a pair drew (skeletons, tracks, ...), over all of its references."""
    parts = reference_records(record)
    return {key: value for part in parts for key, value in part.get("drawn", {}).items()}


def mixed_controls(task: Task, windows: Sequence[Sequence[Control]]) -> dict[str, Control]:
    """The controls of a set by name, if it may hold several; empty for a set with one control.

    windows: the controls of each window. The controls of a union count even if no window has them, so that a control
    that was not measured is not forgotten.
    """
    if task.family != "structure":
        return {}
    controls = {
        control.name: control for control in (*configured_controls(task), *(c for window in windows for c in window))
    }
    return controls if task.maker == UNION or len(controls) > 1 else {}


def configured_controls(task: Task) -> list[Control]:
    """The controls that a union chooses from, in the order of its settings; none for another task."""
    return list(dict(_leaves(task.maker_args)).values()) if task.maker == UNION else []


def makers_of(task: Task) -> set[str]:
    """The makers of a task: of a union all that it chooses from, else its own."""
    return {control.maker for control in configured_controls(task)} if task.maker == UNION else {task.maker}


def joint_name(controls: Sequence[str]) -> str:
    """`canny`, or `canny + pose` for a window with two references."""
    return JOINT.join(controls)
