"""Depth metric: the maker's depth network is applied to output and target."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import CachedClip, GroundTruth, Measurement, Metric, MetricGroup, Values, framewise

Nearness = NDArray[np.float32]  # (F,H,W), larger is nearer
METRICS = (Metric("depth_error", "depth error (si-RMSE)", "", "low", "structure"),)


class Network(Protocol):
    """The interface of the network that `iclora_train.signals.depth_network` loads."""

    def nearness(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 (n,H,W,3) -> fp32 (n,H,W), larger is nearer."""
        ...


def si_rmse(output: Nearness, target: Nearness) -> Values:
    """Scale-invariant RMSE per frame (F,): both depth maps are divided by their median first.

    NaN for frames whose median is not above 0.
    """

    def scaled(near: Nearness) -> Values:
        median = np.median(near, axis=(1, 2), keepdims=True).astype(np.float64)
        return np.divide(near, median, out=np.full(near.shape, np.nan), where=median > 0)

    return np.asarray(np.sqrt(((scaled(output) - scaled(target)) ** 2).mean((1, 2))))


def depth_metrics(network: Network) -> MetricGroup:
    """si-RMSE between the depth of the output and the depth of the target."""
    target_nearness = lru_cache(maxsize=2)(lambda truth: network.nearness(truth.target))

    def measure(output: CachedClip, truth: GroundTruth) -> Measurement:
        errors = si_rmse(network.nearness(output.clip), target_nearness(truth))
        return framewise("depth_error", errors) if np.isfinite(errors).all() else Measurement()

    return MetricGroup(METRICS, measure)
