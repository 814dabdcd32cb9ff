"""What an output clip is worth against its target and its control, as pure functions on uint8 RGB clips (F,H,W,3).

Conventions, fixed so that figures can be compared: 8-bit values, no border cropped, a clip's value is the mean over
its frames (edges, joints and points of tracks: counts pooled over its frames). docs/metrics.md defines each.
"""

from eval.metrics.base import Clip, GroundTruth, Mask, Measurement, Metric, NotRun
from eval.metrics.diversity import difference, dissimilarity, diversity
from eval.metrics.motion import offset
from eval.metrics.region import change, edited_region
from eval.metrics.suite import Suite

__all__ = [
    "Clip",
    "GroundTruth",
    "Mask",
    "Measurement",
    "Metric",
    "NotRun",
    "Suite",
    "change",
    "difference",
    "dissimilarity",
    "diversity",
    "edited_region",
    "offset",
]
