"""Degradations applied one after another, as in BSRGAN and Real-ESRGAN."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, build_maker, check_bool, check_number, register
from data_prep.makers.degrade.resize import check_filters, resize_frame
from iclora_train.config import ConfigError, require

Steps = list[dict[str, Any]]
LOW_RESOLUTION = "degrade.low_resolution"  # not allowed as a step, because its own steps run at another frame size


@dataclass(frozen=True)
class Step:
    """A maker and the probability that it is applied."""

    name: str
    maker: Maker
    p: float


def parse_steps(key: str, steps: Any) -> list[Step]:
    """The steps of `task.maker_args.<key>`, [{maker: degrade.noise, args: {sigma: [1, 5]}, p: 0.5}, ...].

    Without args the maker's defaults are used, without p the step is always applied. ConfigError names the step.
    """
    is_list = isinstance(steps, list)
    require(is_list, f"task.maker_args.{key}={steps!r} must be a list of steps, {{maker, args, p}} each")
    parsed = []
    for number, step in enumerate(steps):
        where = f"task.maker_args.{key}[{number}]"
        valid = isinstance(step, dict) and "maker" in step and set(step) <= {"maker", "args", "p"}
        require(valid, f"{where}={step!r} must have the key maker, and may have args and p")
        name = str(step["maker"])
        allowed = name.startswith("degrade.") and name != LOW_RESOLUTION
        require(allowed, f"{where}.maker={name} must be a degradation other than {LOW_RESOLUTION}")
        try:
            maker = build_maker(name, step.get("args") or {})
            check_number("p", step.get("p", 1.0), 0, 1)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        parsed.append(Step(name, maker, float(step.get("p", 1.0))))
    return parsed


def apply_steps(
    steps: list[Step], order: list[int], frames: np.ndarray, rng: np.random.Generator, source: SourceWindow
) -> tuple[np.ndarray, list[Params]]:
    """Apply the steps with the numbers in `order`. Returns the frames and the parameters of each step."""
    params: list[Params] = []
    for number in order:
        frames, step_params = steps[number].maker(frames, rng, source)
        params.append({"maker": steps[number].name, "step": number, **step_params})
    return frames, params


def draw_order(steps: list[Step], shuffle: bool, rng: np.random.Generator) -> list[int]:
    """Numbers of the steps that are applied, in the given order or shuffled."""
    applied = rng.random(len(steps)) < [step.p for step in steps]
    order = rng.permutation(len(steps)) if shuffle else np.arange(len(steps))
    return [int(number) for number in order if applied[number]]


@register("degrade.chain")
@dataclass(frozen=True)
class Chain(Maker):
    """Several degradations in order, each with its probability.

    steps: [{maker, args, p}, ...]. A step may be a chain itself, so a second round is a second step. shuffle: draw the
    order per clip (BSRGAN).
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

    @property
    def needs_motion(self) -> bool:
        return all(step.maker.needs_motion for step in self.parsed)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        order = draw_order(self.parsed, self.shuffle, rng)
        degraded, params = apply_steps(self.parsed, order, frames, rng, source)
        return degraded, {"steps": params}


@register("degrade.one_of")
@dataclass(frozen=True)
class OneOf(Maker):
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

    @property
    def needs_motion(self) -> bool:
        return any(step.maker.needs_motion for step in self.parsed)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        weights = np.array([step.p for step in self.parsed])
        number = int(rng.choice(len(weights), p=weights / weights.sum()))
        degraded, params = apply_steps(self.parsed, [number], frames, rng, source)
        return degraded, {"steps": params}


@register(LOW_RESOLUTION)
@dataclass(frozen=True)
class LowResolution(Maker):
    """A picture `factor` times smaller, for tasks that store small references (task.reference_downscale).

    factor: write ${task.reference_downscale}. filters: names to draw from (area, bilinear, bicubic, lanczos). before,
    after: steps as in degrade.chain. `before` runs at full size before the resize, `after` at the small size after it,
    so that noise and blocks have the scale of the small picture. The result has full size: every small pixel is
    repeated, and averaging down restores the small picture exactly. The margin is 0, because the grid of small pixels
    starts at the corner of the window.
    """

    factor: int = 2
    filters: list[str] = field(default_factory=lambda: ["area", "bicubic", "lanczos"])
    before: Steps = field(default_factory=list)
    after: Steps = field(default_factory=list)

    def __post_init__(self) -> None:
        valid = isinstance(self.factor, int) and self.factor >= 1
        require(valid, f"task.maker_args.factor={self.factor} must be a whole number of at least 1")
        check_filters("filters", self.filters)
        assert self.parsed  # parse now, so that errors surface before the work

    @cached_property
    def parsed(self) -> tuple[list[Step], list[Step]]:
        return parse_steps("before", self.before), parse_steps("after", self.after)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        before, after = self.parsed
        name = self.filters[rng.integers(len(self.filters))]
        frames, params_before = apply_steps(before, draw_order(before, False, rng), frames, rng, source)
        size = (frames.shape[1] // self.factor, frames.shape[2] // self.factor)
        small = np.stack([resize_frame(frame, size, name) for frame in frames])
        small, params_after = apply_steps(after, draw_order(after, False, rng), small, rng, source)
        large = small.repeat(self.factor, axis=1).repeat(self.factor, axis=2)
        return large, {"filter": name, "before": params_before, "after": params_after}
