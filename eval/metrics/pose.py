"""Pose metrics: the maker's pose extractor is applied to the output and compared with the requested skeletons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import CachedClip, GroundTruth, Measurement, Metric, MetricGroup, Values
from iclora_train.signals.pose import PoseReader
from iclora_train.signals.skeleton import NECK, POINTS

Points = NDArray[np.float64]  # (...,18,3) as x, y in pixels and confidence, 0: missing

MIN_CONFIDENCE = 0.3  # joints below it count as not requested and as not detected
MIN_JOINTS = 3  # the box around fewer joints does not show how large a person is
PCK_RADIUS = 0.1  # of the longer side of the box around the requested person
# COCO's standard deviations of annotators, by OpenPose's points; without the neck, which is computed from the shoulders
_BY_PART = {"nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062}
_BY_PART |= {"hip": 0.107, "knee": 0.087, "ankle": 0.089, "neck": 1.0}
SIGMAS = np.array([_BY_PART[name.split("_")[-1]] for name in POINTS])
METRICS = (
    Metric("pose_pck", "joints within 10 % (PCK@0.1)", "", "high", "structure"),
    Metric("pose_oks", "keypoint similarity (OKS)", "", "high", "structure"),
    Metric("pose_error", "joint error", "px", "low", "structure"),
    Metric("pose_recall", "joints detected", "", "high", "structure"),
)


def requested_skeletons(drawn: Mapping[str, Any], frames: int, size: tuple[int, int]) -> Points:
    """The skeletons of the record as (P,F,18,3), with confidence 0 for every joint that is not requested.

    Not requested are joints below MIN_CONFIDENCE, joints outside the picture (`size` as height, width), the neck, and
    all joints of a person with fewer than MIN_JOINTS left in a frame.
    """
    people = np.zeros((len(drawn.get("skeletons", ())), frames, 18, 3))
    for person, skeleton in zip(people, drawn.get("skeletons", ()), strict=True):
        points = np.array(skeleton["points"]).reshape(-1, 18, 3)
        person[skeleton["start"] : skeleton["start"] + len(points)] = points
    x, y, confidence = np.moveaxis(people, -1, 0)
    is_requested = (confidence >= MIN_CONFIDENCE) & (x >= 0) & (y >= 0) & (x <= size[1] - 1) & (y <= size[0] - 1)
    is_requested[..., NECK] = False
    is_requested &= is_requested.sum(-1, keepdims=True) >= MIN_JOINTS
    people[..., 2] *= is_requested
    return people


def joint_distances(requested: Points, detected: Points) -> Values:
    """Distances (18,) in pixels between the joints of two skeletons (18,3); infinite if one has no such joint."""
    both = (requested[:, 2] > 0) & (detected[:, 2] >= MIN_CONFIDENCE)
    return np.where(both, np.hypot(*(requested - detected)[:, :2].T), np.inf)


def similarity(requested: Points, distances: Values) -> float:
    """OKS (COCO): mean over requested joints of exp(-d^2 / (2 A k^2)), k = 2 * SIGMAS; a missing joint counts as 0.

    A is the area of the box around the requested joints (COCO uses the area of the silhouette).
    """
    width, height = _box(requested)
    scale = 2 * max(width * height, 1.0) * (2 * SIGMAS) ** 2
    return float(np.exp(-(distances**2) / scale)[requested[:, 2] > 0].mean())


def _box(person: Points) -> tuple[float, float]:
    """Width and height in pixels of the box around the requested joints of a person (18,3)."""
    joints = person[person[:, 2] > 0, :2]
    width, height = joints.max(0) - joints.min(0)
    return float(width), float(height)


def matched(requested: Points, detected: Points) -> list[tuple[int, Values]]:
    """(number, joint distances (18,)) of every requested person (P,18,3) of a frame.

    Requested people are matched one to one with detected people (Q,18,3), highest OKS first. Distances are infinite
    for a person without a match.
    """
    people = [i for i in range(len(requested)) if (requested[i, :, 2] > 0).any()]
    distances = {(i, j): joint_distances(requested[i], detected[j]) for i in people for j in range(len(detected))}
    by_similarity = sorted(distances, key=lambda pair: -similarity(requested[pair[0]], distances[pair]))
    result: dict[int, Values] = {}
    taken: set[int] = set()
    for i, j in by_similarity:
        if i not in result and j not in taken:
            result[i] = distances[i, j]
            taken.add(j)
    return [(i, result.get(i, np.full(18, np.inf))) for i in people]


def pose_values(requested: Points, detected: Points) -> Measurement:
    """Pose metrics of requested (P,F,18,3) against detected skeletons (Q,F,18,3), pooled over the joints of all frames.

    Empty if no joint is requested; without joint error if no joint is detected.
    """
    hits: list[NDArray[np.bool_]] = []
    distances: list[Values] = []
    oks: list[float] = []
    series: list[float] = []
    for t in range(requested.shape[1]):
        frame_hits: list[NDArray[np.bool_]] = []
        for i, person_distances in matched(requested[:, t], detected[:, t]):
            joints = requested[i, t, :, 2] > 0
            frame_hits.append(person_distances[joints] <= PCK_RADIUS * max(*_box(requested[i, t]), 1.0))
            distances.append(person_distances[joints])
            oks.append(similarity(requested[i, t], person_distances))
        hits += frame_hits
        if frame_hits:
            series.append(float(np.concatenate(frame_hits).mean()))
    if not distances:
        return Measurement()
    all_distances = np.concatenate(distances)
    values = {
        "pose_pck": float(np.concatenate(hits).mean()),
        "pose_oks": float(np.mean(oks)),
        "pose_recall": float(np.isfinite(all_distances).mean()),
    }
    if np.isfinite(all_distances).any():
        values["pose_error"] = float(all_distances[np.isfinite(all_distances)].mean())
    return Measurement(values, {"pose_pck": series} if len(series) == requested.shape[1] else {})


def pose_metrics(reader: PoseReader) -> MetricGroup:
    """Compare the skeletons of the record with those that the maker's extractor detects in the output."""

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        requested = requested_skeletons(truth.drawn, len(output.clip), output.clip.shape[1:3])
        if not requested[..., 2].any():
            return Measurement()
        return pose_values(requested, reader.read(output.clip)[0])

    return MetricGroup(METRICS, measure)
