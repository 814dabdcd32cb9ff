"""Region metrics for edits: preservation outside, quality inside, and the seam between them.

All means are taken over the pixels of the mask, so that a value does not depend on the area of the mask.
"""

from __future__ import annotations

import cv2
import numpy as np

from eval.metrics.base import CachedClip, Clip, GroundTruth, Mask, Measurement, Metric, MetricGroup, Values
from eval.metrics.edges import f1_of
from eval.metrics.picture import SSIM_WINDOW, decibel, ssim_map
from iclora_train.config import Task
from iclora_train.data.reference_kinds import MASK_COLOUR
from iclora_train.media.frame_times import simultaneous_frames

EDIT_LEVELS = 16  # a pixel of a given pair counts as edited if one channel differs by this many levels
MEDIAN_SIZE = 5  # pixels: side of the median filter that removes isolated pixels from the edited region
PAINTED = ("edit.hole", "edit.outpaint")


def edited_region(task: Task, target: Clip, reference: Clip) -> Mask | None:
    """The region (F,H,W) of the target that its reference (F',H',W',3, as stored in the pair) does not show.

    For makers that paint a hole: the pixels of the mask colour. For the maker `given` (pairs of before and after): the
    pixels that differ by EDIT_LEVELS or more, which is the whole picture if the edit is global. None for other makers.
    """
    frames, height, width = target.shape[:3]
    indices = simultaneous_frames(frames, len(reference))
    if task.maker in PAINTED:
        colour = np.array(task.maker_args.get("colour", MASK_COLOUR), np.uint8)
        region = (reference == colour).all(-1)[indices]
    elif task.maker == "given":
        size = (reference.shape[2], reference.shape[1])
        small = (cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in target)
        differences = (cv2.absdiff(frame, reference[i]).max(-1) for frame, i in zip(small, indices, strict=True))
        region = np.stack(
            [cv2.medianBlur((levels >= EDIT_LEVELS).astype(np.uint8), MEDIAN_SIZE) > 0 for levels in differences]
        )
    else:
        return None
    nearest = cv2.INTER_NEAREST_EXACT
    return np.stack([cv2.resize(m.astype(np.uint8), (width, height), interpolation=nearest) > 0 for m in region])


def dilated(mask: Mask, pixels: int) -> Mask:
    """A mask (F,H,W) dilated by `pixels` in each direction, frame by frame (square structuring element)."""
    square = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return np.stack([cv2.dilate(frame.astype(np.uint8), square) > 0 for frame in mask])


def change(first: Clip, second: Clip, region: Mask | slice) -> float:
    """Mean absolute difference of two clips in levels, over a mask (F,H,W) or a slice of columns; NaN for no pixel."""
    if isinstance(region, slice):
        region = np.broadcast_to(np.isin(np.arange(first.shape[2]), np.arange(first.shape[2])[region]), first.shape[:3])
    masks = (mask.astype(np.uint8) for mask in region)
    total = sum(cv2.norm(a, b, cv2.NORM_L1, mask) for a, b, mask in zip(first, second, masks, strict=True))
    pixels = int(region.sum())
    return total / (3 * pixels) if pixels else float("nan")


def masked_psnr(output: Clip, target: Clip, mask: Mask) -> list[float]:
    """PSNR over the pixels of a mask m (F,H,W), for each frame with such pixels: MSE = sum m (a - b)^2 / (3 sum m).

    Averaging the masked errors over all pixels instead would add 10 log10(1 / area) dB.
    """
    frames = [(a, b, m.astype(np.uint8)) for a, b, m in zip(output, target, mask, strict=True) if m.any()]
    return [decibel(cv2.norm(a, b, cv2.NORM_L2SQR, m) / (3 * int(m.sum()))) for a, b, m in frames]


def masked_ssim(output: Clip, target: Clip, mask: Mask) -> float | None:
    """SSIM over positions whose whole window lies in the mask (F,H,W), pooled over frames; None if there are none."""
    edge = SSIM_WINDOW // 2
    inner = ~dilated(~mask, edge)[:, edge:-edge, edge:-edge]
    frames = np.flatnonzero(inner.any(axis=(1, 2))).tolist()
    total = sum(float(ssim_map(output[i], target[i])[inner[i]].sum()) for i in frames)
    return total / (3 * int(inner.sum())) if frames else None


def seam(output: Clip, target: Clip, region: Mask) -> float | None:
    """Mean step in levels between neighbouring pixels across the border of the region, output minus target.

    Below 0 if the output is smoother there than the target. None if the region has no border in the picture.
    """
    steps = [_steps(clip, region) for clip in (output, target)]
    return float(steps[0].mean() - steps[1].mean()) if steps[0].size else None


def _steps(clip: Clip, region: Mask) -> Values:
    """|a - b| of all neighbours (down, right) across the border of the region, mean over colours: (n,)."""
    steps = []
    for frame, inside in zip(clip.astype(np.int16), region, strict=True):
        for axis in (0, 1):
            crosses = np.diff(inside.astype(np.int8), axis=axis) != 0
            steps.append(np.abs(np.diff(frame, axis=axis)[crosses]).mean(-1))
    return np.concatenate(steps)


def _region(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Empty without a region. If the region covers everything, only the metrics inside it."""
    if truth.region is None:
        return Measurement()
    outside = ~dilated(truth.region, truth.band)
    psnr_outside, psnr_inside = (masked_psnr(output.clip, truth.target, mask) for mask in (outside, truth.region))
    values = {
        "psnr_outside": float(np.mean(psnr_outside)) if psnr_outside else None,
        "change_outside": change(output.clip, truth.target, outside) if psnr_outside else None,
        "psnr_inside": float(np.mean(psnr_inside)) if psnr_inside else None,
        "seam": seam(output.clip, truth.target, truth.region),
    }
    series = {"psnr_outside": psnr_outside} if len(psnr_outside) == len(outside) else {}
    return Measurement({key: value for key, value in values.items() if value is not None}, series)


def _ssim_outside(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Empty without a region, or if no window of SSIM lies outside."""
    if truth.region is None:
        return Measurement()
    value = masked_ssim(output.clip, truth.target, ~dilated(truth.region, truth.band))
    return Measurement({} if value is None else {"ssim_outside": value})


def _structure(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Edge F1 (1 px) between output and reference, outside the region and its band (everywhere without a region).

    Empty if the region covers everything.
    """
    edges, reference_edges = output.edges, truth.cached_reference.edges
    if truth.region is None:
        return Measurement({"structure_kept": f1_of(edges, reference_edges, 1)})
    outside = ~dilated(truth.region, truth.band)
    weight = outside.astype(np.uint8)
    return Measurement({"structure_kept": f1_of(edges * weight, reference_edges * weight, 1)} if outside.any() else {})


REGION = MetricGroup(
    (
        Metric("psnr_outside", "PSNR outside", "dB", "high", "region"),
        Metric("change_outside", "change outside", "levels", "low", "region"),
        Metric("psnr_inside", "PSNR inside", "dB", "high", "region"),
        Metric("seam", "seam", "levels", "low", "region"),
    ),
    _region,
)
OUTSIDE_SSIM = MetricGroup(
    (Metric("ssim_outside", "SSIM outside", "", "high", "region"),), _ssim_outside, side=SSIM_WINDOW
)
STRUCTURE_KEPT = MetricGroup(
    (Metric("structure_kept", "structure of the reference kept", "", "high", "region"),), _structure
)
