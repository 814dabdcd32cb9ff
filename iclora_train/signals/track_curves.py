"""Curves through drawn points, as ComfyUI-LTXVideo's track editor computes them (sparse_tracks.py)."""

from __future__ import annotations

import numpy as np


def spline(points: np.ndarray, count: int) -> np.ndarray:
    """`count` points (count,2) along the curve through `points` (n,2), sampled as in the editor.

    One point is repeated, two are joined by a line, more by a uniform Catmull-Rom spline (end points doubled) with
    equally many samples per segment.
    """
    along = np.linspace(0, 1, count)[:, None]  # (count,1)
    if len(points) == 1:
        return np.repeat(points, count, axis=0)
    if len(points) == 2:
        return points[0] + (points[1] - points[0]) * along
    knots = np.concatenate([points[:1], points, points[-1:]])
    segments = len(points) - 1
    segment = np.minimum((along[:, 0] * segments).astype(int), segments - 1)  # (count,)
    return _catmull_rom(knots, segment, along * segments - segment[:, None])


def timed_spline(points: np.ndarray, frames: np.ndarray, count: int) -> np.ndarray:
    """`count` points (count,2), one for each frame, along the curve of `spline`, at `frames` (n,) of `points` (n,2).

    frames: in ascending order, not always whole. Each part of the curve takes the frames between its two points; the
    point stands still before the first of `frames` and after the last.
    """
    if len(points) == 1:
        return np.repeat(points, count, axis=0)
    now = np.clip(np.arange(count), frames[0], frames[-1])
    if len(points) == 2:
        return np.stack([np.interp(now, frames, values) for values in points.T], axis=1)
    knots = np.concatenate([points[:1], points, points[-1:]])
    segment = np.clip(np.searchsorted(frames, now, side="right") - 1, 0, len(points) - 2)  # (count,)
    length = frames[segment + 1] - frames[segment]
    t = np.where(length > 0, (now - frames[segment]) / np.maximum(length, 1e-9), 1.0)
    return _catmull_rom(knots, segment, t[:, None])


def _catmull_rom(knots: np.ndarray, segment: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Points (m,2) at t (m,1) in [0, 1] of the parts `segment` (m,) of a spline; part i begins at knot i + 1."""
    a, b, c, d = (knots[segment + i] for i in range(4))
    return (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3) / 2
