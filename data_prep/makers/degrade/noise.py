"""Sensor noise and film grain, drawn independently for every frame."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_bool, check_number, check_range, register
from data_prep.makers.colour_space import LINEAR, luma, to_codes
from data_prep.makers.trajectory import Range, Trajectory, uniform


@register("degrade.noise")
@dataclass(frozen=True)
class Noise(Trajectory, Maker):
    """Gaussian noise on sRGB values.

    sigma: [from, to] of the standard deviation in levels of 255. grey_p: probability that all three channels of a clip
    receive the same noise (Real-ESRGAN: 0.4).
    """

    sigma: Range = field(default_factory=lambda: [2.0, 25.0])
    grey_p: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("sigma", self.sigma, 0)
        check_number("grey_p", self.grey_p, 0, 1)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        sigma = self.draw(self.sigma, len(frames), rng)
        grey = bool(rng.random() < self.grey_p)
        noisy = [
            _add_noise(f, s * _standard_normal(f.shape[:2], 1 if grey else 3, rng))
            for f, s in zip(frames, sigma, strict=True)
        ]
        return np.stack(noisy), {"sigma": self.summary(sigma), "grey": grey}


@register("degrade.shot")
@dataclass(frozen=True)
class Shot(Trajectory, Maker):
    """A photon-counting sensor in linear light.

    A channel with light x counts Poisson(x n) photons, plus Gaussian read noise of r photons. The variance is
    x / n + (r / n)^2.

    photons: [from, to] of n, the count at white, drawn log-uniformly. read: r.
    """

    photons: Range = field(default_factory=lambda: [50.0, 1000.0])
    read: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("photons", self.photons, 1)
        check_number("read", self.read, 0)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        logarithm = self.draw([float(np.log(n)) for n in self.photons], len(frames), rng)
        photons = np.exp(logarithm)
        noisy = [self._expose(frame, n, rng) for frame, n in zip(frames, photons, strict=True)]
        return np.stack(noisy), {"photons": self.summary(photons)}

    def _expose(self, frame: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
        counts = rng.poisson((LINEAR * photons)[frame]) + self.read * _standard_normal(frame.shape[:2], 3, rng)
        return to_codes(counts / photons, linear=True)


@register("degrade.grain")
@dataclass(frozen=True)
class Grain(Trajectory, Maker):
    """Film grain: blobs of a given size, strongest in middle tones, new in every frame.

    strength: [from, to] of the standard deviation at mid-grey in levels of 255. At luma y it is multiplied by
    sqrt(4 y (1 - y)), the deviation of a count of grains that are either dark or not. size: [from, to] of a Gaussian's
    sigma in pixels, the extent of the grains. colour: true: each channel has its own grain; false: all channels share
    it.
    """

    strength: Range = field(default_factory=lambda: [4.0, 16.0])
    size: Range = field(default_factory=lambda: [0.6, 1.4])
    colour: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("strength", self.strength, 0)
        check_range("size", self.size, 0.3)
        check_bool("colour", self.colour)

    @property
    def margin(self) -> int:
        return int(np.ceil(4 * self.size[1]))

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        strength = self.draw(self.strength, len(frames), rng)
        size = uniform(self.size, rng)
        half = int(np.ceil(4 * size))
        kernel = cv2.getGaussianKernel(2 * half + 1, size, cv2.CV_32F)
        gain = 1 / float((kernel**2).sum())  # restores the unit deviation that the filter reduces
        tones = np.arange(256, dtype=np.float32) / 255
        scale = gain * np.sqrt(4 * tones * (1 - tones))
        noisy = []
        for frame, level in zip(frames, strength, strict=True):
            white = _standard_normal(frame.shape[:2], 3 if self.colour else 1, rng)
            grains = cv2.sepFilter2D(white, -1, kernel, kernel).reshape(white.shape)
            noisy.append(_add_noise(frame, level * scale[luma(frame)][..., None] * grains))
        return np.stack(noisy), {"strength": self.summary(strength), "size": size}


def _standard_normal(size: tuple[int, int], channels: int, rng: np.random.Generator) -> np.ndarray:
    """Standard normal noise, fp32 (H,W,channels)."""
    return rng.standard_normal((*size, channels), np.float32)


def _add_noise(frame: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """A frame plus noise in levels, (H,W,3) or (H,W,1)."""
    return np.rint(np.clip(frame + noise, 0, 255)).astype(np.uint8)
