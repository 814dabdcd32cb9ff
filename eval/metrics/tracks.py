"""Track metrics: the maker's tracker follows the requested points through the output."""

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
    Metric("track_error_diagonal", "track error, share of the diagonal", "%", "low", "structure"),
    Metric("track_within_1", "tracks within 1 % of the diagonal", "", "high", "structure"),
    Metric("track_within_5", "tracks within 5 % of the diagonal", "", "high", "structure"),
    Metric("track_dx", "tracks within 1 to 16 px of 256 (TAP d_x)", "", "high", "structure"),
    Metric("track_found", "points still tracked", "", "high", "structure"),
)


def requested_tracks(drawn: Mapping[str, Any], frames: int) -> tuple[Values, Mask]:
    """The tracks of the record in target pixels (N,F,2), and the frames that each track covers (N,F).

    After its end a track keeps its last position.
    """
    tracks = [np.array(track, np.float64) for track in drawn.get("tracks", ()) if track]
    points, is_covered = np.zeros((len(tracks), frames, 2)), np.zeros((len(tracks), frames), bool)
    for i, track in enumerate(tracks):
        points[i] = track[np.minimum(np.arange(frames), len(track) - 1)]
        is_covered[i, : len(track)] = True
    return points, is_covered


def track_values(
    requested: Values, is_requested: Mask, tracked: Values, is_tracked: Mask, size: tuple[int, int]
) -> Measurement:
    """Track metrics of requested against tracked points (N,F,2), over all requested frames but the first.

    is_requested (N,F): frames for which a point is requested. is_tracked (N,F): frames in which it is not lost. A
    lost point keeps its last position in the error metrics and counts as outside every distance threshold. size:
    height, width. Empty if no track goes beyond the first frame.
    """
    is_requested = is_requested & (np.arange(is_requested.shape[1]) > 0)
    if not is_requested.any():
        return Measurement()
    height, width = size
    distance = np.linalg.norm(tracked - requested, axis=-1)  # (N,F)
    share = np.where(is_tracked, distance, np.inf)[is_requested] / np.hypot(height, width)
    tap = np.linalg.norm((tracked - requested) * TAP_SIDE / (width, height), axis=-1)
    tap_distance = np.where(is_tracked, tap, np.inf)[is_requested]
    error = float(distance[is_requested].mean())
    values = {
        "track_error": error,
        "track_error_diagonal": 100 * error / float(np.hypot(height, width)),
        "track_within_1": float((share <= 0.01).mean()),
        "track_within_5": float((share <= 0.05).mean()),
        "track_dx": float(np.mean([(tap_distance < limit).mean() for limit in TAP_PIXELS])),
        "track_found": float(is_tracked[is_requested].mean()),
    }
    frames = [
        float(distance[:, t][is_requested[:, t]].mean()) if is_requested[:, t].any() else 0.0
        for t in range(is_requested.shape[1])
    ]
    return Measurement(values, {"track_error": frames})


def track_metrics(lost: float) -> MetricGroup:
    """Compare the tracks of the record with the paths of their start points in the output. lost: as in the maker."""

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        requested, is_requested = requested_tracks(truth.drawn, len(output.clip))
        size = output.clip.shape[1:3]
        tracked, is_tracked = track_points(list(output.grey), max_round_trip_error(lost, size), requested[:, 0])
        return track_values(requested, is_requested, tracked, is_tracked, size)

    return MetricGroup(METRICS, measure)


def trails(output: CachedClip, truth: GroundTruth, lost: float, larger: float) -> Clip:
    """The paths of the requested tracks' start points in the output, drawn as the maker draws tracks."""
    requested, _ = requested_tracks(truth.drawn, len(output.clip))
    size = output.clip.shape[1:3]
    return draw_tracks(
        *track_points(list(output.grey), max_round_trip_error(lost, size), requested[:, 0]), size, larger
    )
