"""Masks of the part of a window that is made anew, from the data (`task.conditions`, kind mask with a source)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.clips.clip_list import Clip
from data_prep.clips.crop import Crop
from data_prep.clips.windows import MAKER_USES, Window, window_seed
from data_prep.makers.base import Params, RegionMaker, SourceWindow, build_maker
from data_prep.makers.edit.masks import load_clip_mask, paint_mask
from iclora_train.config import ConfigError, Data, Task, require
from iclora_train.config.conditions import data_mask
from iclora_train.data.reference_kinds import MASK_COLOUR


@dataclass(frozen=True)
class ColumnMask(RegionMaker):
    """The clip's own mask, from a column of the clip list; white is made anew."""

    column: str

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def region(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        return load_clip_mask(source, self.column), {}

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        return paint_mask(frames, load_clip_mask(source, self.column), MASK_COLOUR), {}


def mask_maker(task: Task) -> RegionMaker | None:
    """The maker of the masks of a task; None if no condition has its mask from the data.

    ConfigError names the entry of task.conditions whose maker or arguments are wrong.
    """
    condition = data_mask(task.conditions)
    if condition is None:
        return None
    if condition.source == "column":
        return ColumnMask(str(condition.column))
    where = f"task.conditions[{task.conditions.index(condition)}] (mask)"
    try:
        maker = build_maker(str(condition.maker), dict(condition.maker_args or {}))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(maker, RegionMaker):
        raise ConfigError(
            f"{where}: maker={condition.maker} paints no part of the clip: name one that does, e.g. maker: edit.hole"
        )
    return maker


def make_mask(
    maker: RegionMaker, frames: np.ndarray, crop: Crop, window: Window, clip: Clip, task: Task, data: Data
) -> tuple[np.ndarray, dict[str, Any]]:
    """The mask (F,H,W) bool of a window's frames (F,H,W,3), and its part of the record.

    crop: without margin. A maker that a reference of the task has too, with the same arguments, draws the same part as
    for that reference: then the mask is what the reference hides.
    """
    seed = window_seed(data, clip.id, window.number, _seed_use(task))
    source = SourceWindow(
        window.clip, clip.path, window.indices, window.fps, crop, clip.files, window.number, clip.section
    )
    mask, drawn = maker.region(frames, np.random.default_rng(seed), source)
    require(
        mask.shape == frames.shape[:3],
        f"clip {clip.id}: its mask has the size {mask.shape}, its window {frames.shape[:3]}",
    )
    return mask, {"seed": seed, "drawn": drawn, "covered": float(mask.mean())}


def _seed_use(task: Task) -> int:
    """The use of `window_seed` with which the mask is drawn: that of the reference that it belongs to."""
    condition = data_mask(task.conditions)
    assert condition is not None
    parts = [(part.maker, dict(part.maker_args)) for part in task.for_references()]
    painted = (condition.maker, dict(condition.maker_args or {}))
    number = parts.index(painted) if painted in parts else 0
    return MAKER_USES + number if number else 1
