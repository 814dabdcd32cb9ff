"""Are edges where they were asked for? F1 of Canny edges with its floor, and ERQA for restored detail."""

from __future__ import annotations

import cv2
import numpy as np

from eval.metrics.base import CANNY, CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, Values

ERQA_SHIFT = 3  # pixels by which ERQA lets a whole frame be shifted


def edge_f1(output: CachedClip, target: CachedClip, tolerance: int = 1) -> float:
    """F1 of canny edges; an edge pixel is found when one of the other clip lies within `tolerance` pixels of it.

    precision = share of output edges found in the target, recall = share of target edges found in the output, F1
    their harmonic mean; counts pooled over frames. 1 when neither clip has edges, 0 when only one has.
    """
    return f1_of(output.edges, target.edges, tolerance)


def f1_of(made: Clip, wanted: Clip, tolerance: int) -> float:
    """`edge_f1` of edges (F,H,W), 0 or 1."""
    if not made.any() or not wanted.any():
        return float(not made.any() and not wanted.any())
    kernel = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)

    def found(of: Clip, among: Clip) -> float:
        near = np.stack([cv2.dilate(frame, kernel) for frame in among]).astype(np.uint8)
        return float((of & near).sum() / of.sum())

    precision, recall = found(made, wanted), found(wanted, made)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def erqa(output: CachedClip, target: CachedClip) -> Values:
    """Edge restoration of each frame (F,), 0 to 1: ERQA 1.0 (Kirillova et al. 2021, arXiv 2110.09992).

    The frame is first shifted by up to 3 pixels to where it fits the target best (here by the squared error of grey
    over the part that all shifts share). An edge of the output is right if the target has one within a pixel; an edge
    of the target is missing if there is no right edge at its very place; F1 of those counts. Frames without edges on
    either side give 1 (in the authors' code 0).
    """
    return np.array([_erqa_frame(output, target, i) for i in range(len(output.clip))])


def _erqa_frame(output: CachedClip, target: CachedClip, i: int) -> float:
    s = ERQA_SHIFT
    misfit = cv2.matchTemplate(target.grey[i], np.ascontiguousarray(output.grey[i, s:-s, s:-s]), cv2.TM_SQDIFF)  # (7,7)
    row, column = (int(n) - s for n in np.unravel_index(misfit.argmin(), misfit.shape))
    made, wanted = _edges(_cut(output.clip[i], -row, -column)), _edges(_cut(target.clip[i], row, column))
    if not made.any() and not wanted.any():
        return 1.0
    right = np.minimum(made, cv2.dilate(wanted, np.ones((3, 3), np.uint8)))
    wrong, missing = int(made.sum() - right.sum()), int((wanted & (1 - right)).sum())
    return 2 * int(right.sum()) / (2 * int(right.sum()) + wrong + missing)


def _cut(frame: Clip, down: int, right: int) -> Clip:
    """What is left of a frame (H,W,3) without its first (above 0) or last (below 0) rows and columns."""
    rows, columns = (slice(max(n, 0), min(n, 0) or None) for n in (down, right))
    return np.ascontiguousarray(frame[rows, columns])


def _edges(frame: Clip) -> Clip:
    """Canny edges of a frame in colour, 0 or 1: (H,W)."""
    return (cv2.Canny(frame, *CANNY) // 255).astype(np.uint8)


def _f1(output: CachedClip, truth: GroundTruth) -> Measurement:
    matched, floor = edge_f1(output, truth.cached_target), edge_f1(output, truth.cached_shuffled)
    pairs = zip(output.edges, truth.cached_target.edges, strict=True)
    return Measurement(
        {
            "edge_f1": matched,
            "edge_f1_strict": edge_f1(output, truth.cached_target, tolerance=0),
            "edge_f1_shuffled": floor,
            "edge_gap": matched - floor,
        },
        {"edge_f1": [f1_of(made[None], wanted[None], 1) for made, wanted in pairs]},
    )


def _erqa(output: CachedClip, truth: GroundTruth) -> Measurement:
    return Measurement({"erqa": float(erqa(output, truth.cached_target).mean())})


EDGES = MetricGroup(
    (
        Metric("edge_f1", "edge F1 (1 px)", "", "high", "structure"),
        Metric("edge_f1_strict", "edge F1 (strict)", "", "high", "structure"),
        Metric("edge_f1_shuffled", "edge F1 shuffled", "", None, "structure"),
        Metric("edge_gap", "edge gap", "", "high", "structure"),
    ),
    _f1,
)
ERQA = MetricGroup((Metric("erqa", "edge restoration (ERQA)", "", "high", "structure"),), _erqa)
