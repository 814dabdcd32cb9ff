"""Degradations one after another, as in the chains of BSRGAN and Real-ESRGAN."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, build_maker, check_bool, check_number, register
from data_prep.makers.degrade.resize import check_filters, resize_frame
from iclora_train.config import ConfigError, require

Steps = list[dict[str, Any]]
LOW_RESOLUTION = "degrade.low_resolution"  # it has another size inside


@dataclass(frozen=True)
class Step:
    """A maker and how likely it is."""

    name: str
    maker: Maker
    p: float


def parse_steps(key: str, steps: Any) -> list[Step]:
    """The steps of `task.maker_args.<key>`, [{maker: degrade.noise, args: {sigma: [1, 5]}, p: 0.5}, ...]; args default
    to the maker's own and p to 1. ConfigError names the step.
    """
    listed = isinstance(steps, list)
    require(listed, f"task.maker_args.{key}={steps!r} must be a list of steps, {{maker, args, p}} each")
    read = []
    for number, step in enumerate(steps):
        where = f"task.maker_args.{key}[{number}]"
        known = isinstance(step, dict) and "maker" in step and set(step) <= {"maker", "args", "p"}
        require(known, f"{where}={step!r} must have the key maker, and may have args and p")
        name = str(step["maker"])
        fits = name.startswith("degrade.") and name != LOW_RESOLUTION
        require(fits, f"{where}.maker={name} must be a degradation other than {LOW_RESOLUTION}")
        try:
            maker = build_maker(name, step.get("args") or {})
            check_number("p", step.get("p", 1.0), 0, 1)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        read.append(Step(name, maker, float(step.get("p", 1.0))))
    return read


def apply_steps(
    steps: list[Step], order: list[int], frames: np.ndarray, rng: np.random.Generator, source: SourceWindow
) -> tuple[np.ndarray, list[Params]]:
    """Frames after the steps whose numbers are `order`, and what each drew."""
    drawn: list[Params] = []
    for number in order:
        frames, told = steps[number].maker(frames, rng, source)
        drawn.append({"maker": steps[number].name, "step": number, **told})
    return frames, drawn


def draw_order(steps: list[Step], shuffle: bool, rng: np.random.Generator) -> list[int]:
    """Numbers of the steps that happen, in their order or any."""
    happens = rng.random(len(steps)) < [step.p for step in steps]
    order = rng.permutation(len(steps)) if shuffle else np.arange(len(steps))
    return [int(number) for number in order if happens[number]]


@register("degrade.chain")
@dataclass(frozen=True)
class Chain:
    """Several degradations in order, each with its probability.

    steps: [{maker, args, p}, ...]; a step may be a chain itself, so a second round is a second step. shuffle: the order
    is drawn per clip (BSRGAN).
    """

    steps: Steps = field(default_factory=list)
    shuffle: bool = False

    def __post_init__(self) -> None:
        require(len(self.parsed) > 0, "task.maker_args.steps is empty: give at least one {maker: degrade...}")
        check_bool("shuffle", self.shuffle)

    @cached_property
    def parsed(self) -> list[Step]:
        return parse_steps("steps", self.steps)

    @property
    def margin(self) -> int:
        return sum(step.maker.margin for step in self.parsed)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        order = draw_order(self.parsed, self.shuffle, rng)
        degraded, drawn = apply_steps(self.parsed, order, frames, rng, source)
        return degraded, {"steps": drawn}


@register("degrade.one_of")
@dataclass(frozen=True)
class OneOf:
    """One of several degradations, drawn per clip. steps: [{maker, args, p}, ...] with p as relative weights."""

    steps: Steps = field(default_factory=list)

    def __post_init__(self) -> None:
        total = sum(step.p for step in self.parsed)
        require(total > 0, "task.maker_args.steps: give at least one step with p above 0")

    @cached_property
    def parsed(self) -> list[Step]:
        return parse_steps("steps", self.steps)

    @property
    def margin(self) -> int:
        return max(step.maker.margin for step in self.parsed)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        weights = np.array([step.p for step in self.parsed])
        number = int(rng.choice(len(weights), p=weights / weights.sum()))
        degraded, drawn = apply_steps(self.parsed, [number], frames, rng, source)
        return degraded, {"steps": drawn}


@register(LOW_RESOLUTION)
@dataclass(frozen=True)
class LowResolution:
    """A picture `factor` times smaller, for tasks whose references are stored so (task.reference_downscale).

    factor: write ${task.reference_downscale}. filters: to draw from (area, bilinear, bicubic, lanczos). before, after:
    steps as of degrade.chain, at full size before and at the small size after it: a small picture's noise and blocks
    are its own. What this returns is of full size, every small pixel repeated, whose mean is the small picture again.
    """

    factor: int = 2
    filters: list[str] = field(default_factory=lambda: ["area", "bicubic", "lanczos"])
    before: Steps = field(default_factory=list)
    after: Steps = field(default_factory=list)

    def __post_init__(self) -> None:
        whole = isinstance(self.factor, int) and self.factor >= 1
        require(whole, f"task.maker_args.factor={self.factor} must be a whole number of at least 1")
        check_filters("filters", self.filters)
        assert self.parsed  # read now, so that what is wrong is told now

    @cached_property
    def parsed(self) -> tuple[list[Step], list[Step]]:
        return parse_steps("before", self.before), parse_steps("after", self.after)

    @property
    def margin(self) -> int:
        return 0  # the small pixels' grid begins at the window's corner

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        before, after = self.parsed
        name = self.filters[rng.integers(len(self.filters))]
        frames, told_before = apply_steps(before, draw_order(before, False, rng), frames, rng, source)
        size = (frames.shape[1] // self.factor, frames.shape[2] // self.factor)
        small = np.stack([resize_frame(frame, size, name) for frame in frames])
        small, told_after = apply_steps(after, draw_order(after, False, rng), small, rng, source)
        large = small.repeat(self.factor, axis=1).repeat(self.factor, axis=2)
        return large, {"filter": name, "before": told_before, "after": told_after}
