"""People through a clip: who is who from frame to frame, gaps closed, jitter smoothed."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

from iclora_train.signals.blazepose import BlazePose, Body, Square

SAME_PERSON = 0.2  # two squares whose centres are nearer than this share of their side show one person
MIN_CONFIDENCE = (
    0.5  # least confidence, of the detector and of the landmark network, that there is a person (as MediaPipe has it)
)

Track = dict[int, Body]  # frame number -> a person there


def track_people(frames: np.ndarray, network: BlazePose, tiles: int, patience: int) -> list[Track]:
    """Tracks of the people in frames (F,H,W,3), in order of appearance. A person is looked for where they were in the
    frame before, then wherever the detector sees somebody who is not followed yet; who was lost for at most `patience`
    frames and is seen again at about the same place is the same person. At last everybody is followed backwards from
    where they were seen first.
    """
    tracks: list[Track] = []
    for number, frame in enumerate(frames):
        for track in tracks:
            _step(frame, network, tracks, track, number - 1, number)
        for square in network.find_people(frame, tiles, MIN_CONFIDENCE):
            body = None if _known(square, tracks, number) else network.landmarks(frame, square, MIN_CONFIDENCE)
            if body is not None and not _known(body.square, tracks, number):
                _joined(tracks, body.square, number, patience)[number] = body
    for track in tracks:
        for number in range(min(track) - 1, -1, -1):
            _step(frames[number], network, tracks, track, number + 1, number)
    return tracks


def _step(frame: np.ndarray, network: BlazePose, tracks: list[Track], track: Track, known: int, number: int) -> None:
    """Look for the person of a track in frame `number`, where they were in frame `known`."""
    if known not in track:
        return
    body = network.landmarks(frame, track[known].square, MIN_CONFIDENCE)
    if body is not None and not _known(body.square, tracks, number):
        track[number] = body


def _known(square: Square, tracks: list[Track], number: int) -> bool:
    """Whether somebody who is followed is there in frame `number`."""
    return any(_same(square, track[number].square) for track in tracks if number in track)


def _same(a: Square, b: Square) -> bool:
    return float(np.hypot(a.x - b.x, a.y - b.y)) < SAME_PERSON * max(a.side, b.side)


def _joined(tracks: list[Track], square: Square, number: int, patience: int) -> Track:
    """The lost track that a person seen in frame `number` continues, or a new one."""
    for track in tracks:
        last = max(track)
        if number - 1 - patience <= last < number and _same(square, track[last].square):
            return track
    tracks.append({})
    return tracks[-1]


def fill_gaps(points: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (F,K,3) as x, y, confidence, where confidence 0 means missing: runs of at most `gap` frames between two
    frames that have the point are filled along a straight line, with the lesser confidence of the two. Also which
    (F,K) were filled.
    """
    result, filled = points.copy(), np.zeros(points.shape[:2], bool)
    for k in range(points.shape[1]):
        seen = np.flatnonzero(points[:, k, 2] > 0)
        for before, after in pairwise(seen.tolist()):
            if 1 < after - before <= gap + 1:
                share = np.arange(1, after - before)[:, None] / (after - before)
                a, b = points[before, k], points[after, k]
                result[before + 1 : after, k, :2] = a[:2] + share * (b[:2] - a[:2])
                result[before + 1 : after, k, 2] = min(a[2], b[2])
                filled[before + 1 : after, k] = True
    return result, filled


def smooth_points(points: np.ndarray, window: int) -> np.ndarray:
    """Points (F,K,3) without jitter: in every unbroken run each position is replaced by the value there of the parabola
    that fits the `window` frames around it best. Nothing lags, and a path that is a parabola stays as it is.
    """
    result = points.copy()
    for k in range(points.shape[1]):
        for run in contiguous_runs(points[:, k, 2] > 0):
            result[run, k, :2] = _smoother(run.stop - run.start, window) @ points[run, k, :2]
    return result


def contiguous_runs(present: np.ndarray) -> list[slice]:
    """The unbroken stretches of True in (F,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], present.astype(np.int8), [0]])))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@lru_cache(maxsize=64)
def _smoother(frames: int, window: int) -> np.ndarray:
    """Matrix (F,F) of the local parabola fit (Savitzky and Golay 1964); near an end, the last window's parabola."""
    matrix, size = np.zeros((frames, frames)), min(window, frames)
    for t in range(frames):
        low = min(max(t - size // 2, 0), frames - size)
        powers = np.arange(low - t, low - t + size)[:, None] ** np.arange(min(3, size))  # (size,3)
        matrix[t, low : low + size] = np.linalg.pinv(powers)[0]
    return matrix
