"""Blurs: the adapter learns to undo them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from data_prep.makers.base import Params, SourceWindow, check_bool, check_number, check_range, register
from data_prep.makers.colour_space import code_values, to_codes
from data_prep.makers.degrade.blur_kernels import aperture, disk, gaussian, line, trace
from data_prep.makers.trajectory import Range, Trajectory, random_trajectory, uniform
from iclora_train.config import one_of, require

CLIPPED = np.clip((np.arange(256, dtype=np.float32) - 230) / 25, 0, 1) ** 2  # how much of a code may be a clipped light
CORNERS = 1.15  # a pentagon reaches 1.15 times as far as the disk of its area, polygons of more sides less
EXPOSURE = 32  # points of a shaken camera's trace per frame


@register("degrade.defocus")
@dataclass(frozen=True)
class Defocus(Trajectory):
    """A lens out of focus: every point becomes a disk, or the shape of the aperture.

    radius: [from, to] in pixels of the target, drawn per clip. rack: the focus moves from one drawn radius to another
    (the same as course: ease). linear: blur light instead of sRGB values, so that highlights stay bright. bloom: with
    linear, [from, to] of how many times brighter than white clipped highlights are taken to have been, less one.
    blades: 0 for a round aperture, or 5 and more for a polygon of the disk's area, turned at random. ring: [from, to]
    in [0, 0.9] of how much light moves to the rim of the shape.
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
        whole = isinstance(self.blades, int) and (self.blades == 0 or self.blades >= 5)
        require(whole, f"task.maker_args.blades={self.blades} must be 0 (a disk) or a whole number of at least 5")
        bloomless = "task.maker_args.bloom needs linear: true, as it is light that blooms"
        require(self.linear or self.bloom[1] == 0, bloomless)
        _check_rack(self, self.rack)

    @property
    def margin(self) -> int:
        return int(np.ceil(self.radius[1] * (CORNERS if self.blades else 1))) + 1

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        radius = _path(self, self.radius, self.rack, len(frames), rng)
        drawn: Params = {"radius": self.summary(radius)}
        if not self.blades and not self.bloom[1] and not self.ring[1]:
            return _filter(frames, [disk(r) for r in radius], self.linear), drawn
        bloom, ring, turn = uniform(self.bloom, rng), uniform(self.ring, rng), uniform([0, 2 * np.pi], rng)
        kernels = [aperture(r, self.blades, turn, ring) for r in radius]
        blurred = _filter(frames, kernels, self.linear, bloom=bloom)
        return blurred, {**drawn, "bloom": bloom, "ring": ring, "turn": turn}


@register("degrade.gaussian")
@dataclass(frozen=True)
class Gaussian(Trajectory):
    """A Gaussian blur. sigma: [from, to] in pixels, drawn per clip; rack and linear as in degrade.defocus."""

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
        sigma = _path(self, self.sigma, self.rack, len(frames), rng)
        return _filter(frames, [gaussian(s) for s in sigma], self.linear), {"sigma": self.summary(sigma)}


@register("degrade.motion")
@dataclass(frozen=True)
class Motion:
    """A shaken camera: every point becomes a trace whose length and direction change smoothly along the clip.

    length: [from, to] in pixels, along the trace. trace: `line`, or `shake`, one winding way along the whole clip of
    which each frame sees its piece. average: each frame is the mean of that many neighbouring frames (an odd number),
    as a long exposure has it; at the clip's ends, of those there are. linear as in degrade.defocus.
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
            kernels = _shaken(length, angle, rng)
        else:
            kernels = [line(n, a) for n, a in zip(length, angle, strict=True)]
        blurred = _filter(frames, kernels, self.linear, self.average)
        return blurred, {name: [float(p[0]), float(p[-1])] for name, p in (("length", length), ("angle", angle))}


def _check_rack(maker: Trajectory, rack: bool) -> None:
    """`rack` is the older name of one course; it does not go with another."""
    Trajectory.__post_init__(maker)
    require(not rack or maker.course != "walk", "task.maker_args: rack: true does not go with course: walk")


def _path(maker: Trajectory, span: Range, rack: bool, frames: int, rng: np.random.Generator) -> np.ndarray:
    return random_trajectory(span, "ease" if rack else maker.course, frames, rng, maker.step)


def _shaken(length: np.ndarray, angle: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Kernels of one winding way: its direction is `angle` plus a Brownian motion of variance 1 per frame, its speed in
    frame i is length[i].
    """
    points = EXPOSURE * len(length)
    wander = rng.normal(0, EXPOSURE**-0.5, points).cumsum()
    direction = np.interp(np.arange(points) / EXPOSURE, np.arange(len(angle)), angle) + wander
    moves = np.stack([np.cos(direction), np.sin(direction)], axis=1)  # (F S,2)
    kernels = []
    for pixels, piece in zip(length, np.split(moves, len(length)), strict=True):
        way = np.cumsum(piece, axis=0) * (pixels / EXPOSURE)
        kernels.append(trace(way - way.mean(axis=0)))  # what is filmed stays where it is
    return kernels


def _filter(
    frames: np.ndarray, kernels: Sequence[np.ndarray], linear: bool, average: int = 1, bloom: float = 0.0
) -> np.ndarray:
    """Each frame (F,H,W,3) with its kernel, after the mean over `average` frames; borders are mirrored."""
    worth, half, result = code_values(linear), average // 2, []
    for i, kernel in enumerate(kernels):
        light = worth[frames[max(i - half, 0) : i + half + 1]].mean(axis=0, dtype=np.float32)  # (H,W,3)
        if bloom:
            light *= 1 + bloom * CLIPPED[frames[i].max(axis=2)][..., None]
        blurred = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        result.append(to_codes(blurred, linear))
    return np.stack(result)
