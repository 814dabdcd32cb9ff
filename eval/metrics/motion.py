"""Temporal metrics: amount of motion, flicker, warping error, optical flow.

Every metric is relative to the target, so that changes of light and motion in the target itself cancel.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import CachedClip, Clip, GroundTruth, Mask, Measurement, Metric, MetricGroup, Values
from eval.metrics.levels import block_means
from iclora_train.signals.optical_flow import warp_by_flow

STILL = 0.25  # levels; the noise of a decoder alone changes luma by about this much
Field = NDArray[np.float32]
MIN_FRAMES = 3  # of a clip whose flicker is measured; a single step may be one cut of light


def flicker(output: CachedClip, target: CachedClip) -> float:
    """Mean |d_{t+1} - d_t| over blocks and steps, in levels. d_t: mean luma of a block, output minus target.

    Blocks (`block_means`) see parts of the picture that flicker against each other, and first differences see a picture
    that grows brighter frame by frame.
    """
    return float(np.abs(np.diff(block_means(output.grey) - block_means(target.grey), axis=0)).mean())


def flicker_alone(clip: CachedClip) -> float:
    """Flicker of a clip without a target: mean |b_{t-1} - 2 b_t + b_{t+1}| over blocks and frames, in levels.

    b: mean luma of a block (`block_means`). Second differences cancel steady motion and drifting light, but not motion
    that is fast for the size of a block. Light that alternates by n levels has 2 n. 0 below MIN_FRAMES frames.
    """
    means = block_means(clip.grey)
    return float(np.abs(np.diff(means, n=2, axis=0)).mean()) if len(means) >= MIN_FRAMES else 0.0


def motion(output: CachedClip, target: CachedClip) -> float:
    """Mean change of luma from frame to frame, output / target: near 0 is a frozen clip.

    A quarter of a level is added to both, so that two still clips give 1. At least two frames.
    """

    def change(clip: CachedClip) -> float:
        return float(np.mean([cv2.absdiff(a, b).mean() for a, b in pairwise(clip.grey)]))

    return (change(output) + STILL) / (change(target) + STILL)


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


def own_warping(clip: CachedClip) -> tuple[Mask, float | None]:
    """Reliable pixels of every step of a clip's flow (F-1,h,w), and its warping error along that flow."""
    back = (clip.flow_between(i + 1, i).astype(np.float32) for i in range(len(clip.flow)))
    masks = np.stack([reliable_flow(f.astype(np.float32), b) for f, b in zip(clip.flow, back, strict=True)])
    return masks, warping_error(clip.small, clip.flow, masks)


@lru_cache(maxsize=2)
def _target_steps(truth: GroundTruth) -> tuple[Mask, float | None]:
    return own_warping(truth.cached_target)


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


def _motion(output: CachedClip, truth: GroundTruth) -> Measurement:
    return Measurement({"motion": motion(output, truth.cached_target)})


def _warp(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Empty if the target's flow is nowhere reliable."""
    masks, target_error = _target_steps(truth)
    if target_error is None:
        return Measurement()
    error = warping_error(output.small, truth.cached_target.flow, masks)
    return Measurement({} if error is None else {"warp_error": 1000 * (error - target_error)})


def _warp_own(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Empty if one of the two flows is nowhere reliable."""
    error, target_error = own_warping(output)[1], _target_steps(truth)[1]
    if error is None or target_error is None:
        return Measurement()
    return Measurement({"warp_own": 1000 * (error - target_error)})


def _tof(output: CachedClip, truth: GroundTruth) -> Measurement:
    return Measurement({"tof": float(tof(output, truth.cached_target).mean())})


MOTION = MetricGroup((Metric("motion", "motion", "x target", None, "time"),), _motion, frames=2)
FLICKER = MetricGroup((Metric("flicker", "flicker", "levels", "low", "time"),), _flicker, frames=MIN_FRAMES)
WARP = MetricGroup(
    (Metric("warp_error", "warping error beyond the target's, 1e-3", "", "low", "time"),), _warp, side=2, frames=2
)
WARP_OWN = MetricGroup(
    (Metric("warp_own", "warping error along its own flow beyond the target's, 1e-3", "", "low", "time"),),
    _warp_own,
    side=2,
    frames=2,
)
TOF = MetricGroup((Metric("tof", "tOF", "px", "low", "time"),), _tof, frames=2)
