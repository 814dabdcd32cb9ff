"""Is the depth what was asked for? The maker's own network reads the output and the target."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import CachedClip, GroundTruth, Measurement, Metric, MetricGroup, Values, framewise

Near = NDArray[np.float32]  # (F,H,W), larger is nearer
METRICS = (Metric("depth_error", "depth error (si-RMSE)", "", "low", "structure"),)


class Network(Protocol):
    """What `iclora_train.ltx2.depth` loads."""

    def nearness(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 (n,H,W,3) -> fp32 (n,H,W), larger is nearer."""
        ...


def si_rmse(found: Near, wanted: Near) -> Values:
    """Of each frame (F,), the root mean square difference of two depth maps after each is divided by its median: no
    scale matters. Frames whose median is not above 0 have no scale: NaN."""

    def scaled(near: Near) -> Values:
        middle = np.median(near, axis=(1, 2), keepdims=True).astype(np.float64)
        return np.divide(near, middle, out=np.full(near.shape, np.nan), where=middle > 0)

    return np.asarray(np.sqrt(((scaled(found) - scaled(wanted)) ** 2).mean((1, 2))))


def depth_metrics(network: Network) -> MetricGroup:
    """si-RMSE of the output's depth against the target's."""
    wanted = lru_cache(maxsize=2)(lambda truth: network.nearness(truth.target))

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        errors = si_rmse(network.nearness(output.clip), wanted(truth))
        return framewise("depth_error", errors) if np.isfinite(errors).all() else Measurement()

    return MetricGroup(METRICS, measure)
