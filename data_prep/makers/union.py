"""Several controls for one adapter: each window uses one of them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, build_maker, check_number, register
from iclora_train.config import require

GOLDEN = 0.6180339887498949  # multiples of it modulo 1 are evenly distributed in [0, 1) (Weyl)


@register("union")
@dataclass(frozen=True)
class Union(Maker):
    """One of several makers for each window.

    controls: maker -> {weight: share of the windows (default 1), args: arguments of the maker}. The assignment is even:
    every control has its share of the windows of each clip and of all windows. The record names the control.
    """

    controls: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_controls(self.controls)
        self._makers()

    def _makers(self) -> list[Maker]:
        return [build_maker(name, dict(control.get("args", {}))) for name, control in self.controls.items()]

    @property
    def margin(self) -> int:
        return max(maker.margin for maker in self._makers())

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that at least one of the controls requires."""
        return tuple(sorted({column for maker in self._makers() for column in maker.needs}))

    def check(self, files: Mapping[str, Path]) -> None:
        for maker in self._makers():
            maker.check(files)

    @property
    def needs_motion(self) -> bool:
        return any(maker.needs_motion for maker in self._makers())

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        weights = np.array([control.get("weight", 1) for control in self.controls.values()], np.float64)
        position = (zlib.crc32(source.clip.encode()) / 2**32 + source.number * GOLDEN) % 1
        index = int(np.searchsorted(np.cumsum(weights) / weights.sum(), position, side="right"))
        reference, params = _call_with_own_margin(self._makers()[index], frames, rng, source)
        return reference, {"control": list(self.controls)[index], **params}


def check_controls(controls: Any) -> None:
    """ConfigError unless `task.maker_args.controls` names makers, each with a weight and arguments of their form."""
    example = "name makers, e.g. control.canny: {weight: 1}"
    require(
        isinstance(controls, dict), f"task.maker_args.controls={controls!r} must be {{maker: {{...}}, ...}}: {example}"
    )
    require(len(controls) > 0, f"task.maker_args.controls is empty: {example}")
    for name, control in controls.items():
        where = f"task.maker_args.controls.{name}"
        require(isinstance(control, dict), f"{where}={control!r} must be {{weight: ..., args: ...}}")
        unknown = sorted(set(control) - {"weight", "args"})
        require(not unknown, f"{where} has {', '.join(unknown)}; allowed: weight and args")
        check_number(f"controls.{name}.weight", control.get("weight", 1), 1e-6)
        args = control.get("args", {})
        require(isinstance(args, dict), f"{where}.args={args!r} must be arguments, {{name: value, ...}}")
        if name == "union":
            check_controls(args.get("controls"))


def _call_with_own_margin(
    maker: Maker, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow
) -> tuple[np.ndarray, Params]:
    """Call a maker on frames whose margin may exceed its own. The result is the same as without the union."""
    crop = replace(source.crop, margin=maker.margin)
    (top, left), (y, x), (height, width) = source.crop.inner_offset, crop.inner_offset, crop.padded_size
    part = np.s_[:, top - y : top - y + height, left - x : left - x + width]
    inner, params = maker(np.ascontiguousarray(frames[part]), rng, replace(source, crop=crop))
    reference = np.zeros_like(frames)
    reference[part] = inner
    return reference, params
