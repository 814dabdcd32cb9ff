"""Random parameters that change smoothly along a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.makers.base import check_number
from iclora_train.config import one_of

Range = list[float]  # [from, to]


@dataclass(frozen=True)
class Trajectory:
    """How a random parameter changes along a clip. Makers that draw parameters from a range inherit from it.

    course: `constant`; `ease`, a smooth move from one drawn value to another with zero speed at both ends; `walk`, a
    random walk that starts at a drawn value and stays in the range. step: largest move of a walk per frame, as a share
    of the range (RealBasicVSR uses 0.01 to 0.05).
    """

    course: str = "constant"
    step: float = 0.05

    def __post_init__(self) -> None:
        one_of("task.maker_args.course", self.course, ("constant", "ease", "walk"))
        check_number("step", self.step, 0, 1)

    def draw(self, bounds: Range, frames: int, rng: np.random.Generator) -> np.ndarray:
        """One value in `bounds` = [from, to] for each frame: (F,) fp64."""
        return random_trajectory(bounds, self.course, frames, rng, self.step)

    def summary(self, values: np.ndarray) -> Range:
        """A trajectory (F,) for the record: all values of a walk, otherwise the first and the last."""
        return [float(value) for value in (values if self.course == "walk" else values[[0, -1]])]


def uniform(bounds: Range, rng: np.random.Generator) -> float:
    """A value in `bounds`, uniformly distributed."""
    return float(rng.uniform(bounds[0], bounds[1]))


def log_uniform(bounds: Range, rng: np.random.Generator) -> float:
    """A value in `bounds` (above 0) whose logarithm is uniformly distributed."""
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def random_trajectory(
    bounds: Range, course: str, frames: int, rng: np.random.Generator, step: float = 0.05
) -> np.ndarray:
    """See `Trajectory.draw`. Every course draws two values first; a walk then draws its steps."""
    low, high = bounds
    start, end = rng.uniform(low, high, size=2)
    if course == "constant":
        return np.full(frames, start)
    if course == "ease":
        return start + (end - start) * (1 - np.cos(np.linspace(0, np.pi, frames))) / 2
    values = [start]
    for move in rng.uniform(-step, step, size=frames - 1) * (high - low):
        values.append(min(max(values[-1] + move, low), high))
    return np.array(values)
