"""Tracks that somebody drew: the JSON of ComfyUI-LTXVideo's track editor, and the curves through its points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def read_tracks(path: Path) -> list[np.ndarray]:
    """Tracks (n,2) as x, y in pixels of the clip: lists of {"x": , "y": }, one track or several, nested at will, also
    as strings of JSON within JSON. ValueError when there are none.
    """
    try:
        tracks = _tracks_in(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON that can be read: {error}") from error
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f'{path} holds a point that is not {{"x": number, "y": number}}') from error
    if not tracks:
        raise ValueError(f'{path} holds no tracks: give lists of {{"x": number, "y": number}}')
    return tracks


def _tracks_in(value: Any) -> list[np.ndarray]:
    """The tracks in a value of JSON, in their order."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list) or not value:
        return []
    if isinstance(value[0], dict):
        points = np.array([[float(point["x"]), float(point["y"])] for point in value])
        if not np.isfinite(points).all():
            raise ValueError("a coordinate is not finite")
        return [points]
    return [track for item in value for track in _tracks_in(item)]


def spline(points: np.ndarray, count: int) -> np.ndarray:
    """`count` points (count,2) along the curve through `points` (n,2), as the editor samples it: one point stays, two
    are joined by a line, more by a uniform Catmull-Rom spline (ends doubled) with as many samples in each part.
    """
    along = np.linspace(0, 1, count)[:, None]  # (count,1)
    if len(points) == 1:
        return np.repeat(points, count, axis=0)
    if len(points) == 2:
        return points[0] + (points[1] - points[0]) * along
    knots = np.concatenate([points[:1], points, points[-1:]])
    parts = len(points) - 1
    part = np.minimum((along[:, 0] * parts).astype(int), parts - 1)  # (count,)
    t = along * parts - part[:, None]
    a, b, c, d = (knots[part + i] for i in range(4))
    return (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3) / 2
