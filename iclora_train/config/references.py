"""Settings of `task.more_references`: references of a clip after its first one, each made and placed in its own way.

The first reference has the keys of `task` itself (maker, reference_downscale, ...). The order says which layout each
given reference gets, so it is part of the task and is stored in the adapter file. The model does not see the order:
content, factors and frame tell references apart, and with `task.reference_slots` a learned vector for each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from iclora_train.config.errors import require
from iclora_train.config.no_reference import NO_REFERENCE
from iclora_train.config.places import check_frame, frame_in_file, is_drawn
from iclora_train.config.reference_use import OF_TASK, ReferenceUse

FIRST = "first"  # the name of the reference that the keys of `task` describe
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_EXAMPLE = "e.g. task.more_references='[{name: appearance, maker: edit.frame, maker_args: {frame: -1}, frame: 0}]'"


@dataclass
class MoreReference:
    """One more reference.

    name            in reports and messages
    maker           a pair maker of data_prep, which gets the frames of the target; `given` reads a column of the list
    downscale       it is this many times smaller than the target
    temporal_scale  its frame rate is this many times lower
    frame           target frame at which it begins, as task.reference_frame; null: it has all frames; [first, last] or
                    any: a picture at a frame that is drawn for each clip
    p               probability that a training clip has it; validation and eval always do

    The last keys say how strongly and how cleanly training gives it (`ReferenceUse`); null: as `flow` says.
    """

    name: str = MISSING
    maker: str = MISSING
    maker_args: dict[str, Any] = field(default_factory=dict)
    downscale: int = 1
    temporal_scale: int = 1
    frame: Any = None
    p: float = 1.0
    strength: Any = None
    attention_strength: Any = None
    attention_strength_p: float | None = None
    region_mask_p: float | None = None
    noise: Any = None
    noise_p: float | None = None

    @property
    def use(self) -> ReferenceUse:
        """How training uses it."""
        return ReferenceUse.of(self)

    def content(self) -> dict[str, Any]:
        """The keys that the pixels depend on: `frame` only where it is drawn."""
        keys = ("maker", "maker_args", "downscale", "temporal_scale")
        drawn = {"frame": self.frame} if is_drawn(self.frame) else {}
        return {key: getattr(self, key) for key in keys} | drawn

    def layout(self) -> dict[str, Any]:
        """The keys that tell how it is used, for the adapter file. frame: a number, null, or the bounds of a drawn
        one."""
        keys = ("name", "downscale", "temporal_scale")
        return {**{key: getattr(self, key) for key in keys}, "frame": frame_in_file(self.frame)}


def family_of(maker: str) -> str:
    """The family (task.family) that the references of a maker belong to."""
    kind = maker.partition(".")[0]
    return {"control": "structure", "union": "structure", "degrade": "restoration"}.get(kind, "edit")


def reference_keys(number: int) -> tuple[str, str, str]:
    """The settings of reference `number` (0: the first): its factor in space, its factor in time, its frame."""
    if number == 0:
        return "task.reference_downscale", "task.reference_temporal_scale", "task.reference_frame"
    entry = f"task.more_references[{number - 1}]"
    return f"{entry}.downscale", f"{entry}.temporal_scale", f"{entry}.frame"


def strength_keys(number: int) -> tuple[str, str]:
    """The settings of the strength and the attention strength of reference `number` (0: the first)."""
    prefix = f"task.{OF_TASK}" if number == 0 else f"task.more_references[{number - 1}]."
    return f"{prefix}strength", f"{prefix}attention_strength"


def check_references(references: Sequence[MoreReference], maker: str) -> None:
    """ConfigError names the entry and the key that is wrong. maker: of the first reference."""
    require(
        not references or maker != NO_REFERENCE,
        f"task.more_references: task.maker={NO_REFERENCE} has no first reference; set task.maker, or leave them out",
    )
    for number, reference in enumerate(references):
        where = f"task.more_references[{number}]"
        for key in ("name", "maker"):
            require(getattr(reference, key) != MISSING, f"{where} has no {key}; {_EXAMPLE}")
        require(
            NAME.fullmatch(reference.name) is not None,
            f"{where}.name={reference.name!r} must be a letter, then up to 39 letters, digits or _; {_EXAMPLE}",
        )
        require(reference.maker != NO_REFERENCE, f"{where}.maker={NO_REFERENCE} makes no reference: leave it out")
        _check_numbers(reference, where)
    names = [FIRST, *(reference.name for reference in references)]
    twice = next((name for name in names if names.count(name) > 1), None)
    taken = f"{FIRST} is the reference of task.maker" if twice == FIRST else "two references have it"
    require(twice is None, f"task.more_references: name {twice}: {taken}; choose another one")


def check_slots(slots: bool, references: Sequence[MoreReference]) -> None:
    """ConfigError for learned slots of a task with one reference, or none."""
    require(
        not slots or len(references) > 0,
        "task.reference_slots=true learns to tell several references apart, and the task has no task.more_references: "
        "list them, or leave reference_slots out",
    )


def _check_numbers(reference: MoreReference, where: str) -> None:
    for key in ("downscale", "temporal_scale"):
        value = getattr(reference, key)
        require(value >= 1, f"{where}.{key}={value} must be a whole number of at least 1")
    require(0 < reference.p <= 1, f"{where}.p={reference.p} must lie in (0, 1]; leave the entry out for 0")
    check_frame(f"{where}.frame", reference.frame, "temporal_scale", reference.temporal_scale)
    reference.use.check(f"{where}.")


def comparable_references(references: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of `task.more_references` as JSON, with the keys that the pixels depend on."""
    return [MoreReference(**reference).content() for reference in references]
