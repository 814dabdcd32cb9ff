"""Measures on small luma clips of a reference and its target: float32 (F,h,w), 0 to 255."""

from __future__ import annotations

import cv2
import numpy as np

MAX_SIDE = 96  # pixels of the shorter side of the small pictures
STILL, MOVING = 1.0, 0.5  # levels: largest change of a still frame, mean change of a moving frame
LOW_QUANTILE = 0.1  # quantile of the frames' contrast that must be high enough
MIN_FLOW_SIDE = 12  # pixels; DIS needs at least this side
MIN_ERROR = 0.01  # added to warping errors: smaller ones are 8-bit rounding noise


def comparison_size(target: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    """(width, height) at which clips (F,H,W,3) are compared, not larger than either clip."""
    height, width = target.shape[1:3]
    scale = min(MAX_SIDE / min(height, width), reference.shape[1] / height, reference.shape[2] / width, 1.0)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def downscaled_luma(clip: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Luma (F,h,w) of a clip uint8 RGB (F,H,W,3), area-averaged to `size` (width, height)."""
    return np.stack([_shrink(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size) for frame in clip]).astype(np.float32)


def _shrink(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A luma picture uint8 (H,W) at `size`, halved while possible: five times faster than one resize."""
    while frame.shape[1] >= 2 * size[0] and frame.shape[0] >= 2 * size[1]:
        frame = cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def level_ranges(clip: np.ndarray) -> np.ndarray:
    """Levels (F,) between the darkest and the brightest pixel of every frame."""
    return np.ptp(clip, axis=(1, 2))


def blank(clip: np.ndarray) -> float:
    """Median of `level_ranges`: near 0 for an empty clip."""
    return float(np.median(level_ranges(clip)))


def contrast(clip: np.ndarray) -> float:
    """The tenth percentile of `level_ranges`."""
    return float(np.quantile(level_ranges(clip), LOW_QUANTILE))


def static(reference: np.ndarray, target: np.ndarray) -> float | None:
    """Share of the target's moving frames in which the reference is still. None if the target does not move. Both clips
    have F frames.
    """
    moving = np.abs(np.diff(target, axis=0)).mean(axis=(1, 2)) > MOVING
    still = np.abs(np.diff(reference, axis=0)).max(axis=(1, 2)) <= STILL
    return float(still[moving].mean()) if moving.any() else None


def clipped(reference: np.ndarray, target: np.ndarray) -> float:
    """Share of black or white pixels in the reference minus the share in the target, at least 0."""
    shares = [float(((clip <= 1) | (clip >= 254)).mean()) for clip in (reference, target)]
    return max(shares[0] - shares[1], 0.0)


def flicker(reference: np.ndarray, target: np.ndarray) -> float | None:
    """Warping error of the reference over the warping error of the target (F,h,w).

    Each frame is compared with its successor, warped back along the target's own motion (DIS flow, Kroeger et al.
    2016). The mean difference over the standard deviation of the clip is the warping error (Lai et al. 2018). None for
    fewer than two frames and for pictures that are too small for optical flow.
    """
    if len(target) < 2 or min(target.shape[1:]) < MIN_FLOW_SIDE:
        return None
    errors: dict[str, list[float]] = {"reference": [], "target": []}
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    y, x = np.mgrid[: target.shape[1], : target.shape[2]].astype(np.float32)
    for i in range(len(target) - 1):
        first, second = target[i].astype(np.uint8), target[i + 1].astype(np.uint8)
        flow = np.asarray(dis.calc(first, second, np.zeros((*first.shape, 2), np.float32)))  # (h,w,2)
        for name, clip in (("reference", reference), ("target", target)):
            warped = cv2.remap(
                clip[i + 1], x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE
            )
            errors[name].append(float(np.abs(warped - clip[i]).mean()))
    relative = {
        name: float(np.mean(errors[name])) / max(float(clip.std()), 1.0) + MIN_ERROR
        for name, clip in (("reference", reference), ("target", target))
    }
    return relative["reference"] / relative["target"]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 clips, at most 100."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return min(10 * float(np.log10(255**2 / max(error, 1e-6))), 100.0)
