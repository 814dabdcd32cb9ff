"""The base class of pair makers, the registry of makers by name, and checks of their arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_prep.clips.crop import Crop
from iclora_train.config import require
from iclora_train.media.section import Section

Params = dict[str, Any]  # the random parameters of one reference, as JSON; `drawn` in the record of the pair


@dataclass(frozen=True)
class SourceWindow:
    """The window of a clip that the frames were cut from, for makers that need more than the pixels.

    clip: id of the clip. path: its video file. indices: source frame number of every frame. fps: rate of the frames.
    crop: maps pictures (`crop.apply`) and points (`crop.apply_to_points`) of the whole clip onto the frames. The
    `crop.size` pixels at `crop.inner_offset` become the target; the pixels around them are margin. files: further files
    of the clip by column of the clip list (mask, depth, tracks, ...). number: index of the window within its clip.
    section: the section of the video that the numbers of frames count from; None: the whole video. place: the frame of
    the window that was drawn for the reference (`task.reference_frame`); None: none was. curve_frames: frames that a
    drawn curve of points spans; None: those of the clip.
    """

    clip: str
    path: Path
    indices: tuple[int, ...]
    fps: float
    crop: Crop
    files: Mapping[str, Path] = field(default_factory=dict)
    number: int = 0
    section: Section | None = None
    place: int | None = None
    curve_frames: int | None = None

    def file(self, column: str) -> Path:
        """The file that the clip list names in `column`. ConfigError if the row of the clip has none."""
        message = f"clip {self.clip}: its row names no `{column}`; give data.clips a csv or jsonl list with that column"
        require(column in self.files, message)
        return self.files[column]


class Maker(ABC):
    """Base class of pair makers: a frozen dataclass whose fields are `task.maker_args`.

    Calling a maker returns a reference of the target's size. All random numbers come from the generator, so the same
    frames, arguments and seed give the same bytes again.
    """

    @property
    def margin(self) -> int:
        """Pixels around a frame that influence its reference. The maker receives them where the clip has them."""
        return 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns of the clip list that the maker requires. Clips without them are dropped and reported first."""
        return ()

    @property
    def needs_motion(self) -> bool:
        """Whether a still gives no useful reference. Images are then dropped and reported first."""
        return False

    def check(self, files: Mapping[str, Path]) -> None:  # noqa: B027  (a maker without files has nothing to check)
        """ValueError if the maker cannot use the files of a clip. Such clips are dropped and reported first."""

    @abstractmethod
    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        """uint8 RGB (F,H,W,3) -> reference uint8 (F,H,W,3), and the random parameters for the record."""


class RegionMaker(Maker):
    """A maker that marks a part of the clip, which the adapter learns to make anew."""

    @abstractmethod
    def region(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        """The part: (F,H,W) bool of frames (F,H,W,3), and its random parameters. The same that the maker paints."""


MAKERS: dict[str, Callable[..., Maker]] = {}
C = TypeVar("C", bound=Callable[..., Maker])


def register(name: str) -> Callable[[C], C]:
    """Class decorator: make a maker available as `task.maker=<name>`. ValueError if the name is taken."""

    def add(maker: C) -> C:
        if name in MAKERS:
            raise ValueError(f"the pair maker {name} is registered in {MAKERS[name].__module__} and {maker.__module__}")
        MAKERS[name] = maker
        return maker

    return add


def build_maker(name: str, args: dict[str, Any]) -> Maker:
    """The maker `task.maker` with the arguments `task.maker_args`. ConfigError names the wrong key and the choices."""
    require(name in MAKERS, f"task.maker={name!r} is not one of {', '.join(sorted(MAKERS))}")
    require(isinstance(args, dict), f"task.maker_args={args!r}, of {name}, must be arguments, {{name: value, ...}}")
    maker: Any = MAKERS[name]
    allowed = [field.name for field in fields(maker)]
    unknown = sorted(set(args) - set(allowed))
    choices = ", ".join(allowed) or "none"
    require(not unknown, f"task.maker_args.{'/'.join(unknown)} is not an argument of {name}; its arguments: {choices}")
    return maker(**args)


def check_number(key: str, value: object, low: float, high: float = float("inf")) -> None:
    """ConfigError unless `task.maker_args.<key>` is a number in [low, high]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    require(is_number, f"task.maker_args.{key}={value!r} must be a number")
    assert isinstance(value, int | float)
    require(low <= value <= high, f"task.maker_args.{key}={value} must lie in [{low:g}, {high:g}]")


def check_range(key: str, value: object, low: float, high: float = float("inf")) -> None:
    """ConfigError unless `task.maker_args.<key>` is [from, to] with low <= from <= to <= high."""
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    require(is_pair, f"task.maker_args.{key}={value!r} must be a range [from, to]")
    assert isinstance(value, list | tuple)
    for end in value:
        check_number(key, end, low, high)
    require(value[0] <= value[1], f"task.maker_args.{key}={value!r} must be a range from small to large")


def check_path(key: str, value: object) -> None:
    """ConfigError unless `task.maker_args.<key>` is a path as text, or null."""
    require(value is None or isinstance(value, str), f"task.maker_args.{key}={value!r} must be a path")


def check_bool(key: str, value: object) -> None:
    """ConfigError unless `task.maker_args.<key>` is true or false."""
    require(isinstance(value, bool), f"task.maker_args.{key}={value!r} must be true or false")
