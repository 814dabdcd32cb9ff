"""Temporal metrics: flicker, warping error, optical flow, time offset.

Every metric is a difference to the target, so that changes of light and motion in the target itself cancel.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import CachedClip, Clip, GroundTruth, Mask, Measurement, Metric, MetricGroup, Values
from iclora_train.signals.optical_flow import warp_by_flow

Field = NDArray[np.float32]


def flicker(output: CachedClip, target: CachedClip) -> float:
    """Mean |d_{t-1} - 2 d_t + d_{t+1}|, in levels. d_t: mean luma of output frame t minus mean luma of target frame t.

    0 for clips of fewer than 3 frames.
    """
    drift = np.array([a.mean() - b.mean() for a, b in zip(output.grey, target.grey, strict=True)])  # (F,)
    return float(np.abs(np.diff(drift, n=2)).mean()) if len(drift) > 2 else 0.0


def tof(output: CachedClip, target: CachedClip) -> Values:
    """Mean endpoint difference in pixels between the optical flows of output and target, per step: (F-1,).

    tOF of TecoGAN (Chu et al. 2020, arXiv 1811.09393), with DIS flow instead of Farneback's.
    """
    pairs = zip(output.flow.astype(np.float32), target.flow.astype(np.float32), strict=True)
    return np.array([np.hypot(*np.moveaxis(a - b, -1, 0)).mean() for a, b in pairs]) * target.shrink


def reliable_flow(forward: Field, backward: Field) -> Mask:
    """Pixels (h,w) where a flow is reliable, with the thresholds of Ruder et al. 2016 (arXiv 1604.08610).

    Forward and backward flow agree, the flow stays inside the picture, and the pixel is not a motion boundary.
    """
    height, width = forward.shape[:2]
    y, x = np.indices((height, width), np.float32)
    returned = np.stack([warp_by_flow(backward[..., i], forward) for i in range(2)], axis=-1)
    length, returned_length = (forward**2).sum(-1), (returned**2).sum(-1)
    consistent = ((forward + returned) ** 2).sum(-1) <= 0.01 * (length + returned_length) + 0.5
    slope = sum((np.gradient(forward[..., i], axis=axis) ** 2 for i in range(2) for axis in range(2)), 0 * length)
    to_x, to_y = x + forward[..., 0], y + forward[..., 1]
    inside = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
    return np.asarray(consistent & (slope <= 0.01 * length + 0.002) & inside)


@lru_cache(maxsize=2)
def _target_steps(truth: GroundTruth) -> tuple[Mask, float | None]:
    """Reliable pixels of every step of the target's flow (F-1,h,w), and the warping error of the target itself."""
    target = truth.cached_target
    if len(truth.target) < 2:
        return np.zeros((0, *truth.target.shape[1:3]), bool), None
    back = (target.flow_between(i + 1, i).astype(np.float32) for i in range(len(target.flow)))
    masks = np.stack([reliable_flow(f.astype(np.float32), b) for f, b in zip(target.flow, back, strict=True)])
    return masks, warping_error(target.small, target.flow, masks)


def warping_error(clip: Clip, flow: NDArray[np.float16], masks: Mask) -> float | None:
    """Warping error E (Lai et al. 2018, arXiv 1808.00449) of a clip with values x in [0, 1].

    The squared difference of x_t and x_{t+1} warped back along the flow, mean over the pixels of the mask and colours,
    then over steps. None if no mask has a pixel.
    """
    errors = []
    for i in np.flatnonzero(masks.any(axis=(1, 2))).tolist():
        step_flow = flow[i].astype(np.float32)
        back = warp_by_flow(clip[i + 1].astype(np.float32), step_flow)
        errors.append(float(((clip[i] - back)[masks[i]] ** 2).mean()) / 255**2)
    return float(np.mean(errors)) if errors else None


def _flicker(output: CachedClip, truth: GroundTruth) -> Measurement:
    return Measurement({"flicker": flicker(output, truth.cached_target)})


def _warp(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Empty for a single frame, or if the target's flow is nowhere reliable."""
    masks, target_error = _target_steps(truth)
    if target_error is None:
        return Measurement()
    error = warping_error(output.small, truth.cached_target.flow, masks)
    return Measurement({} if error is None else {"warp_error": 1000 * (error - target_error)})


def _tof(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Empty for a single frame."""
    if len(truth.target) < 2:
        return Measurement()
    return Measurement({"tof": float(tof(output, truth.cached_target).mean())})


FLICKER = MetricGroup((Metric("flicker", "flicker", "levels", "low", "time"),), _flicker)
WARP = MetricGroup((Metric("warp_error", "warping error beyond the target's, 1e-3", "", "low", "time"),), _warp)
TOF = MetricGroup((Metric("tof", "tOF", "px", "low", "time"),), _tof)


def offset(output: Clip, target: Clip, search: int = 2) -> int:
    """Number of frames by which the output is early (negative: late) relative to the target, within +-`search` frames.

    Output frame t is compared with target frame t + k, over the t that all k share. A k other than 0 is returned only
    if its squared error is below 0.8 times the error at k = 0 (1 dB), because bad clips and clips without motion give
    no evidence. 0 for clips that are too short.
    """
    reach = min(search, (len(output) - 1) // 2)
    errors = {
        k: _squared_error(output[reach : len(output) - reach], target[reach + k :]) for k in range(-reach, reach + 1)
    }
    best = min(errors, key=lambda k: (errors[k], abs(k)))
    return best if errors[best] < 0.8 * errors[0] else 0


def _squared_error(first: Clip, second: Clip) -> float:
    """Mean squared difference of the frames of `first` (F,H,W,3) and the same number of frames of `second`."""
    pairs = zip(first, second, strict=False)
    return float(np.mean([cv2.norm(a, b, cv2.NORM_L2SQR) / a.size for a, b in pairs]))
