"""Degradations: the adapter learns to undo them. Blurs are constant over a clip or change smoothly along it."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from data_prep.makers.maker import Drawn, check_number, check_span, check_switch, register
from iclora_train.config import require

SRGB = np.arange(256, dtype=np.float64) / 255
LINEAR = np.where(SRGB <= 0.04045, SRGB / 12.92, ((SRGB + 0.055) / 1.055) ** 2.4).astype(np.float32)


@register("degrade.defocus")
@dataclass(frozen=True)
class Defocus:
    """A lens out of focus: every point becomes a disk.

    radius: [from, to] in pixels of the target, drawn per clip. rack: the focus moves from one drawn radius to another.
    linear: blur light instead of sRGB values, so that highlights bloom.
    """

    radius: list[float] = field(default_factory=lambda: [3.0, 4.0])
    rack: bool = False
    linear: bool = False

    def __post_init__(self) -> None:
        check_span("radius", self.radius, 0)
        check_switch("rack", self.rack)
        check_switch("linear", self.linear)

    @property
    def margin(self) -> int:
        return int(np.ceil(self.radius[1])) + 1

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Drawn]:
        radius = _drawn_path(self.radius, self.rack, len(frames), rng)
        return _filter(frames, [_disk(r) for r in radius], self.linear), {"radius": _ends(radius)}


@register("degrade.gaussian")
@dataclass(frozen=True)
class Gaussian:
    """A Gaussian blur. sigma: [from, to] in pixels, drawn per clip; rack and linear as in degrade.defocus."""

    sigma: list[float] = field(default_factory=lambda: [1.5, 2.5])
    rack: bool = False
    linear: bool = False

    def __post_init__(self) -> None:
        check_span("sigma", self.sigma, 0.1)
        check_switch("rack", self.rack)
        check_switch("linear", self.linear)

    @property
    def margin(self) -> int:
        return int(np.ceil(3 * self.sigma[1]))

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Drawn]:
        sigma = _drawn_path(self.sigma, self.rack, len(frames), rng)
        return _filter(frames, [_bell(s) for s in sigma], self.linear), {"sigma": _ends(sigma)}


@register("degrade.motion")
@dataclass(frozen=True)
class Motion:
    """A shaken camera: every point becomes a line whose length and angle change smoothly along the clip.

    length: [from, to] in pixels. average: each frame is the mean of that many neighbouring frames (an odd number), as
    a long exposure has it; at the clip's ends, of those there are. linear as in degrade.defocus.
    """

    length: list[float] = field(default_factory=lambda: [6.0, 12.0])
    average: int = 1
    linear: bool = False

    def __post_init__(self) -> None:
        check_span("length", self.length, 1)
        check_number("average", self.average, 1)
        require(self.average % 2 == 1, f"task.maker_args.average={self.average} must be an odd number of frames")
        check_switch("linear", self.linear)

    @property
    def margin(self) -> int:
        return int(np.ceil(self.length[1] / 2)) + 1

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Drawn]:
        length = _drawn_path(self.length, True, len(frames), rng)
        angle = _drawn_path([0.0, np.pi], True, len(frames), rng)
        kernels = [_line(n, a) for n, a in zip(length, angle, strict=True)]
        blurred = _filter(frames, kernels, self.linear, self.average)
        return blurred, {"length": _ends(length), "angle": _ends(angle)}


@register("degrade.grey")
@dataclass(frozen=True)
class Grey:
    """Rec. 601 luma in all three channels."""

    @property
    def margin(self) -> int:
        return 0

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Drawn]:
        return np.stack([cv2.cvtColor(luma(frame), cv2.COLOR_GRAY2RGB) for frame in frames]), {}


def luma(frame: np.ndarray) -> np.ndarray:
    """Rec. 601 luma (H,W) uint8 of an RGB frame: 0.299 R + 0.587 G + 0.114 B."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _drawn_path(span: list[float], moves: bool, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A value for each frame: one drawn from `span`, or a smooth way (no jerk at its ends) between two such."""
    start, end = rng.uniform(span[0], span[1], size=2)
    if not moves:
        return np.full(frames, start)
    return start + (end - start) * (1 - np.cos(np.linspace(0, np.pi, frames))) / 2


def _ends(path: np.ndarray) -> list[float]:
    return [float(path[0]), float(path[-1])]


def _grid(reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (x, y) of a square kernel that reaches `reach` pixels from its centre."""
    half = max(int(np.ceil(reach)), 0)
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    return x, y


def _normal(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)


def _disk(radius: float) -> np.ndarray:
    """Kernel of a disk; a pixel that the rim crosses counts by how far it lies inside."""
    x, y = _grid(radius + 0.5)
    return _normal(np.clip(radius + 0.5 - np.hypot(x, y), 0, 1))


def _bell(sigma: float) -> np.ndarray:
    x, y = _grid(3 * sigma)
    return _normal(np.exp(-(x**2 + y**2) / (2 * sigma**2)))


def _line(length: float, angle: float) -> np.ndarray:
    """Kernel of a line one pixel wide through the centre, `angle` radians from the x axis, anti-aliased."""
    x, y = _grid(length / 2 + 0.5)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return _normal(np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1))


def _filter(frames: np.ndarray, kernels: list[np.ndarray], linear: bool, average: int = 1) -> np.ndarray:
    """Each frame (F,H,W,3) with its kernel, after the mean over `average` frames; borders are mirrored."""
    values = LINEAR if linear else np.arange(256, dtype=np.float32) / 255
    half, result = average // 2, []
    for i, kernel in enumerate(kernels):
        light = values[frames[max(i - half, 0) : i + half + 1]].mean(axis=0, dtype=np.float32)  # (H,W,3)
        blurred = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        result.append(_encode(blurred, linear))
    return np.stack(result)


def _encode(light: np.ndarray, linear: bool) -> np.ndarray:
    """Values in [0, 1] to uint8, through the sRGB curve if they are light."""
    light = np.clip(light, 0, 1)
    if linear:
        light = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(light * 255).astype(np.uint8)
