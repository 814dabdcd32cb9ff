"""Edits: the adapter learns to fill a painted region, to continue from a still, or to reach a frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from data_prep.makers.base import Maker, Params, RegionMaker, SourceWindow, check_number, check_range, register
from data_prep.makers.edit.masks import SHAPES, dilate, load_clip_mask, paint_mask, random_mask
from data_prep.makers.trajectory import Range, Trajectory, log_uniform, uniform
from iclora_train.config import frame_from_start, one_of, require
from iclora_train.config.places import check_frame, frame_range, is_drawn
from iclora_train.data.reference_kinds import MASK_COLOUR
from iclora_train.media.clip import read_clip


def _check_colour(colour: list[int]) -> None:
    is_triple = isinstance(colour, list | tuple) and len(colour) == 3
    valid = is_triple and all(isinstance(level, int) and 0 <= level <= 255 for level in colour)
    require(valid, f"task.maker_args.colour={colour!r} must be [red, green, blue], 0 to 255 each")


@register("edit.hole")
@dataclass(frozen=True)
class Hole(Trajectory, RegionMaker):
    """A region painted in one colour, which the adapter learns to fill.

    mask: `drawn`, or `column`: the clip's own mask, from the column `mask` of the clip list (white is painted). shapes:
    names to draw from (box, ellipse, free). cover: [from, to] of the masked share of the picture. course, step: how the
    shape moves. dilate: [from, to] in pixels by which the mask grows. colour: of the painted pixels; the official
    adapter uses #66FF00. The reference contains the mask exactly (`masks.mask_from_colour`): no other pixel has this
    colour.
    """

    mask: str = "drawn"
    shapes: list[str] = field(default_factory=lambda: list(SHAPES))
    cover: Range = field(default_factory=lambda: [0.05, 0.35])
    dilate: Range = field(default_factory=lambda: [0.0, 0.0])
    colour: list[int] = field(default_factory=lambda: list(MASK_COLOUR))

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("task.maker_args.mask", self.mask, ("drawn", "column"))
        is_list = isinstance(self.shapes, list) and len(self.shapes) > 0
        require(is_list, f"task.maker_args.shapes={self.shapes!r} must be a list of {', '.join(SHAPES)}")
        for shape in self.shapes:
            one_of("task.maker_args.shapes", shape, SHAPES)
        check_range("cover", self.cover, 0.001, 1)
        check_range("dilate", self.dilate, 0)
        _check_colour(self.colour)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("mask",) if self.mask == "column" else ()

    def region(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        params: Params = {"dilate": round(uniform(self.dilate, rng))}
        if self.mask == "column":
            mask = load_clip_mask(source)
        else:
            params["shape"] = self.shapes[rng.integers(len(self.shapes))]
            cover = uniform(self.cover, rng)
            mask = random_mask(frames.shape[1:3], params["shape"], cover, self, len(frames), rng)
        return dilate(mask, params["dilate"]), params

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        mask, params = self.region(frames, rng, source)
        return paint_mask(frames, mask, tuple(self.colour)), {**params, "covered": float(mask.mean())}


@register("edit.outpaint")
@dataclass(frozen=True)
class Outpaint(RegionMaker):
    """A painted border, which the adapter learns to fill: it extends the picture beyond the visible part.

    aspect: [from, to] of width over height of the visible part, the largest such rectangle in the middle of the frame.
    scale: [from, to] by which that rectangle shrinks, so that the border surrounds it. colour: see edit.hole.
    """

    aspect: Range = field(default_factory=lambda: [0.5625, 1.0])
    scale: Range = field(default_factory=lambda: [0.7, 1.0])
    colour: list[int] = field(default_factory=lambda: list(MASK_COLOUR))

    def __post_init__(self) -> None:
        check_range("aspect", self.aspect, 0.1, 10)
        check_range("scale", self.scale, 0.1, 1)
        _check_colour(self.colour)

    def region(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        height, width = frames.shape[1:3]
        aspect, scale = log_uniform(self.aspect, rng), uniform(self.scale, rng)
        rows, columns = round(scale * min(height, width / aspect)), round(scale * min(width, height * aspect))
        top, left = (height - rows) // 2, (width - columns) // 2
        border = np.ones(frames.shape[:3], bool)
        border[:, top : top + rows, left : left + columns] = False
        return border, {"aspect": aspect, "scale": scale, "kept": [top, left, rows, columns]}

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        border, params = self.region(frames, rng, source)
        return paint_mask(frames, border, tuple(self.colour)), params


@register("edit.loop")
@dataclass(frozen=True)
class Loop(Maker):
    """One still for the length of the clip: the adapter learns to animate the still, or to use its content.

    still: `first`, the first frame of the clip; `any`, a random frame; or `sheet`, the picture in the column `sheet` of
    the clip list. The sheet is fitted whole into the middle of the frame on `background` (a grey level), and mirrored
    if the window is mirrored.
    """

    still: str = "first"
    background: int = 0

    def __post_init__(self) -> None:
        one_of("task.maker_args.still", self.still, ("first", "any", "sheet"))
        check_number("background", self.background, 0, 255)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("sheet",) if self.still == "sheet" else ()

    @property
    def needs_motion(self) -> bool:
        return self.still != "sheet"

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        if self.still == "sheet":
            return np.repeat(self._sheet(source, frames.shape[1:3])[None], len(frames), axis=0), {}
        number = int(rng.integers(len(frames))) if self.still == "any" else 0
        return np.repeat(frames[number : number + 1], len(frames), axis=0), {"frame": number}

    def _sheet(self, source: SourceWindow, size: tuple[int, int]) -> np.ndarray:
        """The sheet, uint8 (H,W,3) of `size`."""
        sheet = next(read_clip(source.file("sheet")))
        scale = min(size[0] / sheet.shape[0], size[1] / sheet.shape[1])
        height, width = (min(round(scale * n), limit) for n, limit in zip(sheet.shape[:2], size, strict=True))
        scaled = cv2.resize(sheet, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        page = np.full((*size, 3), self.background, np.uint8)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        page[top : top + height, left : left + width] = scaled
        return page[:, ::-1] if source.crop.flip else page


@register("edit.frame")
@dataclass(frozen=True)
class Frame(Maker):
    """One frame of the clip itself: the adapter learns to reach it.

    frame: its number; a negative one counts from the end. Write ${task.reference_frame}, the place of the reference:
    also where that is drawn for each window. Without a drawn place, [first, last] or `any` is a random frame of the
    window, as a picture of the scene.
    """

    frame: Any = -1

    def __post_init__(self) -> None:
        check_frame("task.maker_args.frame", self.frame, "", 1)
        require(
            self.frame is not None, "task.maker_args.frame is null: set the number of a frame, e.g. -1 for the last"
        )

    @property
    def needs_motion(self) -> bool:
        return True

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        if source.place is not None:
            number = source.place
        elif is_drawn(self.frame):
            first, last = frame_range("task.maker_args.frame", self.frame, len(frames))
            number = int(rng.integers(first, last + 1))
        else:
            number = frame_from_start("task.maker_args.frame", self.frame, len(frames))
        return frames[number : number + 1], {"frame": number}
