"""Settings of `task.conditions`: parts of the target that stand in the sequence as clean latents in place of noise.

One list is used by training (which parts of a clip are clean is drawn per clip), by validation and by eval (the usual
part, `diffusion.clean_cells`), and is stored in the adapter file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from iclora_train.config.errors import ConfigError, one_of, require

SHAPES = ("box", "side", "border")
KEYS = {  # keys that a kind reads, apart from kind and p
    "first_frame": (),
    "prefix": ("frames",),
    "suffix": ("frames",),
    "mask": ("shapes", "cover"),
}
USUAL_P = 0.5  # conditions with at least this probability are part of validation and of eval
_EXAMPLE = "e.g. task.conditions='[{kind: prefix, frames: [1, 17]}]'"


@dataclass
class Condition:
    """One part of the target that is clean.

    kind    first_frame
            prefix, suffix   the first or the last `frames` frames
            mask             everything outside a part of the picture, which is made anew
    p       probability that a training clip has it
    frames  fewest and most pixel frames; whole latent frames are clean (`clean_cells`)
    shapes  of the part that is made anew: box (a rectangle), side (a strip along one border of the picture), border
            (everything outside a rectangle)
    cover   smallest and largest share of the picture that is made anew
    """

    kind: str = MISSING
    p: float = 1.0
    frames: list[int] | None = None
    shapes: list[str] | None = None
    cover: list[float] | None = None

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
        """The keys that its kind reads."""
        return {key: getattr(self, key) for key in ("kind", "p", *KEYS[self.kind])}


def check_conditions(conditions: Sequence[Condition]) -> None:
    """Set the defaults of each entry. ConfigError names the entry and the key that is wrong."""
    for number, condition in enumerate(conditions):
        where = f"task.conditions[{number}]"
        require(condition.kind in KEYS, f"{where}.kind={condition.kind!r} is not one of {', '.join(KEYS)}; {_EXAMPLE}")
        where = f"{where} ({condition.kind})"
        require(0 < condition.p <= 1, f"{where}: p={condition.p} must lie in (0, 1]; leave the entry out for 0")
        for key in ("frames", "shapes", "cover"):
            read = key in KEYS[condition.kind]
            require(read or getattr(condition, key) is None, f"{where}: {key} is not a key of this kind: remove it")
        if "frames" in KEYS[condition.kind]:
            _check_frames(condition, where)
        if condition.kind == "mask":
            _check_mask(condition, where)
    for kind in KEYS:
        entries = [condition for condition in conditions if condition.kind == kind]
        require(len(entries) < 2, f"task.conditions has {len(entries)} entries of kind {kind}: give one")


def _check_frames(condition: Condition, where: str) -> None:
    if condition.frames is None:
        raise ConfigError(f"{where}: set frames: [fewest, most], e.g. frames: [1, 17]")
    low, high = condition.frames if len(condition.frames) == 2 else (0, 0)
    require(1 <= low <= high, f"{where}: frames={condition.frames} must be [fewest, most], from 1 on")


def _check_mask(condition: Condition, where: str) -> None:
    condition.shapes = list(SHAPES) if condition.shapes is None else condition.shapes
    condition.cover = [0.1, 0.5] if condition.cover is None else condition.cover
    require(len(condition.shapes) > 0, f"{where}: shapes is empty: name one of {', '.join(SHAPES)}")
    for shape in condition.shapes:
        one_of(f"{where}: shapes", shape, SHAPES)
    low, high = condition.cover if len(condition.cover) == 2 else (0.0, 0.0)
    require(0 < low <= high < 1, f"{where}: cover={condition.cover} must be [smallest, largest] within (0, 1)")
