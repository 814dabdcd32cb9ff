"""Settings of `eval.diagnose`, typed and bounded. No torch import, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from iclora_train.config import ConfigError, Task, one_of, require
from iclora_train.config.official import task_settings

_OTHER_SECTIONS = ("model", "data", "flow", "optim", "sample", "validation", "eval", "checks", "trainer", "logger")


@dataclass
class DiagnoseSettings:
    """Settings of one diagnosis. null: from the JSON record next to the clip, if `generate` has written one."""

    clip: str = MISSING  # a video, or a folder of frames
    reference: str | None = None  # a video, a folder of frames, or an image
    adapter: str | None = None
    adapter_strength: float | None = None
    attention_strength: float | None = None
    attention_mask: str | None = None  # an image, a video or a folder of frames; white is 1
    prompt: str | None = None
    base: str | None = None  # version of the base that made the clip, e.g. "2.3"
    width: int | None = None  # what was requested of the clip; null: not compared
    height: int | None = None
    frames: int | None = None
    fps: float | None = None  # also the rate of a folder of frames
    fit: str = "crop"  # as in `generate`
    json: str | None = None  # a file for the result
    task: Any = None  # of conf=<task>
    model: Any = None  # these sections of a task are not read
    data: Any = None
    flow: Any = None
    optim: Any = None
    sample: Any = None
    validation: Any = None
    eval: Any = None
    checks: Any = None
    trainer: Any = None
    logger: Any = None

    def __post_init__(self) -> None:
        one_of("fit", self.fit, ("crop", "stretch"))
        for key in ("width", "height", "frames", "fps"):
            value = getattr(self, key)
            require(value is None or value > 0, f"{key}={value} must be above 0, or null")
        strength = self.attention_strength
        require(strength is None or 0 <= strength <= 1, f"attention_strength={strength} must lie in [0, 1]")


def to_settings(composed: DictConfig) -> DiagnoseSettings:
    """Convert a composed config. ConfigError names the setting that is missing or out of bounds."""
    for section in _OTHER_SECTIONS:
        composed[section] = None
    require(not OmegaConf.is_missing(composed, "clip"), "clip must be set: the finished clip, e.g. clip=out.mp4")
    if composed.task is not None:
        composed.task = OmegaConf.merge(OmegaConf.structured(Task), composed.task)
        missing = sorted(OmegaConf.missing_keys(composed))
        require(not missing, f"{', '.join(missing)} must be set: choose a task with conf=<task>")
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, DiagnoseSettings)
    return settings


def task_named(name: str, changes: list[str]) -> Task | None:
    """The task of conf/conf/<name>.yaml with changes such as `task.reference_downscale=4`; None if there is none."""
    loaded = task_settings(name)
    if loaded is None:
        return None
    merged = OmegaConf.merge({"task": OmegaConf.structured(Task)}, loaded, OmegaConf.from_dotlist(changes))
    task = OmegaConf.to_object(merged)
    if not isinstance(task, dict) or not isinstance(task["task"], Task):
        raise ConfigError(f"conf={name} has no task")
    return task["task"]
