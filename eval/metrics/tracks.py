"""Do things move along the tracks that were drawn? The maker's own tracker follows the requested points again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.metrics.base import CachedClip, Clip, GroundTruth, Mask, Measurement, Metric, MetricGroup, Values
from iclora_train.signals.point_tracks import max_round_trip_error, track_points
from iclora_train.signals.track_drawing import draw_tracks

TAP_SIDE, TAP_PIXELS = 256, (1, 2, 4, 8, 16)  # TAP-Vid (Doersch et al. 2022, arXiv 2211.03726)
METRICS = (
    Metric("track_error", "track error", "px", "low", "structure"),
    Metric("track_error_diagonal", "track error of the diagonal", "%", "low", "structure"),
    Metric("track_within_1", "tracks within 1 % of the diagonal", "", "high", "structure"),
    Metric("track_within_5", "tracks within 5 % of the diagonal", "", "high", "structure"),
    Metric("track_dx", "tracks within 1 to 16 px of 256 (TAP d_x)", "", "high", "structure"),
    Metric("track_found", "tracks still seen", "", "high", "structure"),
)


def requested(drawn: Mapping[str, Any], frames: int) -> tuple[Values, Mask]:
    """The record's tracks, in pixels of the target from its first frame on: (N,F,2), and where they last (N,F)."""
    tracks = [np.array(track, np.float64) for track in drawn.get("tracks", ()) if track]
    points, there = np.zeros((len(tracks), frames, 2)), np.zeros((len(tracks), frames), bool)
    for row, lasts, track in zip(points, there, tracks, strict=True):
        row[:] = track[np.minimum(np.arange(frames), len(track) - 1)]
        lasts[: len(track)] = True
    return points, there


def track_values(wanted: Values, asked: Mask, found: Values, seen: Mask, size: tuple[int, int]) -> Measurement:
    """The metrics of requested (N,F,2) against found points, over frames from the second on where they are asked for
    (N,F). A lost point stays where it was seen last for the error, and is within no distance. size: height, width.
    Nothing where no track goes beyond the first frame."""
    asked = asked & (np.arange(asked.shape[1]) > 0)
    if not asked.any():
        return Measurement()
    height, width = size
    apart = np.linalg.norm(found - wanted, axis=-1)  # (N,F)
    share = np.where(seen, apart, np.inf)[asked] / np.hypot(height, width)
    tap = np.linalg.norm((found - wanted) * TAP_SIDE / (width, height), axis=-1)
    tap_seen = np.where(seen, tap, np.inf)[asked]
    error = float(apart[asked].mean())
    values = {
        "track_error": error,
        "track_error_diagonal": 100 * error / float(np.hypot(height, width)),
        "track_within_1": float((share <= 0.01).mean()),
        "track_within_5": float((share <= 0.05).mean()),
        "track_dx": float(np.mean([(tap_seen < limit).mean() for limit in TAP_PIXELS])),
        "track_found": float(seen[asked].mean()),
    }
    frames = [float(apart[:, t][asked[:, t]].mean()) if asked[:, t].any() else 0.0 for t in range(asked.shape[1])]
    return Measurement(values, {"track_error": frames})


def track_metrics(lost: float) -> MetricGroup:
    """The tracks of the record against where their first points go in the output; `lost` as the maker has it."""

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        wanted, asked = requested(truth.drawn, len(output.clip))
        size = output.clip.shape[1:3]
        found, seen = track_points(list(output.grey), max_round_trip_error(lost, size), wanted[:, 0])
        return track_values(wanted, asked, found, seen, size)

    return MetricGroup(METRICS, measure)


def trails(output: CachedClip, truth: GroundTruth, lost: float, larger: float) -> Clip:
    """Trails of the requested tracks' first points as they go in the output, drawn as the maker draws them."""
    wanted, _ = requested(truth.drawn, len(output.clip))
    size = output.clip.shape[1:3]
    return draw_tracks(*track_points(list(output.grey), max_round_trip_error(lost, size), wanted[:, 0]), size, larger)
