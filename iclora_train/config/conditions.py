"""Settings of `task.conditions`: parts of the target that stand in the sequence as clean latents in place of noise.

One list is used by training (which parts of a clip are clean is drawn per clip), by validation and by eval (the usual
part, `diffusion.clean_cells`), and is stored in the adapter file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from iclora_train.config.diffusion import CELL_MODES
from iclora_train.config.errors import ConfigError, one_of, require
from iclora_train.config.no_reference import NO_REFERENCE

SHAPES = ("box", "side", "border")
KEYS = {  # keys that a kind reads, apart from kind and p
    "first_frame": (),
    "prefix": ("frames",),
    "suffix": ("frames",),
    "mask": ("shapes", "cover", "source", "column", "maker", "maker_args", "mode"),
}
# keys of a mask that comes from the data, by `source`
SOURCES = {"column": ("column", "mode"), "maker": ("maker", "maker_args", "mode")}
MASK_COLUMNS = ("mask", "mask_2")  # of the clip list
# keys newer than the others: left out of settings that are compared while they are null
NEW_KEYS = ("source", "column", "maker", "maker_args", "mode")
USUAL_P = 0.5  # conditions with at least this probability are part of validation and of eval
_EXAMPLE = "e.g. task.conditions='[{kind: prefix, frames: [1, 17]}]'"


@dataclass
class Condition:
    """One part of the target that is clean.

    kind    first_frame
            prefix, suffix   the first or the last `frames` frames
            mask             everything outside a part of the picture, which is made anew: a shape that is drawn for
                             each clip, or, with `source`, a mask that preparation stores with each window
    p       probability that a training clip has it
    frames  fewest and most pixel frames; whole latent frames are clean (`clean_cells`)
    shapes  of the part that is made anew: box (a rectangle), side (a strip along one border of the picture), border
            (everything outside a rectangle)
    cover   smallest and largest share of the picture that is made anew
    source  of a mask: null (drawn shapes); column (of the clip list, white is made anew); maker (the part that a pair
            maker paints, such as edit.hole)
    column  mask or mask_2
    maker, maker_args  null: those of the task, so that the mask is the part that the reference hides
    mode    a latent cell is made anew if `any` of its pixels are white, at least `half`, or `all`
    """

    kind: str = MISSING
    p: float = 1.0
    frames: list[int] | None = None
    shapes: list[str] | None = None
    cover: list[float] | None = None
    source: str | None = None
    column: str | None = None
    maker: str | None = None
    maker_args: dict[str, Any] | None = None
    mode: str | None = None

    @property
    def frame_bounds(self) -> tuple[int, int]:
        """The fewest and the most frames, after the checks."""
        assert self.frames is not None
        return self.frames[0], self.frames[1]

    @property
    def cover_bounds(self) -> tuple[float, float]:
        """The smallest and the largest share, after the checks."""
        assert self.cover is not None
        return self.cover[0], self.cover[1]

    @property
    def usual(self) -> bool:
        """Whether validation and eval use it."""
        return self.p >= USUAL_P

    def as_dict(self) -> dict[str, Any]:
        """The keys that its kind reads, and of a mask its source."""
        keys = KEYS[self.kind]
        if self.kind == "mask":
            keys = ("shapes", "cover") if self.source is None else ("source", *SOURCES[self.source])
        return {key: getattr(self, key) for key in ("kind", "p", *keys)}

    def content(self) -> dict[str, Any]:
        """The keys that a mask from the data depends on in pixels."""
        assert self.source is not None
        return {key: getattr(self, key) for key in ("source", *SOURCES[self.source]) if key != "mode"}


def data_mask(conditions: Sequence[Condition]) -> Condition | None:
    """The condition whose mask comes from the data; None without one."""
    return next((condition for condition in conditions if condition.source is not None), None)


def check_conditions(conditions: Sequence[Condition], maker: str = MISSING, maker_args: Any = None) -> None:
    """Set the defaults of each entry. ConfigError names the entry and the key that is wrong.

    maker, maker_args: of the task, the defaults of a mask with `source: maker`.
    """
    for number, condition in enumerate(conditions):
        where = f"task.conditions[{number}]"
        require(condition.kind in KEYS, f"{where}.kind={condition.kind!r} is not one of {', '.join(KEYS)}; {_EXAMPLE}")
        where = f"{where} ({condition.kind})"
        require(0 < condition.p <= 1, f"{where}: p={condition.p} must lie in (0, 1]; leave the entry out for 0")
        for key in ("frames", "shapes", "cover", *NEW_KEYS):
            read = key in KEYS[condition.kind]
            require(read or getattr(condition, key) is None, f"{where}: {key} is not a key of this kind: remove it")
        if "frames" in KEYS[condition.kind]:
            _check_frames(condition, where)
        if condition.kind == "mask" and condition.source is not None:
            _check_data_mask(condition, where, maker, maker_args)
        elif condition.kind == "mask":
            _check_mask(condition, where)
    for kind in KEYS:
        entries = [condition for condition in conditions if condition.kind == kind]
        require(len(entries) < 2, f"task.conditions has {len(entries)} entries of kind {kind}: give one")


def _check_frames(condition: Condition, where: str) -> None:
    if condition.frames is None:
        raise ConfigError(f"{where}: set frames: [fewest, most], e.g. frames: [1, 17]")
    low, high = condition.frames if len(condition.frames) == 2 else (0, 0)
    require(1 <= low <= high, f"{where}: frames={condition.frames} must be [fewest, most], from 1 on")


def _check_data_mask(condition: Condition, where: str, maker: str, maker_args: Any) -> None:
    one_of(f"{where}: source", str(condition.source), tuple(SOURCES))
    for key in ("shapes", "cover", *NEW_KEYS[1:]):
        require(
            key in SOURCES[str(condition.source)] or getattr(condition, key) is None,
            f"{where}: {key} does not go with source={condition.source}: remove one of them",
        )
    condition.mode = condition.mode or "any"
    one_of(f"{where}: mode", condition.mode, tuple(CELL_MODES))
    if condition.source == "column":
        condition.column = condition.column or MASK_COLUMNS[0]
        one_of(f"{where}: column", condition.column, MASK_COLUMNS)
        return
    if condition.maker is None:
        condition.maker, condition.maker_args = (
            maker,
            maker_args if condition.maker_args is None else condition.maker_args,
        )
    condition.maker_args = condition.maker_args or {}
    require(
        condition.maker != NO_REFERENCE,
        f"{where}: source=maker: task.maker={NO_REFERENCE} paints no mask: set maker, e.g. maker: edit.hole",
    )


def _check_mask(condition: Condition, where: str) -> None:
    for key in NEW_KEYS[1:]:
        require(
            getattr(condition, key) is None,
            f"{where}: {key} is a key of a mask from the data: set source too ({', '.join(SOURCES)}), or remove it",
        )
    condition.shapes = list(SHAPES) if condition.shapes is None else condition.shapes
    condition.cover = [0.1, 0.5] if condition.cover is None else condition.cover
    require(len(condition.shapes) > 0, f"{where}: shapes is empty: name one of {', '.join(SHAPES)}")
    for shape in condition.shapes:
        one_of(f"{where}: shapes", shape, SHAPES)
    low, high = condition.cover if len(condition.cover) == 2 else (0.0, 0.0)
    require(0 < low <= high < 1, f"{where}: cover={condition.cover} must be [smallest, largest] within (0, 1)")
