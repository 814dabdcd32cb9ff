"""The settings of a task (`task`): what an adapter learns, and how its references are made and placed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

from iclora_train.config.audio_reference import AudioReference
from iclora_train.config.conditions import Condition, check_conditions
from iclora_train.config.errors import one_of, require
from iclora_train.config.no_reference import NO_REFERENCE, check_task
from iclora_train.config.places import check_frame
from iclora_train.config.reference_use import KEYS, OF_TASK, TASK_KEYS, ReferenceUse
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
    # how strongly and how cleanly training gives the first reference (`ReferenceUse`); null: as `flow` says
    reference_strength: Any = None
    reference_attention_strength: Any = None
    reference_attention_strength_p: float | None = None
    reference_region_mask_p: float | None = None
    reference_noise: Any = None
    reference_noise_p: float | None = None
    maker: str = MISSING  # a pair maker of data_prep, e.g. degrade.defocus
    maker_args: dict[str, Any] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)  # parts of the target that are clean
    more_references: list[MoreReference] = field(default_factory=list)  # references after the first, in this order
    reference_slots: bool = False  # the adapter learns a vector for each of several references, which tells them apart
    # a sound that stands beside the target's, with model.audio=on; source: null for none
    audio_reference: AudioReference = field(default_factory=AudioReference)
    video_given: bool = False  # the video is clean and has no loss: the adapter makes its sound, with model.audio=on

    def __post_init__(self) -> None:
        one_of("task.family", self.family, ("restoration", "colorize", "structure", "edit", "style"))
        for key in ("reference_downscale", "reference_temporal_scale"):
            value = getattr(self, key)
            require(value >= 1, f"task.{key}={value} must be a whole number of at least 1")
        check_frame(
            "task.reference_frame", self.reference_frame, "task.reference_temporal_scale", self.reference_temporal_scale
        )
        self.reference_use.check(f"task.{OF_TASK}")
        check_conditions(self.conditions, self.maker, self.maker_args)
        check_references(self.more_references, self.maker)
        check_slots(self.reference_slots, self.more_references)
        self.audio_reference.check()
        require(
            self.has_reference or self.audio_reference.source != "reference",
            f"task.audio_reference.source=reference: task.maker={NO_REFERENCE} has no reference video: set source to "
            "target or column",
        )
        self._check_given()
        keys = ("reference_downscale", "reference_temporal_scale", "reference_frame", "maker_args", *TASK_KEYS)
        check_task(self.maker, self.family, {key: getattr(self, key) for key in keys})

    def _check_given(self) -> None:
        """ConfigError for settings of a video that is made where it is given."""
        if self.video_given:
            require(
                not self.conditions,
                "task.video_given=true gives the whole video, and task.conditions parts of it: remove one of them",
            )
            require(
                not self.has_reference,
                f"task.maker={self.maker}: task.video_given=true makes the sound of the target's own video, and takes "
                f"no reference video: set task.maker={NO_REFERENCE} task.family=style",
            )

    @property
    def reference_sound(self) -> AudioReference | None:
        """The settings of the audio reference; None for a task without one."""
        return self.audio_reference if self.audio_reference.source is not None else None

    @property
    def needs_audio(self) -> bool:
        """Whether the task is trained on both streams only."""
        return self.reference_sound is not None or self.video_given

    @property
    def in_context(self) -> bool:
        """Whether clips have anything beside their caption: references of video or sound, or a video that is given."""
        return self.has_reference or self.needs_audio

    @property
    def has_reference(self) -> bool:
        """Whether clips have references. A plain LoRA has none."""
        return self.maker != NO_REFERENCE

    @property
    def reference_names(self) -> list[str]:
        """The name of each reference, in order."""
        return [FIRST, *(reference.name for reference in self.more_references)] if self.has_reference else []

    @property
    def reference_use(self) -> ReferenceUse:
        """How training uses the first reference."""
        return ReferenceUse.of(self, OF_TASK)

    @property
    def reference_uses(self) -> list[ReferenceUse]:
        """How training uses each reference, in order."""
        return [self.reference_use, *(more.use for more in self.more_references)] if self.has_reference else []

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
            **{OF_TASK + key: getattr(more, key) for key in KEYS},
            more_references=[],
            reference_slots=False,
        )

    def for_references(self) -> list[Task]:
        """`of_reference` for every reference."""
        return [self.of_reference(number) for number in range(len(self.reference_names))]
