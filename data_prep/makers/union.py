"""Several controls for one adapter: each window has one of them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, build_maker, check_number, register
from iclora_train.config import require

GOLDEN = 0.6180339887498949  # steps by this share of a circle fall evenly everywhere (Weyl)


@register("union")
@dataclass(frozen=True)
class Union:
    """One of several makers for each window.

    controls: maker -> {weight: share of the windows (default 1), args: its arguments}. The windows of a clip are dealt
    out evenly, so that each control has its share of every clip's windows and of all; the record tells which it was.
    """

    controls: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            len(self.controls) > 0, "task.maker_args.controls is empty: name makers, e.g. control.canny: {weight: 1}"
        )
        for name, control in self.controls.items():
            wrong = sorted(set(control) - {"weight", "args"})
            require(not wrong, f"task.maker_args.controls.{name} has {', '.join(wrong)}; it may have weight and args")
            check_number(f"controls.{name}.weight", control.get("weight", 1), 1e-6)
        self._makers()

    def _makers(self) -> list[Maker]:
        return [build_maker(name, dict(control.get("args", {}))) for name, control in self.controls.items()]

    @property
    def margin(self) -> int:
        return max(maker.margin for maker in self._makers())

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that any of the controls needs."""
        return tuple(sorted({column for maker in self._makers() for column in getattr(maker, "needs", ())}))

    def check(self, files: Mapping[str, Path]) -> None:
        """What each control has to say of a clip's files. ValueError when one cannot use them."""
        for maker in self._makers():
            check = getattr(maker, "check", None)
            if check is not None:
                check(files)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        weights = np.array([control.get("weight", 1) for control in self.controls.values()], np.float64)
        place = (zlib.crc32(source.clip.encode()) / 2**32 + source.number * GOLDEN) % 1
        chosen = int(np.searchsorted(np.cumsum(weights) / weights.sum(), place, side="right"))
        maker = self._makers()[chosen]
        reference, drawn = _with_own_margin(maker, frames, rng, source)
        return reference, {"control": list(self.controls)[chosen], **drawn}


def _with_own_margin(
    maker: Maker, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow
) -> tuple[np.ndarray, Params]:
    """What a maker makes of frames that may have more margin than it asks for: the same as if it were alone."""
    own = replace(source.crop, margin=maker.margin)
    (top, left), (y, x), (height, width) = source.crop.inner_offset, own.inner_offset, own.padded_size
    part = np.s_[:, top - y : top - y + height, left - x : left - x + width]
    made, drawn = maker(np.ascontiguousarray(frames[part]), rng, replace(source, crop=own))
    reference = np.zeros_like(frames)
    reference[part] = made
    return reference, drawn
