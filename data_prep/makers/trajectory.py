"""Parameters that change smoothly along a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.makers.base import check_number
from iclora_train.config import one_of

Range = list[float]


@dataclass(frozen=True)
class Trajectory:
    """How a parameter goes on along a clip once it is drawn; the base of makers that draw parameters from a range.

    course: `constant`; `ease`, from one drawn value to another with no jerk at the ends; `walk`, a random walk from a
    drawn value that stays in the range. step: the most that a walk moves per frame, as a share of the range
    (RealBasicVSR's walks have steps of 0.01 to 0.05).
    """

    course: str = "constant"
    step: float = 0.05

    def __post_init__(self) -> None:
        one_of("task.maker_args.course", self.course, ("constant", "ease", "walk"))
        check_number("step", self.step, 0, 1)

    def draw(self, span: Range, frames: int, rng: np.random.Generator) -> np.ndarray:
        """A value of `span` = [from, to] for each frame (F,), fp64."""
        return random_trajectory(span, self.course, frames, rng, self.step)

    def summary(self, path: np.ndarray) -> Range:
        """A path for the record: all values of a walk, of another course both ends."""
        return [float(value) for value in (path if self.course == "walk" else path[[0, -1]])]


def uniform(span: Range, rng: np.random.Generator) -> float:
    """A value of `span`, all alike."""
    return float(rng.uniform(span[0], span[1]))


def log_uniform(span: Range, rng: np.random.Generator) -> float:
    """A value of `span` (above 0), all ratios alike."""
    return float(np.exp(rng.uniform(np.log(span[0]), np.log(span[1]))))


def random_trajectory(
    span: Range, course: str, frames: int, rng: np.random.Generator, step: float = 0.05
) -> np.ndarray:
    """As `Course.path`. Two values are drawn whatever the course, then the steps of a walk."""
    low, high = span
    start, end = rng.uniform(low, high, size=2)
    if course == "constant":
        return np.full(frames, start)
    if course == "ease":
        return start + (end - start) * (1 - np.cos(np.linspace(0, np.pi, frames))) / 2
    path = [start]
    for move in rng.uniform(-step, step, size=frames - 1) * (high - low):
        path.append(min(max(path[-1] + move, low), high))
    return np.array(path)
