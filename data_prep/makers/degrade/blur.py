"""Blur: defocus, Gaussian blur and camera shake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_bool, check_number, check_range, register
from data_prep.makers.colour_space import code_values, to_codes
from data_prep.makers.degrade.blur_kernels import aperture, disk, gaussian, line, trace
from data_prep.makers.trajectory import Range, Trajectory, random_trajectory, uniform
from iclora_train.config import one_of, require

# Weight (256,) of each 8-bit code as a clipped highlight: 0 up to code 230, then rising to 1.
HIGHLIGHT = np.clip((np.arange(256, dtype=np.float32) - 230) / 25, 0, 1) ** 2
POLYGON_REACH = 1.15  # corner radius of a pentagon over the radius of the disk of equal area; less with more sides
TRACE_POINTS = 32  # points of a shaken camera's path per frame


@register("degrade.defocus")
@dataclass(frozen=True)
class Defocus(Trajectory, Maker):
    """A lens out of focus: every point becomes a disk, or the shape of the aperture.

    radius: [from, to] in pixels of the target, drawn per clip. rack: the focus moves from one drawn radius to another
    (the same as course: ease). linear: blur linear light instead of sRGB values, so that highlights stay bright. bloom:
    with linear, [from, to] of b; clipped highlights count as 1 + b times as bright as white. blades: 0 for a
    round aperture, or 5 and more for a polygon of the disk's area at a random angle. ring: [from, to] in [0, 0.9] of
    the share of light that moves to the rim of the shape.
    """

    radius: Range = field(default_factory=lambda: [3.0, 4.0])
    rack: bool = False
    linear: bool = False
    bloom: Range = field(default_factory=lambda: [0.0, 0.0])
    blades: int = 0
    ring: Range = field(default_factory=lambda: [0.0, 0.0])

    def __post_init__(self) -> None:
        check_range("radius", self.radius, 0)
        check_bool("rack", self.rack)
        check_bool("linear", self.linear)
        check_range("bloom", self.bloom, 0)
        check_range("ring", self.ring, 0, 0.9)
        valid = isinstance(self.blades, int) and (self.blades == 0 or self.blades >= 5)
        require(valid, f"task.maker_args.blades={self.blades} must be 0 (a disk) or a whole number of at least 5")
        message = "task.maker_args.bloom needs linear: true, because it scales linear light"
        require(self.linear or self.bloom[1] == 0, message)
        _check_rack(self, self.rack)

    @property
    def margin(self) -> int:
        return int(np.ceil(self.radius[1] * (POLYGON_REACH if self.blades else 1))) + 1

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        radius = _draw(self, self.radius, self.rack, len(frames), rng)
        params: Params = {"radius": self.summary(radius)}
        if not self.blades and not self.bloom[1] and not self.ring[1]:
            return _filter(frames, [disk(r) for r in radius], self.linear), params
        bloom, ring, turn = uniform(self.bloom, rng), uniform(self.ring, rng), uniform([0, 2 * np.pi], rng)
        kernels = [aperture(r, self.blades, turn, ring) for r in radius]
        blurred = _filter(frames, kernels, self.linear, bloom=bloom)
        return blurred, {**params, "bloom": bloom, "ring": ring, "turn": turn}


@register("degrade.gaussian")
@dataclass(frozen=True)
class Gaussian(Trajectory, Maker):
    """A Gaussian blur. sigma: [from, to] in pixels, drawn per clip. rack and linear: see degrade.defocus."""

    sigma: Range = field(default_factory=lambda: [1.5, 2.5])
    rack: bool = False
    linear: bool = False

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, 0.1)
        check_bool("rack", self.rack)
        check_bool("linear", self.linear)
        _check_rack(self, self.rack)

    @property
    def margin(self) -> int:
        return int(np.ceil(3 * self.sigma[1]))

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        sigma = _draw(self, self.sigma, self.rack, len(frames), rng)
        return _filter(frames, [gaussian(s) for s in sigma], self.linear), {"sigma": self.summary(sigma)}


@register("degrade.motion")
@dataclass(frozen=True)
class Motion(Maker):
    """A shaken camera: every point becomes a trace whose length and direction change smoothly along the clip.

    length: [from, to] in pixels, along the trace. trace: `line`, or `shake`, one winding path along the whole clip, of
    which each frame shows its piece. average: each frame is the mean of `average` neighbouring frames (an odd number),
    as in a long exposure; fewer at the ends of the clip. linear: see degrade.defocus.
    """

    length: Range = field(default_factory=lambda: [6.0, 12.0])
    average: int = 1
    linear: bool = False
    trace: str = "line"

    def __post_init__(self) -> None:
        check_range("length", self.length, 1)
        check_number("average", self.average, 1)
        require(self.average % 2 == 1, f"task.maker_args.average={self.average} must be an odd number of frames")
        check_bool("linear", self.linear)
        one_of("task.maker_args.trace", self.trace, ("line", "shake"))

    @property
    def margin(self) -> int:
        return int(np.ceil(self.length[1] / (1 if self.trace == "shake" else 2))) + 1

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        length = random_trajectory(self.length, "ease", len(frames), rng)
        angle = random_trajectory([0.0, np.pi], "ease", len(frames), rng)
        if self.trace == "shake":
            kernels = _shake_kernels(length, angle, rng)
        else:
            kernels = [line(n, a) for n, a in zip(length, angle, strict=True)]
        blurred = _filter(frames, kernels, self.linear, self.average)
        params = {"length": length, "angle": angle}
        return blurred, {name: [float(values[0]), float(values[-1])] for name, values in params.items()}


def _check_rack(maker: Trajectory, rack: bool) -> None:
    """`rack: true` is the older name of `course: ease` and excludes `course: walk`."""
    Trajectory.__post_init__(maker)
    require(not rack or maker.course != "walk", "task.maker_args: rack: true cannot be combined with course: walk")


def _draw(maker: Trajectory, bounds: Range, rack: bool, frames: int, rng: np.random.Generator) -> np.ndarray:
    return random_trajectory(bounds, "ease" if rack else maker.course, frames, rng, maker.step)


def _shake_kernels(length: np.ndarray, angle: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Kernels of one winding path.

    The direction of the path is `angle` plus Brownian motion with variance 1 per frame; its speed in frame i is
    length[i].
    """
    points = TRACE_POINTS * len(length)
    wander = rng.normal(0, TRACE_POINTS**-0.5, points).cumsum()
    direction = np.interp(np.arange(points) / TRACE_POINTS, np.arange(len(angle)), angle) + wander
    moves = np.stack([np.cos(direction), np.sin(direction)], axis=1)  # (F*TRACE_POINTS,2)
    kernels = []
    for pixels, piece in zip(length, np.split(moves, len(length)), strict=True):
        path = np.cumsum(piece, axis=0) * (pixels / TRACE_POINTS)
        kernels.append(trace(path - path.mean(axis=0)))  # centred, so that the picture does not shift
    return kernels


def _filter(
    frames: np.ndarray, kernels: Sequence[np.ndarray], linear: bool, average: int = 1, bloom: float = 0.0
) -> np.ndarray:
    """Filter each frame (F,H,W,3) with its kernel, after the mean over `average` frames. Borders are mirrored."""
    table, half, result = code_values(linear), average // 2, np.empty_like(frames)
    for i, kernel in enumerate(kernels):
        light = table[frames[i]]  # (H,W,3)
        if half:
            light = table[frames[max(i - half, 0) : i + half + 1]].mean(axis=0, dtype=np.float32)
        if bloom:
            light *= 1 + bloom * HIGHLIGHT[frames[i].max(axis=2)][..., None]
        blurred = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        result[i] = to_codes(blurred, linear)
    return result
