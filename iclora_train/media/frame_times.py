"""Presentation times of a clip's frames, and the rule that chooses frames at a frame rate.

Preparation and generation choose frames by this rule. All times are exact fractions of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import gcd
from statistics import median_high

import numpy as np

NTSC_RATES = tuple(Fraction(1000 * n, 1001) for n in (12, 15, 24, 30, 48, 60, 120, 240))  # frames per second
NTSC_ROUNDING = 0.01  # 24000/1001 is written as 23.976, 23.98 or 23.97
EQUAL_RATES = 0.01  # relative difference up to which two frame rates are equal
MAX_DENOMINATOR = 100_000  # of frame rates; encoders take 32-bit numbers
SHOWN_DECIMALS = 3  # of frame rates in reports and records


def exact_rate(fps: float) -> Fraction:
    """The frame rate that a rounded number stands for: 23.976 is 24000/1001, 33.333 is 100/3, 12.5 is 25/2."""
    for ntsc in NTSC_RATES:
        if abs(fps - ntsc) < NTSC_ROUNDING:
            return ntsc
    simple = Fraction(fps).limit_denominator(12)
    if simple and _equal_as_shown(simple, fps):
        return simple
    return max(Fraction(fps).limit_denominator(MAX_DENOMINATOR), Fraction(1, MAX_DENOMINATOR))


def rates_equal(a: float, b: float) -> bool:
    """Whether two frame rates differ by at most one percent, such as 24 and 23.976."""
    return abs(a - b) <= EQUAL_RATES * b


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """Presentation times of frames in ticks of `tick` seconds, ascending from 0.

    is_constant: whether frame i lies within half a frame of i / rate. Such a clip is treated as exactly constant, so
    that the rounding of its container (milliseconds in Matroska and WebM) changes nothing. rate: frames per second; of
    a variable clip the rate of its regular parts, without gaps and bursts.
    """

    ticks: Sequence[int]
    tick: Fraction
    rate: Fraction
    is_constant: bool = True

    @classmethod
    def constant(cls, frames: int, rate: Fraction) -> FrameTimes:
        """Times of frames at a constant rate."""
        return cls(range(frames), 1 / rate, rate)

    @classmethod
    def measure(cls, stamps: Sequence[int | None], time_base: Fraction, declared: Fraction) -> FrameTimes:
        """Times from the timestamps of a file, in units of `time_base` seconds. declared: its frame rate by the header.

        Files with missing or decreasing timestamps (old AVI) are read at the declared rate.
        """
        known = [stamp for stamp in stamps if stamp is not None]
        ordered = len(known) == len(stamps) and all(a <= b for a, b in pairwise(known))
        if not ordered or known[0] == known[-1]:
            return cls.constant(len(stamps), declared)
        ticks = [stamp - known[0] for stamp in known]
        rate = _constant_rate(ticks, time_base, declared)
        if rate is not None:
            return cls.constant(len(ticks), rate)
        return cls(ticks, time_base, _regular_rate(ticks, time_base, declared), is_constant=False)

    @property
    def fps(self) -> float:
        """`rate` as a number of three decimals; it is never 0."""
        return round(float(self.rate), SHOWN_DECIMALS) or float(self.rate)

    @property
    def mean_fps(self) -> float:
        """Frames per second from the first to the last frame, gaps included."""
        return float((len(self.ticks) - 1) / (self.ticks[-1] * self.tick)) if self.ticks[-1] else self.fps

    @property
    def seconds(self) -> list[float]:
        """Times of all frames in seconds."""
        return [float(tick * self.tick) for tick in self.ticks]

    def frame_numbers(self, fps: float | None = None) -> np.ndarray:
        """Numbers (m,) of the frames nearest in time to 0, 1/fps, 2/fps, ...: the earlier one of two; None: own rate.

        The times end with the last frame; in a variable clip half a regular frame later. A clip whose frames lie within
        half a frame of 0, 1/fps, 2/fps, ... keeps all frames: 49 frames of 24 fps are 49 frames at 23.976 fps.
        """
        return np.repeat(np.arange(len(self.ticks)), np.diff(self._last_steps(fps), prepend=-1))

    def distinct_frames(self, fps: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Of `frame_numbers` each frame once: numbers (m,), and the step (m,) of 1/fps at which each one is shown.

        A frame that is nearest to several times is shown at the one nearest to its own time. Two neighbours whose steps
        differ by more than 1 have a repeated frame between them.
        """
        last = np.array(self._last_steps(fps))
        first = np.concatenate([[0], last[:-1] + 1])
        scale, base = (self.tick * self._exact(fps)).as_integer_ratio()  # steps per tick
        nearest = [(2 * tick * scale + base) // (2 * base) for tick in self.ticks]
        chosen = np.flatnonzero(last >= first)
        return chosen, np.clip(nearest, first, last)[chosen]

    def _exact(self, fps: float | None) -> Fraction:
        """The exact rate that `fps` stands for in this clip."""
        return self.rate if fps is None or _equal_as_shown(self.rate, fps) else exact_rate(fps)

    def _last_steps(self, fps: float | None) -> list[int]:
        """For each frame (F,) the last step of 1/fps to which it, or an earlier frame, is nearest."""
        rate, frames = self._exact(fps), len(self.ticks)
        if self.is_constant and rates_equal(float(self.rate), float(rate)):
            drift = (frames - 1) * abs(1 / self.rate - 1 / rate)
            if 2 * drift * max(self.rate, rate) <= 1:
                return list(range(frames))
        scale, base = (self.tick * rate).as_integer_ratio()  # steps per tick
        halfway = [(a + b) * scale // (2 * base) for a, b in pairwise(self.ticks)]  # there the earlier frame is shown
        rest = 0 if self.is_constant else rate / (2 * self.rate)
        return [*halfway, int(self.ticks[-1] * self.tick * rate + rest)]


def temporal_subsample(frames: np.ndarray, factor: int) -> np.ndarray:
    """The frames of a target (F,...) that its reference has: 0, 1, 1 + S, 1 + 2 S, ... for a temporal factor S.

    The VAE encodes frame 0 alone and the rest in groups of 8 frames. Each later group of the reference then covers S
    groups of the target. Lightricks' trainer and ltx-pipelines choose the same frames.
    """
    return frames if factor == 1 else np.concatenate([frames[:1], frames[1::factor]])


def simultaneous_frames(frames: int, length: int) -> np.ndarray:
    """For each frame (F,) of a target the frame of its reference, of `length` frames, that is shown at that time.

    The inverse of `temporal_subsample`; the temporal factor is (F - 1) / (length - 1).
    """
    factor = max((frames - 1) // max(length - 1, 1), 1)
    return np.minimum((np.arange(frames) + factor - 1) // factor, length - 1)


def _equal_as_shown(rate: Fraction, fps: float) -> bool:
    """Whether a rate and a number agree when both are rounded to SHOWN_DECIMALS."""
    return abs(float(rate) - fps) <= 0.5 * 10**-SHOWN_DECIMALS


def _constant_rate(ticks: Sequence[int], time_base: Fraction, declared: Fraction) -> Fraction | None:
    """The constant rate of a clip, or None: a frame is missing or doubled, or a frame is more than half a frame off.

    The declared rate, a whole number, an NTSC rate and the mean are tried in this order. The first rate is used that
    explains all times up to their resolution, otherwise the best one.
    """
    mean = Fraction(len(ticks) - 1) / (ticks[-1] * time_base)
    resolution = _resolution(ticks, time_base)
    spreads = [(_spread(ticks, time_base, rate), rate) for rate in (*_plausible_rates(mean, declared), mean)]
    spread, rate = next((pair for pair in spreads if pair[0] <= resolution), min(spreads, key=lambda pair: pair[0]))
    steps = [b - a for a, b in pairwise(ticks)]
    is_regular = 2 * min(steps) * time_base * rate > 1 and 2 * max(steps) * time_base * rate < 3
    return rate if is_regular and spread * rate <= 1 else None


def _regular_rate(ticks: Sequence[int], time_base: Fraction, declared: Fraction) -> Fraction:
    """Rate of the regular parts of a variable clip: of the steps nearer than a factor 1.5 to the median step.

    A whole number or an NTSC rate is preferred if the resolution of the times allows it.
    """
    steps = [b - a for a, b in pairwise(ticks) if b > a]
    middle = median_high(steps)
    regular = [2 * middle < 3 * step and 2 * step < 3 * middle for step in steps]
    seconds = sum(step for step, is_regular in zip(steps, regular, strict=True) if is_regular) * time_base
    rate = sum(regular) / seconds
    parts = sum(now and not before for before, now in pairwise([False, *regular]))
    error = parts * _resolution(ticks, time_base) / seconds  # relative: both ends of every part are rounded
    close = [other for other in _plausible_rates(rate, declared) if abs(other - rate) <= error * rate]
    return close[0] if close else exact_rate(float(rate))


def _plausible_rates(rate: Fraction, declared: Fraction) -> list[Fraction]:
    """The declared rate, the nearest whole number and the nearest NTSC rate, as far as they equal `rate`."""
    rates = [declared, Fraction(round(rate)), min(NTSC_RATES, key=lambda ntsc: abs(ntsc - rate))]
    return [other for other in rates if rates_equal(float(other), float(rate))]


def _resolution(ticks: Sequence[int], time_base: Fraction) -> Fraction:
    """Seconds to which a file rounds its times, at most half a frame: milliseconds also in copies of Matroska files."""
    common = gcd(*ticks)
    return time_base * (common if 2 * common * (len(ticks) - 1) <= ticks[-1] else 1)


def _spread(ticks: Sequence[int], time_base: Fraction, rate: Fraction) -> Fraction:
    """Seconds between the earliest and the latest frame, relative to constant times at `rate`."""
    scale, frame = time_base.numerator * rate.numerator, time_base.denominator * rate.denominator
    offsets = [tick * scale - number * frame for number, tick in enumerate(ticks)]
    return Fraction(max(offsets) - min(offsets), time_base.denominator * rate.numerator)
