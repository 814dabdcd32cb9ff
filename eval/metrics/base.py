"""Types of metrics: name and properties, inputs (clip and ground truth), and results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from iclora_train.data.controls import drawn_of
from iclora_train.signals.optical_flow import dis_flow

Clip = NDArray[np.uint8]  # RGB (F,H,W,3)
Mask = NDArray[np.bool_]  # (F,H,W)
Values = NDArray[np.float64]

CANNY = (100, 200)  # thresholds of ControlNet++ (arXiv 2404.07987)
FLOW_SIDE = 256  # pixels: optical flow is computed on frames averaged down to this shorter side


@dataclass(frozen=True)
class Metric:
    """Name and properties of one metric.

    unit: "dB", "levels", "px", "%", "s" or "". better: "high", "low", or None if neither direction is better. group:
    picture, structure, colour, time or region.
    """

    key: str
    title: str
    unit: str
    better: str | None
    group: str


@dataclass(frozen=True)
class NotRun:
    """A metric that cannot be measured on this machine, and why: what is missing and how to get it."""

    metric: str
    reason: str


@dataclass(frozen=True)
class Measurement:
    """values: metric -> value of a clip; frames: metric -> value per frame. Metrics without a value are absent."""

    values: dict[str, float] = field(default_factory=dict)
    frames: dict[str, list[float]] = field(default_factory=dict)


def framewise(key: str, per_frame: Values | Sequence[float]) -> Measurement:
    """The measurement of a metric that is the mean of its values per frame (F,)."""
    series = np.asarray(per_frame, np.float64)
    return Measurement({key: float(series.mean())}, {key: series.tolist()})


class CachedClip:
    """A clip with the derived pictures that several metrics share; each is computed once."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    @cached_property
    def grey(self) -> Clip:
        """BT.601 full-range luma, 8 bit: (F,H,W)."""
        return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.clip]).astype(np.uint8)

    @cached_property
    def edges(self) -> Clip:
        """Canny edges of `grey`, 0 or 1: (F,H,W)."""
        return np.stack([cv2.Canny(grey, *CANNY) for grey in self.grey]).astype(np.uint8) // 255

    @property
    def shrink(self) -> float:
        """The factor by which `small` is smaller than the clip, at least 1."""
        return max(min(self.clip.shape[1:3]) / FLOW_SIDE, 1.0)

    @cached_property
    def small(self) -> Clip:
        """The clip averaged down to a shorter side of FLOW_SIDE, (F,h,w,3); smaller clips are unchanged."""
        height, width = (round(n / self.shrink) for n in self.clip.shape[1:3])
        if self.shrink == 1:
            return self.clip
        return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in self.clip]).astype(
            np.uint8
        )

    def flow_between(self, source: int, destination: int) -> NDArray[np.float16]:
        """Optical flow (h,w,2) as x, y in pixels of `small`, from frame `source` to frame `destination`."""
        grey = (cv2.cvtColor(self.small[i], cv2.COLOR_RGB2GRAY) for i in (source, destination))
        return dis_flow(*grey).astype(np.float16)

    @cached_property
    def flow(self) -> NDArray[np.float16]:
        """Flow from each frame to the next, (F-1,h,w,2) in pixels of `small`; half precision, for long clips."""
        return np.stack([self.flow_between(i, i + 1) for i in range(len(self.clip) - 1)])


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The data that an output clip is measured against. Reuse it for all clips of a window: it caches its target.

    target: RGB uint8 (F,H,W,3). shuffled: the target of another recording, of the same shape (the floor). reference:
    the first reference, at the size and frame count of the target; None without one. region: the hole or edited part
    (F,H,W), or None (`edited_region`). record: how the pair was made, as its shard stores it. band: width in pixels of
    the border around the region that counts neither as inside nor as outside: one reference token. caption: that of the
    window. controls: the names of the controls that made the references.
    """

    target: Clip
    shuffled: Clip
    reference: Clip | None
    region: Mask | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    fps: float = 25.0
    band: int = 8
    caption: str = ""
    controls: tuple[str, ...] = ()

    @cached_property
    def cached_target(self) -> CachedClip:
        """The target with its cached derivatives."""
        return CachedClip(self.target)

    @cached_property
    def cached_shuffled(self) -> CachedClip:
        """The target of another recording with its cached derivatives."""
        return CachedClip(self.shuffled)

    @cached_property
    def cached_reference(self) -> CachedClip:
        """The reference with its cached derivatives."""
        assert self.reference is not None
        return CachedClip(self.reference)

    @property
    def drawn(self) -> Mapping[str, Any]:
        """The control data that the makers drew for this pair (skeletons, tracks, ...): `drawn` of its record."""
        return drawn_of(self.record)


@dataclass(frozen=True)
class MetricGroup:
    """Metrics that one function measures together: (output, ground truth) -> measurement.

    side, frames: the smallest frames (shorter side, pixels) and the shortest clips that they can be measured on.
    """

    metrics: tuple[Metric, ...]
    measure: Callable[[CachedClip, GroundTruth], Measurement]
    side: int = 1
    frames: int = 1

    def obstacle(self, side: int, frames: int) -> str:
        """Why clips of `frames` frames with a shorter side of `side` pixels cannot be measured; empty if they can."""
        if side < self.side:
            return f"it needs frames of at least {self.side} pixels; the shorter side has {side}"
        if frames < self.frames:
            return f"it compares neighbouring frames and needs {self.frames} of them; the clips have {frames}"
        return ""
