"""A clip with known motion, and graded degradations of it; grade 0 returns the clip unchanged."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from eval.metrics import Clip

Dose = Callable[[Clip, float], Clip]


def scene(seed: int = 0, frames: int = 9, size: int = 64) -> Clip:
    """A picture of coloured discs and boxes with a soft texture, panned by one pixel per frame."""
    rng = np.random.default_rng(seed)
    canvas = np.full((size, size + frames, 3), rng.integers(40, 200, 3), np.uint8)
    for _ in range(14):
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        x, y, radius = (int(v) for v in rng.integers((0, 0, 3), (size, size, 12)))
        if rng.random() < 0.5:
            cv2.circle(canvas, (x, y), radius, colour, -1)
        else:
            cv2.rectangle(canvas, (x, y), (x + radius, y + 2 * radius), colour, -1)
    texture = cv2.GaussianBlur(rng.standard_normal(canvas.shape), (0, 0), 2)
    canvas = levels(canvas + 60 * texture)
    return np.stack([canvas[:, i : i + size] for i in range(frames)])


def levels(values: np.ndarray) -> Clip:
    """Round and clip to 8 bits."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def blur(clip: Clip, sigma: float) -> Clip:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) if sigma else frame for frame in clip]).astype(np.uint8)


def noise(clip: Clip, sigma: float) -> Clip:
    return levels(clip + sigma * np.random.default_rng(7).standard_normal(clip.shape))


def alternating(clip: Clip) -> np.ndarray:
    """1, -1, 1, ... for each frame, (F,1,1,1)."""
    return np.array([1, -1] * len(clip))[: len(clip), None, None, None]


def flicker(clip: Clip, amplitude: float) -> Clip:
    return levels(clip + amplitude * alternating(clip))


def antiphase(clip: Clip, amplitude: float) -> Clip:
    """The left and the right half flicker against each other, so that the mean of a frame stays."""
    side = np.where(np.arange(clip.shape[2]) < clip.shape[2] // 2, 1, -1)[:, None]
    return levels(clip + amplitude * alternating(clip) * side)


def ramp(clip: Clip, step: float) -> Clip:
    """Every frame is brighter than the last by `step` levels."""
    return levels(clip * 0.5 + step * np.arange(len(clip))[:, None, None, None])


def limited_range(clip: Clip, share: float) -> Clip:
    """The full range is written as 16..235."""
    return levels(clip + share * (16 + clip * (219 / 255) - clip))


def darken(clip: Clip, amount: float) -> Clip:
    """Black becomes darker by `amount` levels, white stays."""
    return levels(clip - amount * (1 - clip / 255))


def gamma(clip: Clip, exponent: float) -> Clip:
    return levels(255 * (clip / 255) ** exponent)


def colour_flicker(clip: Clip, amplitude: float) -> Clip:
    """Red and blue alternate in opposite directions; luma is nearly constant."""
    return levels(clip + amplitude * alternating(clip) * np.array([1, 0, -1]))


def shift(clip: Clip, pixels: float) -> Clip:
    return np.roll(clip, int(pixels), axis=2)


def jitter(clip: Clip, pixels: float) -> Clip:
    """Every second frame is shifted to the right."""
    return np.stack([np.roll(frame, int(pixels) * (i % 2), axis=1) for i, frame in enumerate(clip)])


def drift(clip: Clip, pixels: float) -> Clip:
    """Frame i is shifted down by i times `pixels`."""
    return np.stack([np.roll(frame, round(pixels * i), axis=0) for i, frame in enumerate(clip)])


def grey(clip: Clip, share: float) -> Clip:
    lumas = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip])[..., None]
    return levels(clip + share * (lumas - clip.astype(np.float64)))


def shuffle(clip: Clip, frames: float) -> Clip:
    """Reverse the order of the first `frames` frames."""
    return np.concatenate([clip[: int(frames)][::-1], clip[int(frames) :]])


def fade(clip: Clip, share: float) -> Clip:
    """Blend in another scene."""
    return levels(clip * (1 - share) + share * scene(1, len(clip), clip.shape[1]))


def hold(clip: Clip, frames: float) -> Clip:
    """The last `frames` frames stand still."""
    start = len(clip) - int(frames)
    return np.concatenate([clip[:start], np.repeat(clip[start - 1 : start], int(frames), axis=0)])


HOLE = (slice(None), slice(20, 44), slice(16, 40))


def hole(clip: Clip, share: float) -> Clip:
    """Fade a square in the middle to white."""
    result = clip.astype(np.float64)
    result[HOLE] += share * (255 - result[HOLE])
    return levels(result)


def scramble(clip: Clip, share: float) -> Clip:
    """Replace the upper part of every frame by independent noise."""
    result, rows = clip.copy(), round(share * clip.shape[1])
    result[:, :rows] = np.random.default_rng(3).integers(0, 256, result[:, :rows].shape)
    return result
