"""Metrics of an output clip against its target and its control: pure functions on uint8 RGB clips (F,H,W,3).

Conventions: 8-bit values, no border is cropped, the value of a clip is the mean over its frames (for edges, joints and
track points, counts are pooled over frames). docs/evaluation.md defines every metric; `suite` lists them by task.
"""

from eval.metrics.base import Clip, GroundTruth, Mask, Measurement, Metric, NotRun
from eval.metrics.displacement import offset
from eval.metrics.diversity import difference, dissimilarity, diversity
from eval.metrics.region import change, edited_region
from eval.metrics.suite import DEFINITIONS, MEASURED_BY, REDEFINED, Suite

__all__ = [
    "DEFINITIONS",
    "MEASURED_BY",
    "REDEFINED",
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
