"""Are people where their skeletons were drawn? The same extractor as the maker's reads the output again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import CachedClip, GroundTruth, Measurement, Metric, MetricGroup, Values
from iclora_train.signals.pose import PoseReader
from iclora_train.signals.skeleton import NECK, POINTS

Points = NDArray[np.float64]  # (...,18,3) as x, y in pixels and confidence, 0: missing

SURE = 0.3  # joints of less confidence are neither asked for nor found
LEAST = 3  # joints; the box around fewer does not tell how large a person is
NEAR = 0.1  # PCK: of the longer side of the requested person's box
# COCO's standard deviations of annotators, by OpenPose's points; the neck, which is made of the shoulders, is left out
_BY_PART = {"nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062}
_BY_PART |= {"hip": 0.107, "knee": 0.087, "ankle": 0.089, "neck": 1.0}
SIGMAS = np.array([_BY_PART[name.split("_")[-1]] for name in POINTS])
METRICS = (
    Metric("pose_pck", "joints within 10 % (PCK@.1)", "", "high", "structure"),
    Metric("pose_oks", "keypoint similarity (OKS)", "", "high", "structure"),
    Metric("pose_error", "joint error", "px", "low", "structure"),
    Metric("pose_recall", "joints found", "", "high", "structure"),
)


def requested(drawn: Mapping[str, Any], frames: int, size: tuple[int, int]) -> Points:
    """The record's skeletons as (P,F,18,3), confidence 0 for all that is not asked for: joints that are unsure, outside
    of the picture (height, width), the neck, and in each frame people of whom less than LEAST joints are left."""
    people = np.zeros((len(drawn.get("skeletons", ())), frames, 18, 3))
    for person, skeleton in zip(people, drawn.get("skeletons", ()), strict=True):
        points = np.array(skeleton["points"]).reshape(-1, 18, 3)
        person[skeleton["start"] : skeleton["start"] + len(points)] = points
    x, y, sure = np.moveaxis(people, -1, 0)
    asked = (sure >= SURE) & (x >= 0) & (y >= 0) & (x <= size[1] - 1) & (y <= size[0] - 1)
    asked[..., NECK] = False
    asked &= asked.sum(-1, keepdims=True) >= LEAST
    people[..., 2] *= asked
    return people


def joint_distances(wanted: Points, found: Points) -> Values:
    """Pixels (18,) between the joints of two skeletons (18,3); infinite where either has none."""
    both = (wanted[:, 2] > 0) & (found[:, 2] >= SURE)
    return np.where(both, np.hypot(*(wanted - found)[:, :2].T), np.inf)


def similarity(wanted: Points, distances: Values) -> float:
    """OKS (COCO): mean over requested joints of exp(-d^2 / (2 A k^2)), k twice SIGMAS, A the area of the box around
    them (COCO takes the person's silhouette); a joint that is missing counts 0."""
    width, height = _box(wanted)
    scale = 2 * max(width * height, 1.0) * (2 * SIGMAS) ** 2
    return float(np.exp(-(distances**2) / scale)[wanted[:, 2] > 0].mean())


def _box(person: Points) -> tuple[float, float]:
    """Width and height in pixels of the box around the requested joints of a person (18,3)."""
    there = person[person[:, 2] > 0, :2]
    width, height = there.max(0) - there.min(0)
    return float(width), float(height)


def matched(wanted: Points, found: Points) -> list[tuple[int, Values]]:
    """For every requested person (P,18,3) of a frame: number, and distances (18,) to whom they are matched with among
    those found (Q,18,3), each once, the most alike first; infinite distances where nobody is left."""
    asked = [i for i in range(len(wanted)) if (wanted[i, :, 2] > 0).any()]
    apart = {(i, j): joint_distances(wanted[i], found[j]) for i in asked for j in range(len(found))}
    alike = sorted(apart, key=lambda pair: -similarity(wanted[pair[0]], apart[pair]))
    result: dict[int, Values] = {}
    taken: set[int] = set()
    for i, j in alike:
        if i not in result and j not in taken:
            result[i] = apart[i, j]
            taken.add(j)
    return [(i, result.get(i, np.full(18, np.inf))) for i in asked]


def pose_values(wanted: Points, found: Points) -> Measurement:
    """The metrics of requested (P,F,18,3) against found skeletons (Q,F,18,3): joints of all frames count alike.
    Nothing where nobody is asked for; no joint error where nobody is found."""
    near: list[NDArray[np.bool_]] = []
    distances: list[Values] = []
    oks: list[float] = []
    series: list[float] = []
    for t in range(wanted.shape[1]):
        here: list[NDArray[np.bool_]] = []
        for i, apart in matched(wanted[:, t], found[:, t]):
            joints = wanted[i, t, :, 2] > 0
            here.append(apart[joints] <= NEAR * max(*_box(wanted[i, t]), 1.0))
            distances.append(apart[joints])
            oks.append(similarity(wanted[i, t], apart))
        near += here
        if here:
            series.append(float(np.concatenate(here).mean()))
    if not distances:
        return Measurement()
    every = np.concatenate(distances)
    values = {
        "pose_pck": float(np.concatenate(near).mean()),
        "pose_oks": float(np.mean(oks)),
        "pose_recall": float(np.isfinite(every).mean()),
    }
    if np.isfinite(every).any():
        values["pose_error"] = float(every[np.isfinite(every)].mean())
    return Measurement(values, {"pose_pck": series} if len(series) == wanted.shape[1] else {})


def pose_metrics(reader: PoseReader) -> MetricGroup:
    """The skeletons of the record against those that the maker's own extractor finds in the output."""

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        wanted = requested(truth.drawn, len(output.clip), output.clip.shape[1:3])
        if not wanted[..., 2].any():
            return Measurement()
        return pose_values(wanted, reader.read(output.clip)[0])

    return MetricGroup(METRICS, measure)
