"""Which latent cells of a target are clean: `task.conditions` as masks (B,f,h,w).

Training draws them per clip; validation and eval take the usual ones, which are the same for every clip of a size. A
clean token has noise level 0 and does not count in the loss (`reference.target_tokens`), as in ltx-core's
VideoConditionByLatentIndex and VideoConditionByMask at strength 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from iclora_train.config import ConfigError
from iclora_train.config.conditions import Condition
from iclora_train.diffusion.kept_latents import KeptLatents, levels_to_cells

RANDOM_NUMBERS = 6  # of a clip and an entry, drawn whether the entry is used or not
_MIDDLE = 0.5
_EDGES = 4


@dataclass(frozen=True)
class CleanCells:
    """The conditions of a task. temporal: pixel frames of a latent frame, apart from the first one, which holds one."""

    conditions: Sequence[Condition]
    temporal: int

    def draw(
        self, batch: int, size: tuple[int, int, int], generator: Generator, masks: Tensor | None = None
    ) -> Tensor | None:
        """Random clean cells (B,f,h,w) bool of clips of latent size (f,h,w); None if the task has no conditions.

        masks: levels (B,f,h,w) of the clips' own masks (`mask_to_levels`).

        The numbers drawn do not depend on which conditions a clip gets. A clip that would be clean everywhere, such as
        a picture with a prefix, gets no condition.
        """
        if not self.conditions:
            return None
        numbers = torch.rand(batch, len(self.conditions), RANDOM_NUMBERS, generator=generator).tolist()
        clips = []
        for number, of_clip in enumerate(numbers):
            drawn = zip(self.conditions, of_clip, strict=True)
            used = [(condition, rest) for condition, (chance, *rest) in drawn if chance < condition.p]
            clips.append(self._cells(used, size, None if masks is None else masks[number]))
        return torch.stack(clips)

    def usual(self, batch: int, size: tuple[int, int, int], masks: Tensor | None = None) -> Tensor | None:
        """The clean cells (B,f,h,w) of validation and eval; None if no cell is clean.

        Conditions with p >= 0.5 are used, in the middle of their bounds: a part of the picture lies in its middle and
        has the first of the entry's shapes. A mask from the data is read for each clip: masks as in `draw`.
        """
        middle = [_MIDDLE] * (RANDOM_NUMBERS - 1)
        middle[0] = 0.0  # the first shape
        used = [(condition, middle) for condition in self.conditions if condition.usual]
        clip_masks = [None] * batch if masks is None else list(masks)
        cells = torch.stack([self._cells(used, size, mask) for mask in clip_masks])
        return cells if cells.any() else None

    def usual_settings(self) -> list[dict[str, Any]]:
        """The settings of the conditions that `usual` uses."""
        return [condition.as_dict() for condition in self.conditions if condition.usual]

    def _cells(
        self, used: Sequence[tuple[Condition, Sequence[float]]], size: tuple[int, int, int], mask: Tensor | None
    ) -> Tensor:
        """The cells (f,h,w) that one of the conditions keeps clean; numbers in [0, 1) choose among their bounds.

        mask: levels (f,h,w) of the clip's own mask. ConfigError if a condition needs it and the clip has none.
        """
        clean = torch.zeros(size, dtype=torch.bool)
        for condition, numbers in used:
            if condition.source is not None:
                clean |= ~levels_to_cells(_own_mask(condition, mask), str(condition.mode))
            elif condition.kind == "mask":
                clean |= ~_part(condition, numbers, size[1:])
            elif condition.kind == "suffix":
                count = _latent_frames(condition, self.temporal, numbers[1])
                clean[max(size[0] - count, 0) :] = True
            else:
                first = condition.kind == "first_frame"
                clean[: 1 if first else _latent_frames(condition, self.temporal, numbers[1])] = True
        return clean & ~clean.all()


def _own_mask(condition: Condition, mask: Tensor | None) -> Tensor:
    if mask is None:
        raise ConfigError(
            f"task.conditions (mask): source={condition.source}, and the pairs of data.root have no mask: prepare them "
            "with this setting"
        )
    return mask


def kept_of_target(target: Tensor, clean_cells: CleanCells, masks: Tensor | None = None) -> KeptLatents | None:
    """The usual clean parts of targets (B,C,f,h,w), for `sampler.sample`; None if no cell is clean.

    masks: levels (B,f,h,w) of the clips' own masks.
    """
    batch, _, f, h, w = target.shape
    mask = clean_cells.usual(batch, (f, h, w), masks)
    return None if mask is None else KeptLatents(target, mask.to(target.device))


def usual_latent_frames(condition: Condition, temporal: int) -> int:
    """The latent frames of a prefix or a suffix that validation and eval give; temporal: pixel frames of each."""
    return _latent_frames(condition, temporal, _MIDDLE)


def _latent_frames(condition: Condition, temporal: int, number: float) -> int:
    """Whole latent frames within the bounds of a prefix (1 + temporal k frames) or a suffix (temporal k), at least one.

    number: in [0, 1), chooses among them.
    """
    first = 1 if condition.kind == "prefix" else 0  # pixel frames before latent frame 1
    low, high = (first + (bound - first) // temporal for bound in condition.frame_bounds)
    return max(low + int(number * (high - low + 1)), 1)


def _part(condition: Condition, numbers: Sequence[float], size: tuple[int, int]) -> Tensor:
    """The cells (h,w) that are made anew. A cell belongs to a rectangle that contains its centre."""
    shape_number, cover_number, aspect, top, left = numbers
    assert condition.shapes is not None
    shape = condition.shapes[int(shape_number * len(condition.shapes))]
    low, high = condition.cover_bounds
    share = low + cover_number * (high - low)
    if shape == "side":
        return _strip(int(top * _EDGES), share, size)
    box = _box(1 - share if shape == "border" else share, 2 ** (2 * aspect - 1), (top, left), size)
    return ~box if shape == "border" else box


def _strip(edge: int, share: float, size: tuple[int, int]) -> Tensor:
    """A strip of a share of the picture along its top, bottom, left or right edge, at least one cell wide."""
    axis = edge // 2
    count = max(round(share * size[axis]), 1)
    cells = torch.arange(size[axis])
    inside = cells < count if edge % 2 == 0 else cells >= size[axis] - count
    return (inside[:, None] if axis == 0 else inside[None]).expand(size)


def _box(share: float, aspect: float, place: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """A rectangle of a share of the picture, of at least one cell. aspect: width over height relative to the picture.

    place: of its upper left corner within the room that the picture leaves, each in [0, 1].
    """
    height = min(max(math.sqrt(share / aspect), share), 1.0)
    sides = (height, share / height)
    inside = []
    for side, start, count in zip(sides, place, size, strict=True):
        cells = max(round(side * count), 1)
        first = round(start * (count - cells))
        index = torch.arange(count)
        inside.append((index >= first) & (index < first + cells))
    return inside[0][:, None] & inside[1][None]
