"""Sparse motion tracks: the adapter learns to move things along drawn paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from data_prep.makers.base import Params, SourceWindow, check_number, check_range, register
from data_prep.makers.control.track_files import read_tracks, spline
from iclora_train.config import require
from iclora_train.data.video import probe
from iclora_train.signals.point_tracks import max_round_trip_error, track_points
from iclora_train.signals.track_drawing import draw_tracks


@register("control.tracks")
@dataclass(frozen=True)
class Tracks:
    """Trails of points as Lightricks' motion-control adapter draws them (`draw_tracks`).

    If the clip's row has a column `tracks`, its JSON is drawn. points: what it holds, "spline" for the points through
    which a curve is laid over the whole clip, or "frames" for one point for each frame of the clip; x and y are in
    pixels of the clip.

    Otherwise points are followed from the window's first frame on: count: [from, to] of them, drawn per window, with a
    liking for those that move. lost: a point is lost, and stays so, where following it forth and back misses by more
    pixels of a target with a short side of 512. shortest: share of the window that a track must last.

    larger: how many times larger discs are than the official adapter's; 1 for that, 4 to see them on 64 pixels.
    """

    count: list[int] = field(default_factory=lambda: [6, 30])
    points: str = "spline"
    lost: float = 1.0
    shortest: float = 0.5
    larger: float = 1.0

    def __post_init__(self) -> None:
        check_range("count", self.count, 1)
        whole = all(isinstance(n, int) for n in self.count)
        require(whole, f"task.maker_args.count={self.count} must be whole numbers")
        require(self.points in ("spline", "frames"), f"task.maker_args.points={self.points!r} is not spline or frames")
        check_number("lost", self.lost, 0.01)
        check_number("shortest", self.shortest, 0, 1)
        check_number("larger", self.larger, 0.1, 100)

    @property
    def margin(self) -> int:
        return 0

    def check(self, files: Mapping[str, Path]) -> None:
        """ValueError when the file in the column `tracks` cannot be used."""
        if "tracks" in files:
            read_tracks(files["tracks"])

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        if "tracks" in source.files:
            points, seen = self._given(source)
        else:
            points, seen = self._followed(frames, rng)
        lasts = seen.sum(axis=1).tolist()  # tracks end, they do not come back
        kept = [np.round(track[:n], 1).tolist() for track, n in zip(points, lasts, strict=True)]
        covered = float(seen.any(axis=0).mean()) if len(seen) else 0.0  # share of frames with a track
        return draw_tracks(points, seen, frames.shape[1:3], self.larger), {"tracks": kept, "coverage": covered}

    def _given(self, source: SourceWindow) -> tuple[np.ndarray, np.ndarray]:
        """Points (N,F,2) in the frames' pixels, and which of them there are (N,F), from the row's JSON."""
        tracks, numbers = read_tracks(source.file("tracks")), np.array(source.indices)
        if self.points == "spline":
            tracks = [spline(track, _frames_of(source.path)) for track in tracks]
        seen = np.stack([numbers < len(track) for track in tracks])
        points = np.stack([track[np.minimum(numbers, len(track) - 1)] for track in tracks])
        placed = source.crop.apply_to_points(points)
        return np.rint(placed) if self.points == "spline" else placed, seen  # the editor's points are whole pixels

    def _followed(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points (N,F,2) followed through the frames, and where they were not lost (N,F)."""
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        points, seen = track_points(grey, max_round_trip_error(self.lost, frames.shape[1:3]))
        lasting = np.flatnonzero(seen.sum(axis=1) >= self.shortest * len(frames))
        count = min(int(rng.integers(self.count[0], self.count[1] + 1)), len(lasting))
        steps = np.hypot(*np.diff(points[lasting], axis=1).transpose(2, 0, 1)) * seen[lasting, 1:]  # (n,F-1)
        liking = 1 + steps.sum(axis=1)
        chosen = rng.choice(lasting, count, replace=False, p=liking / liking.sum()) if count else lasting[:0]
        return points[chosen], seen[chosen]


@lru_cache(maxsize=16)
def _frames_of(path: Path) -> int:
    """Number of frames of a clip."""
    return probe(path).frames
