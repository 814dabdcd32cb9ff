"""Settings of `eval.diagnose`, typed and bounded. No torch import, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from iclora_train.config import one_of, require
from iclora_train.config.command_line import TEXT_OR_LIST
from iclora_train.config.task_alone import WithTask, clear_other_sections, to_typed_task


@dataclass
class DiagnoseSettings(WithTask):
    """Settings of one diagnosis. null: from the JSON record next to the clip, if `generate` has written one."""

    clip: str = MISSING  # a video, or a folder of frames
    # a video, a folder of frames, or an image; a list of several, in the adapter's order, in which null leaves one out
    reference: Any = field(default=None, metadata=TEXT_OR_LIST)
    adapter: str | None = None
    adapter_strength: float | None = None
    attention_strength: Any = None  # of each reference, in [0, 1]
    # of each reference: an image, a video or a folder of frames; white is 1
    attention_mask: Any = field(default=None, metadata=TEXT_OR_LIST)
    reference_frame: Any = None  # of each reference, the frame at which it begins; null: the adapter's
    prompt: str | None = None
    base: str | None = None  # version of the base that made the clip, e.g. "2.3"
    width: int | None = None  # what was requested of the clip; null: not compared
    height: int | None = None
    frames: int | None = None
    fps: float | None = None  # also the rate of a folder of frames
    fit: str = "crop"  # as in `generate`
    json: str | None = None  # a file for the result

    def __post_init__(self) -> None:
        one_of("fit", self.fit, ("crop", "stretch"))
        for key in ("width", "height", "frames", "fps"):
            value = getattr(self, key)
            require(value is None or value > 0, f"{key}={value} must be above 0, or null")
        self._check_references()

    def _check_references(self) -> None:
        """ConfigError for a value of another type or out of bounds, and for lists of different lengths."""
        checks = {
            "reference": (lambda path: isinstance(path, str) and path, "a path or a list of paths and nulls"),
            "attention_strength": (_is_share, "a number in [0, 1] or a list of such numbers and nulls"),
            "attention_mask": (lambda path: isinstance(path, str) and path, "a path or a list of paths and nulls"),
            "reference_frame": (lambda frame: type(frame) is int, "the number of a frame or a list of such and nulls"),
        }
        for key, (is_valid, expected) in checks.items():
            value = getattr(self, key)
            items = [item for item in as_list(value) if item is not None]
            require(all(map(is_valid, items)), f"{key}={value} must be {expected}")
        paths = as_list(self.reference)
        require(
            not paths or any(path is not None for path in paths),
            f"reference={self.reference} names no file: give one of the references, e.g. reference=[edges.mp4,null]",
        )
        for key in ("attention_strength", "attention_mask", "reference_frame"):
            value = getattr(self, key)
            require(
                not isinstance(value, list) or not paths or len(value) == len(paths),
                f"{key}={value} has {len(as_list(value))} items, and reference has {len(paths)}: give one for each",
            )


def as_list(value: Any) -> list[Any]:
    """A list of several values, or of the only one; empty for null."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_share(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= 1


def to_settings(composed: DictConfig) -> DiagnoseSettings:
    """Convert a composed config. ConfigError names the setting that is missing or out of bounds."""
    clear_other_sections(composed)
    require(not OmegaConf.is_missing(composed, "clip"), "clip must be set: the finished clip, e.g. clip=out.mp4")
    to_typed_task(composed)
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, DiagnoseSettings)
    return settings
