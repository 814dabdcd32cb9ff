"""What a maker is, the registry of makers by name, and helpers to check their arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from data_prep.clips.crop import Crop
from iclora_train.config import require

Params = dict[str, Any]


@dataclass(frozen=True)
class SourceWindow:
    """Where the frames that a maker is given come from, for makers that need more than their pixels.

    clip: its id. path: the video. indices: source frame number of every frame. fps: of the frames. crop: brings
    pictures (`crop.place`) and points (`crop.points`) of the whole clip onto the frames, whose inner
    `crop.size` pixels at `crop.inner_offset` become the target; the rest is margin. files: what else the clip's row
    names, by column (mask, depth, tracks, ...). number: of the window among those of its clip.
    """

    clip: str
    path: Path
    indices: tuple[int, ...]
    fps: float
    crop: Crop
    files: Mapping[str, Path] = field(default_factory=dict)
    number: int = 0

    def file(self, column: str) -> Path:
        """The file of a column. ConfigError when the clip's row names none."""
        why = f"clip {self.clip}: its row names no `{column}`; give data.clips a csv or jsonl list with that column"
        require(column in self.files, why)
        return self.files[column]


class Maker(Protocol):
    """A dataclass whose fields are `task.maker_args`. Calling it makes a reference of the target's size.

    Everything random comes from the generator, so the same frames, arguments and seed give the same bytes again. A
    maker that cannot do without columns of the clip list names them in `needs: ClassVar[tuple[str, ...]]`; clips whose
    row lacks one are dropped and reported before the work, and so are those for which its method
    `check(files: Mapping[str, Path]) -> None`, if it has one, raises ValueError.
    """

    @property
    def margin(self) -> int:
        """Pixels around a frame that its reference depends on; they are given where the clip has them."""
        ...

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        """uint8 RGB (F,H,W,3) -> reference uint8 (F,H,W,3), and what was drawn (JSON-able, for the record)."""
        ...


MAKERS: dict[str, Callable[..., Maker]] = {}
C = TypeVar("C", bound=Callable[..., Maker])


def register(name: str) -> Callable[[C], C]:
    """Make a maker known as `task.maker=<name>`."""

    def remember(maker: C) -> C:
        MAKERS[name] = maker
        return maker

    return remember


def build_maker(name: str, args: dict[str, Any]) -> Maker:
    """The maker `task.maker` with `task.maker_args`. ConfigError names what is wrong and the choices."""
    require(name in MAKERS, f"task.maker={name!r} is not one of {', '.join(sorted(MAKERS))}")
    maker: Any = MAKERS[name]
    known = [field.name for field in fields(maker)]
    wrong = sorted(set(args) - set(known))
    choices = ", ".join(known) or "none"
    require(not wrong, f"task.maker_args.{'/'.join(wrong)} is not an argument of {name}; its arguments: {choices}")
    return maker(**args)


def check_number(key: str, value: object, low: float, high: float = float("inf")) -> None:
    """ConfigError unless `task.maker_args.<key>` is a number in [low, high]."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    require(number, f"task.maker_args.{key}={value!r} must be a number")
    assert isinstance(value, int | float)
    require(low <= value <= high, f"task.maker_args.{key}={value} must lie in [{low:g}, {high:g}]")


def check_range(key: str, value: object, low: float, high: float = float("inf")) -> None:
    """ConfigError unless `task.maker_args.<key>` is [from, to] with low <= from <= to <= high."""
    pair = isinstance(value, list | tuple) and len(value) == 2
    require(pair, f"task.maker_args.{key}={value!r} must be a range [from, to]")
    assert isinstance(value, list | tuple)
    for end in value:
        check_number(key, end, low, high)
    require(value[0] <= value[1], f"task.maker_args.{key}={value!r}: the range runs from small to large")


def check_bool(key: str, value: object) -> None:
    """ConfigError unless `task.maker_args.<key>` is true or false."""
    require(isinstance(value, bool), f"task.maker_args.{key}={value!r} must be true or false")
