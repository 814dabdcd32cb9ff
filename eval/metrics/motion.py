"""Does it hold still, and does it move as it should? Each figure is paired with the target: what the target's own light
and motion do cancels."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import CachedClip, Clip, GroundTruth, Mask, Measurement, Metric, MetricGroup, Values
from iclora_train.signals.optical_flow import warp_by_flow

Field = NDArray[np.float32]


def flicker(output: CachedClip, target: CachedClip) -> float:
    """Mean |d_{t-1} - 2 d_t + d_{t+1}|, d_t the mean luma of output frame t minus the target's, 8-bit levels.

    0 for clips of fewer than 3 frames.
    """
    drift = np.array([a.mean() - b.mean() for a, b in zip(output.grey, target.grey, strict=True)])  # (F,)
    return float(np.abs(np.diff(drift, n=2)).mean()) if len(drift) > 2 else 0.0


def tof(output: CachedClip, target: CachedClip) -> Values:
    """Length in pixels of the difference of the two clips' optical flows, mean over each step's pixels: (F-1,).

    tOF of TecoGAN (Chu et al. 2020, arXiv 1811.09393), by DIS flow (its code takes Farneback's).
    """
    pairs = zip(output.flow.astype(np.float32), target.flow.astype(np.float32), strict=True)
    return np.array([np.hypot(*np.moveaxis(a - b, -1, 0)).mean() for a, b in pairs]) * target.shrink


def sound(forward: Field, back: Field) -> Mask:
    """Where (h,w) a flow and the one back can be trusted: forth and back they meet, it stays in the picture, and it is
    no motion boundary (the limits of Ruder et al. 2016, arXiv 1604.08610)."""
    height, width = forward.shape[:2]
    y, x = np.indices((height, width), np.float32)
    returned = np.stack([warp_by_flow(back[..., i], forward) for i in range(2)], axis=-1)
    length, returned_length = (forward**2).sum(-1), (returned**2).sum(-1)
    meets = ((forward + returned) ** 2).sum(-1) <= 0.01 * (length + returned_length) + 0.5
    slope = sum((np.gradient(forward[..., i], axis=axis) ** 2 for i in range(2) for axis in range(2)), 0 * length)
    to_x, to_y = x + forward[..., 0], y + forward[..., 1]
    inside = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
    return np.asarray(meets & (slope <= 0.01 * length + 0.002) & inside)


@lru_cache(maxsize=2)
def _target_steps(truth: GroundTruth) -> tuple[Mask, float | None]:
    """Where each step of the target's flow is sound (F-1,h,w), and the target's own warping error."""
    view = truth.cached_target
    if len(truth.target) < 2:
        return np.zeros((0, *truth.target.shape[1:3]), bool), None
    back = (view.flow_between(i + 1, i).astype(np.float32) for i in range(len(view.flow)))
    masks = np.stack([sound(there.astype(np.float32), b) for there, b in zip(view.flow, back, strict=True)])
    return masks, warping_error(view.small, view.flow, masks)


def warping_error(clip: Clip, flow: NDArray[np.float16], masks: Mask) -> float | None:
    """Warping error E (Lai et al. 2018, arXiv 1808.00449): the mean over masked pixels and colours of
    (x_t - x_{t+1} brought back along the flow)^2, x in [0, 1], mean over steps; None where no pixel is masked."""
    errors = []
    for i in np.flatnonzero(masks.any(axis=(1, 2))).tolist():
        field = flow[i].astype(np.float32)
        back = warp_by_flow(clip[i + 1].astype(np.float32), field)
        errors.append(float(((clip[i] - back)[masks[i]] ** 2).mean()) / 255**2)
    return float(np.mean(errors)) if errors else None


def _flicker(output: CachedClip, truth: GroundTruth) -> Measurement:
    return Measurement({"flicker": flicker(output, truth.cached_target)})


def _warp(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Nothing for a single frame, or where the target's flow is nowhere sound."""
    masks, own = _target_steps(truth)
    if own is None:
        return Measurement()
    made = warping_error(output.small, truth.cached_target.flow, masks)
    return Measurement({} if made is None else {"warp_error": 1000 * (made - own)})


def _tof(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Nothing for a single frame."""
    if len(truth.target) < 2:
        return Measurement()
    return Measurement({"tof": float(tof(output, truth.cached_target).mean())})


FLICKER = MetricGroup((Metric("flicker", "flicker", "levels", "low", "time"),), _flicker)
WARP = MetricGroup((Metric("warp_error", "warping error beyond the target's, 1e-3", "", "low", "time"),), _warp)
TOF = MetricGroup((Metric("tof", "tOF", "px", "low", "time"),), _tof)


def offset(output: Clip, target: Clip, search: int = 2) -> int:
    """By how many frames the output is early against the target (late: below 0), within `search` frames either way.

    Output frame t is compared with target frame t + k, over the t that all k have. Another k than 0 counts only if its
    squared error is under 0.8 times that of 0 (1 dB): bad clips and clips without motion are no evidence. 0 for clips
    too short to tell.
    """
    reach = min(search, (len(output) - 1) // 2)
    errors = {k: _squared(output[reach : len(output) - reach], target[reach + k :]) for k in range(-reach, reach + 1)}
    best = min(errors, key=lambda k: (errors[k], abs(k)))
    return best if errors[best] < 0.8 * errors[0] else 0


def _squared(first: Clip, second: Clip) -> float:
    """Mean squared difference of the frames of `first` (F,H,W,3) and as many of `second`."""
    pairs = zip(first, second, strict=False)
    return float(np.mean([cv2.norm(a, b, cv2.NORM_L2SQR) / a.size for a, b in pairs]))
