"""Track people through a clip, fill gaps in their points, and smooth jitter."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

from iclora_train.signals.blazepose import BlazePose, Body, Square

SAME_PERSON = 0.2  # squares whose centres are nearer than this share of their side show the same person
MIN_CONFIDENCE = 0.5  # of the detector and of the landmark network in a person (MediaPipe's default)

Track = dict[int, Body]  # frame number -> the person in that frame


def track_people(frames: np.ndarray, network: BlazePose, tiles: int, patience: int) -> list[Track]:
    """Tracks of the people in frames (F,H,W,3), in order of appearance.

    In each frame a person is first searched at the position in the previous frame. Then the detector adds people that
    are not tracked yet. A person who was lost for at most `patience` frames and reappears near the last position
    continues the same track. Finally every track is extended backwards from its first frame.
    """
    tracks: list[Track] = []
    for number, frame in enumerate(frames):
        for track in tracks:
            _extend(frame, network, tracks, track, number - 1, number)
        for square in network.find_people(frame, tiles, MIN_CONFIDENCE):
            tracked = _is_tracked(square, tracks, number)
            body = None if tracked else network.landmarks(frame, square, MIN_CONFIDENCE)
            if body is not None and not _is_tracked(body.square, tracks, number):
                _track_of(tracks, body.square, number, patience)[number] = body
    for track in tracks:
        for number in range(min(track) - 1, -1, -1):
            _extend(frames[number], network, tracks, track, number + 1, number)
    return tracks


def _extend(
    frame: np.ndarray, network: BlazePose, tracks: list[Track], track: Track, previous: int, number: int
) -> None:
    """Search for the person of a track in frame `number`, at the position in frame `previous`."""
    if previous not in track:
        return
    body = network.landmarks(frame, track[previous].square, MIN_CONFIDENCE)
    if body is not None and not _is_tracked(body.square, tracks, number):
        track[number] = body


def _is_tracked(square: Square, tracks: list[Track], number: int) -> bool:
    """Whether a track already has this person in frame `number`."""
    return any(_same_person(square, track[number].square) for track in tracks if number in track)


def _same_person(a: Square, b: Square) -> bool:
    return float(np.hypot(a.x - b.x, a.y - b.y)) < SAME_PERSON * max(a.side, b.side)


def _track_of(tracks: list[Track], square: Square, number: int, patience: int) -> Track:
    """The lost track that a person in frame `number` continues, or a new track."""
    for track in tracks:
        last = max(track)
        if number - 1 - patience <= last < number and _same_person(square, track[last].square):
            return track
    tracks.append({})
    return tracks[-1]


def fill_gaps(points: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill short gaps in points (F,K,3) as x, y, confidence, where confidence 0 means missing.

    A gap of at most `gap` frames between two frames with the point is filled along a straight line, with the lower of
    the two confidences. Also returns which points (F,K) were filled.
    """
    result, filled = points.copy(), np.zeros(points.shape[:2], bool)
    for k in range(points.shape[1]):
        present = np.flatnonzero(points[:, k, 2] > 0)
        for before, after in pairwise(present.tolist()):
            if 1 < after - before <= gap + 1:
                share = np.arange(1, after - before)[:, None] / (after - before)
                a, b = points[before, k], points[after, k]
                result[before + 1 : after, k, :2] = a[:2] + share * (b[:2] - a[:2])
                result[before + 1 : after, k, 2] = min(a[2], b[2])
                filled[before + 1 : after, k] = True
    return result, filled


def smooth_points(points: np.ndarray, window: int) -> np.ndarray:
    """Remove jitter from points (F,K,3).

    In every unbroken run each position is replaced by the value of the parabola that best fits the `window` frames
    around it. The result does not lag, and a parabolic path stays unchanged.
    """
    result = points.copy()
    for k in range(points.shape[1]):
        for run in contiguous_runs(points[:, k, 2] > 0):
            result[run, k, :2] = _smoother(run.stop - run.start, window) @ points[run, k, :2]
    return result


def contiguous_runs(present: np.ndarray) -> list[slice]:
    """Runs of consecutive True values in (F,), as slices."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], present.astype(np.int8), [0]])))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@lru_cache(maxsize=64)
def _smoother(frames: int, window: int) -> np.ndarray:
    """Matrix (F,F) of the local parabola fit (Savitzky and Golay 1964); near the ends the last window's parabola."""
    matrix, size = np.zeros((frames, frames)), min(window, frames)
    for t in range(frames):
        low = min(max(t - size // 2, 0), frames - size)
        powers = np.arange(low - t, low - t + size)[:, None] ** np.arange(min(3, size))  # (size,3)
        matrix[t, low : low + size] = np.linalg.pinv(powers)[0]
    return matrix
