"""Edge metrics: F1 of Canny edges with its floor, and ERQA for restored detail."""

from __future__ import annotations

import cv2
import numpy as np

from eval.metrics.base import CANNY, CachedClip, Clip, GroundTruth, Measurement, Metric, MetricGroup, Values

ERQA_SHIFT = 3  # pixels; ERQA compensates a global shift up to this size


def edge_f1(output: CachedClip, target: CachedClip, tolerance: int = 1) -> float:
    """F1 of Canny edges. An edge pixel matches if the other clip has an edge pixel within `tolerance` pixels.

    precision: share of output edges matched in the target; recall: share of target edges matched in the output; F1:
    their harmonic mean. Counts are pooled over frames. 1 if neither clip has edges, 0 if only one has.
    """
    return f1_of(output.edges, target.edges, tolerance)


def f1_of(output: Clip, target: Clip, tolerance: int) -> float:
    """`edge_f1` of edge maps (F,H,W), 0 or 1."""
    if not output.any() or not target.any():
        return float(not output.any() and not target.any())
    kernel = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)

    def matched_share(edges: Clip, other: Clip) -> float:
        near = np.stack([cv2.dilate(frame, kernel) for frame in other]).astype(np.uint8)
        return float((edges & near).sum() / edges.sum())

    precision, recall = matched_share(output, target), matched_share(target, output)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def erqa(output: CachedClip, target: CachedClip) -> Values:
    """Edge restoration per frame (F,), 0 to 1: ERQA 1.0 (Kirillova et al. 2021, arXiv 2110.09992).

    The frame is first shifted by up to 3 pixels to its best match with the target (by squared error of grey over the
    part that all shifts share). An output edge is a true positive if the target has an edge within a pixel. A target
    edge is missing if there is no true positive at exactly its position. The result is the F1 of these counts. Frames
    without edges on either side give 1 (the authors' code gives 0).
    """
    return np.array([_erqa_frame(output, target, i) for i in range(len(output.clip))])


def _erqa_frame(output: CachedClip, target: CachedClip, i: int) -> float:
    s = ERQA_SHIFT
    misfit = cv2.matchTemplate(target.grey[i], np.ascontiguousarray(output.grey[i, s:-s, s:-s]), cv2.TM_SQDIFF)  # (7,7)
    row, column = (int(n) - s for n in np.unravel_index(misfit.argmin(), misfit.shape))
    edges, target_edges = _edges(_cut(output.clip[i], -row, -column)), _edges(_cut(target.clip[i], row, column))
    if not edges.any() and not target_edges.any():
        return 1.0
    matched = np.minimum(edges, cv2.dilate(target_edges, np.ones((3, 3), np.uint8)))
    wrong, missing = int(edges.sum() - matched.sum()), int((target_edges & (1 - matched)).sum())
    return 2 * int(matched.sum()) / (2 * int(matched.sum()) + wrong + missing)


def _cut(frame: Clip, down: int, right: int) -> Clip:
    """A frame (H,W,3) without its first (if positive) or last (if negative) `down` rows and `right` columns."""
    rows, columns = (slice(max(n, 0), min(n, 0) or None) for n in (down, right))
    return np.ascontiguousarray(frame[rows, columns])


def _edges(frame: Clip) -> Clip:
    """Canny edges of a colour frame, 0 or 1: (H,W)."""
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
        {"edge_f1": [f1_of(edges[None], target_edges[None], 1) for edges, target_edges in pairs]},
    )


def _erqa(output: CachedClip, truth: GroundTruth) -> Measurement:
    return Measurement({"erqa": float(erqa(output, truth.cached_target).mean())})


EDGES = MetricGroup(
    (
        Metric("edge_f1", "edge F1 (1 px)", "", "high", "structure"),
        Metric("edge_f1_strict", "edge F1 (strict)", "", "high", "structure"),
        Metric("edge_f1_shuffled", "edge F1 against another clip", "", None, "structure"),
        Metric("edge_gap", "edge F1 above that against another clip", "", "high", "structure"),
    ),
    _f1,
)
ERQA = MetricGroup(
    (Metric("erqa", "edge restoration (ERQA)", "", "high", "structure"),), _erqa, side=2 * ERQA_SHIFT + 1
)
