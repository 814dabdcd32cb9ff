"""Sparse motion tracks: the adapter learns to move objects along drawn paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_number, check_range, register
from data_prep.makers.control.track_files import read_tracks
from iclora_train.config import require
from iclora_train.media.clip import probe
from iclora_train.media.section import Section
from iclora_train.signals.point_tracks import max_round_trip_error, track_points
from iclora_train.signals.track_curves import spline
from iclora_train.signals.track_drawing import draw_tracks


@register("control.tracks")
@dataclass(frozen=True)
class Tracks(Maker):
    """Trails of points as Lightricks' motion-control adapter draws them (`draw_tracks`).

    If the clip's row has a column `tracks`, its JSON file is drawn. points: content of the file, "spline" for control
    points of a curve over the whole clip, or "frames" for one point per frame of the clip; x and y are in pixels of the
    clip.

    Otherwise points are tracked from the window's first frame. count: [from, to] of the number of points, drawn per
    window; points that move are preferred. lost: a track ends where tracking forwards and back misses the start by more
    than `lost` pixels, at a target whose short side is 512. shortest: least length of a track as a share of the window.

    larger: size of the discs as a multiple of the official adapter's: 1 for that adapter, 4 to see them on 64 pixels.
    """

    count: list[int] = field(default_factory=lambda: [6, 30])
    points: str = "spline"
    lost: float = 1.0
    shortest: float = 0.5
    larger: float = 1.0

    def __post_init__(self) -> None:
        check_range("count", self.count, 1)
        are_whole = all(isinstance(n, int) for n in self.count)
        require(are_whole, f"task.maker_args.count={self.count} must be whole numbers")
        require(self.points in ("spline", "frames"), f"task.maker_args.points={self.points!r} is not spline or frames")
        check_number("lost", self.lost, 0.01)
        check_number("shortest", self.shortest, 0, 1)
        check_number("larger", self.larger, 0.1, 100)

    def check(self, files: Mapping[str, Path]) -> None:
        """ValueError if the file in the column `tracks` cannot be used."""
        if "tracks" in files:
            read_tracks(files["tracks"])

    @property
    def needs_motion(self) -> bool:
        return True

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        if "tracks" in source.files:
            points, visible = self._read(source)
        else:
            points, visible = self._track(frames, rng)
        lengths = visible.sum(axis=1).tolist()  # a track that ends does not resume
        tracks = [np.round(track[:n], 1).tolist() for track, n in zip(points, lengths, strict=True)]
        coverage = float(visible.any(axis=0).mean()) if len(visible) else 0.0  # share of frames with a track
        return draw_tracks(points, visible, frames.shape[1:3], self.larger), {"tracks": tracks, "coverage": coverage}

    def _read(self, source: SourceWindow) -> tuple[np.ndarray, np.ndarray]:
        """Points (N,F,2) in pixels of the frames, and whether each exists (N,F), from the JSON file of the clip."""
        tracks, numbers = read_tracks(source.file("tracks")), np.array(source.indices)
        if self.points == "spline":
            frames = source.curve_frames or _frame_count(source.path, source.section)
            tracks = [spline(track, frames) for track in tracks]
        visible = np.stack([numbers < len(track) for track in tracks])
        points = np.stack([track[np.minimum(numbers, len(track) - 1)] for track in tracks])
        moved = source.crop.apply_to_points(points)
        return np.rint(moved) if self.points == "spline" else moved, visible  # the editor rounds its points to pixels

    def _track(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points (N,F,2) tracked through the frames, and whether each is not lost (N,F)."""
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        points, visible = track_points(grey, max_round_trip_error(self.lost, frames.shape[1:3]))
        long_enough = np.flatnonzero(visible.sum(axis=1) >= self.shortest * len(frames))
        count = min(int(rng.integers(self.count[0], self.count[1] + 1)), len(long_enough))
        steps = np.hypot(*np.diff(points[long_enough], axis=1).transpose(2, 0, 1)) * visible[long_enough, 1:]  # (n,F-1)
        weights = 1 + steps.sum(axis=1)
        drawn = rng.choice(long_enough, count, replace=False, p=weights / weights.sum()) if count else long_enough[:0]
        return points[drawn], visible[drawn]


@lru_cache(maxsize=16)
def _frame_count(path: Path, section: Section | None) -> int:
    """Number of frames of a clip."""
    return probe(path, section).frames
