"""What a metric is, what it is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from iclora_train.signals.optical_flow import dis_flow

Clip = NDArray[np.uint8]  # RGB (F,H,W,3)
Mask = NDArray[np.bool_]  # (F,H,W)
Values = NDArray[np.float64]

CANNY = (100, 200)  # thresholds of ControlNet++ (arXiv 2404.07987)
FLOW_SIDE = 256  # pixels: optical flow is taken of frames averaged down to this shorter side, if theirs is longer


@dataclass(frozen=True)
class Metric:
    """One figure. unit: "dB", "levels", "px", "%" or "". better: "high", "low", or None where neither end is good.
    group: picture, structure, colour, time, region or learned."""

    key: str
    title: str
    unit: str
    better: str | None
    group: str


@dataclass(frozen=True)
class NotRun:
    """A metric that this machine cannot measure; the reason tells what is absent and how to get it."""

    metric: str
    reason: str


@dataclass(frozen=True)
class Measurement:
    """values: metric -> figure of a clip; what cannot be measured is absent. frames: metric -> one figure per frame."""

    values: dict[str, float] = field(default_factory=dict)
    frames: dict[str, list[float]] = field(default_factory=dict)


def framewise(key: str, per_frame: Values | Sequence[float]) -> Measurement:
    """A metric whose value is the mean over frames (F,)."""
    series = np.asarray(per_frame, np.float64)
    return Measurement({key: float(series.mean())}, {key: series.tolist()})


class CachedClip:
    """A clip, and what several metrics read from it, each of which is read once."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    @cached_property
    def grey(self) -> Clip:
        """BT.601 full-range luma, 8 bit: (F,H,W)."""
        return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.clip]).astype(np.uint8)

    @cached_property
    def edges(self) -> Clip:
        """Canny edges of each frame's grey, 0 or 1: (F,H,W)."""
        return np.stack([cv2.Canny(grey, *CANNY) for grey in self.grey]).astype(np.uint8) // 255

    @property
    def shrink(self) -> float:
        """Size of the clip over that of `small`, at least 1."""
        return max(min(self.clip.shape[1:3]) / FLOW_SIDE, 1.0)

    @cached_property
    def small(self) -> Clip:
        """The clip averaged down to a shorter side of FLOW_SIDE: (F,h,w,3); a smaller one as it is."""
        height, width = (round(n / self.shrink) for n in self.clip.shape[1:3])
        if self.shrink == 1:
            return self.clip
        return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in self.clip]).astype(
            np.uint8
        )

    def flow_between(self, here: int, there: int) -> NDArray[np.float16]:
        """Flow (h,w,2) as x, y in pixels of `small` from one of its frames to another."""
        grey = (cv2.cvtColor(self.small[i], cv2.COLOR_RGB2GRAY) for i in (here, there))
        return dis_flow(*grey).astype(np.float16)

    @cached_property
    def flow(self) -> NDArray[np.float16]:
        """Flow from each frame to the next, (F-1,h,w,2) in pixels of `small`; half precision, for long clips."""
        return np.stack([self.flow_between(i, i + 1) for i in range(len(self.clip) - 1)])


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What an output clip is measured against. Keep it for all clips of a window: it reads its target only once.

    target, and shuffled, the target of another recording (the floor): RGB uint8 (F,H,W,3). reference: the first one at
    the target's size and frame count. region: the hole or edited part (F,H,W), or None (`edited_region`). record: what
    the pair's shard keeps of how it was made, of which `drawn` is what the maker drew. band: pixels on the outside of
    the region that count for neither side: one reference token.
    """

    target: Clip
    shuffled: Clip
    reference: Clip
    region: Mask | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    fps: float = 25.0
    band: int = 8

    @cached_property
    def cached_target(self) -> CachedClip:
        """The target."""
        return CachedClip(self.target)

    @cached_property
    def cached_shuffled(self) -> CachedClip:
        """The floor."""
        return CachedClip(self.shuffled)

    @cached_property
    def cached_reference(self) -> CachedClip:
        """The reference."""
        return CachedClip(self.reference)

    @property
    def drawn(self) -> Mapping[str, Any]:
        """What the maker drew for this pair (skeletons, tracks, ...)."""
        drawn: Mapping[str, Any] = self.record.get("drawn", {})
        return drawn


@dataclass(frozen=True)
class MetricGroup:
    """Metrics that are measured together."""

    metrics: tuple[Metric, ...]
    measure: Callable[[CachedClip, GroundTruth], Measurement]
