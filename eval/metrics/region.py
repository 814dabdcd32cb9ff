"""Edits of a part: is the rest left alone, is the part filled well, and does it join? All means are over the pixels
that are looked at, so that a figure does not depend on how many they are."""

from __future__ import annotations

import cv2
import numpy as np

from eval.metrics.base import CachedClip, Clip, GroundTruth, Mask, Measurement, Metric, MetricGroup, Values
from eval.metrics.edges import f1_of
from eval.metrics.picture import SSIM_WINDOW, decibel, ssim_map
from iclora_train.config import Task

CHANGED = 16  # levels of the channel that differs most: from there on a pixel of a given pair counts as edited
SPECKS = 5  # pixels: side of the median that takes lone pixels out of such a region
PAINTED = ("edit.hole", "edit.outpaint")
OFFICIAL = (102, 255, 0)  # the colour under a mask that those makers paint unless task.maker_args.colour says another


def edited_region(task: Task, target: Clip, reference: Clip) -> Mask | None:
    """The part (F,H,W) of the target that its reference (as it is in the pair: F',H',W',3) does not show.

    Makers that paint a hole paint it in a colour of its own. In given pairs (before, after) it is where the two
    differ by CHANGED levels, which is everywhere if the edit is global. None for other makers.
    """
    frames, height, width = target.shape[:3]
    which = np.arange(frames) * len(reference) // frames
    if task.maker in PAINTED:
        colour = np.array(task.maker_args.get("colour", OFFICIAL), np.uint8)
        part = (reference == colour).all(-1)[which]
    elif task.maker == "given":
        size = (reference.shape[2], reference.shape[1])
        small = (cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in target)
        apart = (cv2.absdiff(frame, reference[i]).max(-1) for frame, i in zip(small, which, strict=True))
        part = np.stack([cv2.medianBlur((levels >= CHANGED).astype(np.uint8), SPECKS) > 0 for levels in apart])
    else:
        return None
    nearest = cv2.INTER_NEAREST_EXACT
    return np.stack([cv2.resize(m.astype(np.uint8), (width, height), interpolation=nearest) > 0 for m in part])


def grown(mask: Mask, pixels: int) -> Mask:
    """A mask (F,H,W) with all pixels of a frame that lie within a square of `pixels` around one of its own."""
    square = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return np.stack([cv2.dilate(frame.astype(np.uint8), square) > 0 for frame in mask])


def change(first: Clip, second: Clip, region: Mask | slice) -> float:
    """Mean absolute difference of two clips, levels, over a mask (F,H,W) or some pixel columns; NaN where there is no
    pixel."""
    if isinstance(region, slice):
        region = np.broadcast_to(np.isin(np.arange(first.shape[2]), np.arange(first.shape[2])[region]), first.shape[:3])
    masks = (mask.astype(np.uint8) for mask in region)
    total = sum(cv2.norm(a, b, cv2.NORM_L1, mask) for a, b, mask in zip(first, second, masks, strict=True))
    pixels = int(region.sum())
    return total / (3 * pixels) if pixels else float("nan")


def masked_psnr(output: Clip, target: Clip, mask: Mask) -> list[float]:
    """PSNR of each frame that a mask (F,H,W) touches, over its pixels: sum m (a - b)^2 / (3 sum m). (Averaging masked
    errors over all pixels would add 10 log10(1 / area) dB.)"""
    touched = [(a, b, m.astype(np.uint8)) for a, b, m in zip(output, target, mask, strict=True) if m.any()]
    return [decibel(cv2.norm(a, b, cv2.NORM_L2SQR, m) / (3 * int(m.sum()))) for a, b, m in touched]


def masked_ssim(output: Clip, target: Clip, mask: Mask) -> float | None:
    """SSIM over the places of a mask (F,H,W) whose whole window lies in it, pooled over frames; None without any."""
    edge = SSIM_WINDOW // 2
    inner = ~grown(~mask, edge)[:, edge:-edge, edge:-edge]
    places = np.flatnonzero(inner.any(axis=(1, 2))).tolist()
    total = sum(float(ssim_map(output[i], target[i])[inner[i]].sum()) for i in places)
    return total / (3 * int(inner.sum())) if places else None


def seam(output: Clip, target: Clip, region: Mask) -> float | None:
    """Mean step in levels between neighbouring pixels of which one lies in the region, beyond the target's own; below
    0 where the output is smoother there than the target. None if the region has no border in the picture."""
    steps = [_steps(clip, region) for clip in (output, target)]
    return float(steps[0].mean() - steps[1].mean()) if steps[0].size else None


def _steps(clip: Clip, region: Mask) -> Values:
    """|a - b| of all neighbours (down, right) across the region's border, mean over colours: (n,)."""
    found = []
    for frame, inside in zip(clip.astype(np.int16), region, strict=True):
        for axis in (0, 1):
            crosses = np.diff(inside.astype(np.int8), axis=axis) != 0
            found.append(np.abs(np.diff(frame, axis=axis)[crosses]).mean(-1))
    return np.concatenate(found)


def _region(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Nothing without a region; of a region that leaves nothing outside, only what is inside."""
    if truth.region is None:
        return Measurement()
    outside = ~grown(truth.region, truth.band)
    kept, filled = (masked_psnr(output.clip, truth.target, mask) for mask in (outside, truth.region))
    found = {
        "psnr_outside": float(np.mean(kept)) if kept else None,
        "ssim_outside": masked_ssim(output.clip, truth.target, outside),
        "change_outside": change(output.clip, truth.target, outside) if kept else None,
        "psnr_inside": float(np.mean(filled)) if filled else None,
        "seam": seam(output.clip, truth.target, truth.region),
    }
    series = {"psnr_outside": kept} if len(kept) == len(outside) else {}
    return Measurement({key: value for key, value in found.items() if value is not None}, series)


def _structure(output: CachedClip, truth: GroundTruth) -> Measurement:
    """Edge F1 (1 px) of the output and the reference, outside the region and its band where there is one; nothing if
    the region leaves nothing outside."""
    made, kept = output.edges, truth.cached_reference.edges
    if truth.region is None:
        return Measurement({"structure_kept": f1_of(made, kept, 1)})
    outside = ~grown(truth.region, truth.band)
    inner = outside.astype(np.uint8)
    return Measurement({"structure_kept": f1_of(made * inner, kept * inner, 1)} if outside.any() else {})


REGION = MetricGroup(
    (
        Metric("psnr_outside", "PSNR outside", "dB", "high", "region"),
        Metric("ssim_outside", "SSIM outside", "", "high", "region"),
        Metric("change_outside", "change outside", "levels", "low", "region"),
        Metric("psnr_inside", "PSNR inside", "dB", "high", "region"),
        Metric("seam", "seam", "levels", "low", "region"),
    ),
    _region,
)
STRUCTURE_KEPT = MetricGroup(
    (Metric("structure_kept", "structure of the reference kept", "", "high", "region"),), _structure
)
