"""The settings of a task (`task`): what an adapter learns, and how its references are made and placed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

from iclora_train.config.conditions import Condition, check_conditions
from iclora_train.config.errors import one_of, require
from iclora_train.config.no_reference import NO_REFERENCE, check_task
from iclora_train.config.places import check_frame
from iclora_train.config.references import FIRST, MoreReference, check_references, check_slots, family_of


@dataclass
class Task:
    """What an adapter learns: how its references are made, which trigger calls it, which metrics evaluate it."""

    name: str = MISSING
    family: str = "restoration"  # which metrics evaluate it: restoration, colorize, structure, edit, style
    trigger: str = ""  # added before every caption, stored in the adapter file
    reference_downscale: int = 1  # the reference is this many times smaller than the target
    reference_temporal_scale: int = 1  # the reference's frame rate is this many times lower
    # target frame at which a shorter reference begins; null: it has all frames; [first, last] or any: a picture at a
    # frame that is drawn for each clip
    reference_frame: Any = None
    maker: str = MISSING  # a pair maker of data_prep, e.g. degrade.defocus
    maker_args: dict[str, Any] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)  # parts of the target that are clean
    more_references: list[MoreReference] = field(default_factory=list)  # references after the first, in this order
    reference_slots: bool = False  # the adapter learns a vector for each of several references, which tells them apart

    def __post_init__(self) -> None:
        one_of("task.family", self.family, ("restoration", "colorize", "structure", "edit", "style"))
        for key in ("reference_downscale", "reference_temporal_scale"):
            value = getattr(self, key)
            require(value >= 1, f"task.{key}={value} must be a whole number of at least 1")
        check_frame(
            "task.reference_frame", self.reference_frame, "task.reference_temporal_scale", self.reference_temporal_scale
        )
        check_conditions(self.conditions, self.maker, self.maker_args)
        check_references(self.more_references, self.maker)
        check_slots(self.reference_slots, self.more_references)
        keys = ("reference_downscale", "reference_temporal_scale", "reference_frame", "maker_args")
        check_task(self.maker, self.family, {key: getattr(self, key) for key in keys})

    @property
    def has_reference(self) -> bool:
        """Whether clips have references. A plain LoRA has none."""
        return self.maker != NO_REFERENCE

    @property
    def reference_names(self) -> list[str]:
        """The name of each reference, in order."""
        return [FIRST, *(reference.name for reference in self.more_references)] if self.has_reference else []

    def of_reference(self, number: int) -> Task:
        """The task as if reference `number` (0: the first) were its only one.

        Without more_references the task describes every reference of a clip.
        """
        if not self.more_references:
            return self
        if number == 0:
            return replace(self, more_references=[], reference_slots=False)
        more = self.more_references[number - 1]
        return replace(
            self,
            family=family_of(more.maker),
            maker=more.maker,
            maker_args=more.maker_args,
            reference_downscale=more.downscale,
            reference_temporal_scale=more.temporal_scale,
            reference_frame=more.frame,
            more_references=[],
            reference_slots=False,
        )

    def for_references(self) -> list[Task]:
        """`of_reference` for every reference."""
        return [self.of_reference(number) for number in range(len(self.reference_names))]
