"""What is measured on small luma pictures of a reference and its target: float32 (F,h,w), 0 to 255."""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 96  # pixels of the shorter side of the small pictures, at most
STILL, MOVING = 1.0, 0.5  # levels: largest change of a frame that stands still, mean change of one that moves
FEW = 0.1  # share of the frames that may be worse than what `contrast` tells
FLOW_SIDE = 12  # pixels of the smallest pictures that DIS takes
FLOOR = 0.01  # of a warping error: below it is the noise of 8 bits


def comparison_size(target: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    """(width, height) at which clips (F,H,W,3) are compared: that of neither is exceeded."""
    height, width = target.shape[1:3]
    scale = min(SIDE / min(height, width), reference.shape[1] / height, reference.shape[2] / width, 1.0)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def downscaled_luma(clip: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Luma (F,h,w) of a clip uint8 RGB (F,H,W,3), averaged down to `size` (width, height)."""
    return np.stack([_shrunk(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size) for frame in clip]).astype(np.float32)


def _shrunk(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A luma picture uint8 (H,W) at `size`: halved as long as it goes, which is five times faster than at once."""
    while frame.shape[1] >= 2 * size[0] and frame.shape[0] >= 2 * size[1]:
        frame = cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def level_ranges(clip: np.ndarray) -> np.ndarray:
    """Levels (F,) between the darkest and the brightest place of every frame."""
    return np.ptp(clip, axis=(1, 2))


def blank(clip: np.ndarray) -> float:
    """Median of `spans`: a clip that shows nothing is near 0."""
    return float(np.median(level_ranges(clip)))


def contrast(clip: np.ndarray) -> float:
    """`spans` of the frames that show least (the lowest tenth)."""
    return float(np.quantile(level_ranges(clip), FEW))


def static(reference: np.ndarray, target: np.ndarray) -> float | None:
    """Share of the target's moving frames in which the reference stands still; None when the target does not move.
    Both have F frames.
    """
    moving = np.abs(np.diff(target, axis=0)).mean(axis=(1, 2)) > MOVING
    still = np.abs(np.diff(reference, axis=0)).max(axis=(1, 2)) <= STILL
    return float(still[moving].mean()) if moving.any() else None


def clipped(reference: np.ndarray, target: np.ndarray) -> float:
    """Share of the reference that is black or white beyond what of the target is."""
    shares = [float(((clip <= 1) | (clip >= 254)).mean()) for clip in (reference, target)]
    return max(shares[0] - shares[1], 0.0)


def flicker(reference: np.ndarray, target: np.ndarray) -> float | None:
    """How many times worse the reference keeps what it shows than the target does, from frame to frame (F,h,w).

    Both are brought back along the target's own motion (DIS flow, Kroeger et al. 2016); what then still differs, as a
    share of the clip's standard deviation, is the warping error (Lai et al. 2018). None for fewer than two frames, and
    for pictures that are too small for a flow.
    """
    if len(target) < 2 or min(target.shape[1:]) < FLOW_SIDE:
        return None
    errors: dict[str, list[float]] = {"reference": [], "target": []}
    flows = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    y, x = np.mgrid[: target.shape[1], : target.shape[2]].astype(np.float32)
    for i in range(len(target) - 1):
        here, there = target[i].astype(np.uint8), target[i + 1].astype(np.uint8)
        flow = np.asarray(flows.calc(here, there, np.zeros((*here.shape, 2), np.float32)))  # (h,w,2)
        for name, clip in (("reference", reference), ("target", target)):
            back = cv2.remap(
                clip[i + 1], x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE
            )
            errors[name].append(float(np.abs(back - clip[i]).mean()))
    share = {
        name: float(np.mean(errors[name])) / max(float(clip.std()), 1.0) + FLOOR
        for name, clip in (("reference", reference), ("target", target))
    }
    return share["reference"] / share["target"]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 clips, 100 at most."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return min(10 * float(np.log10(255**2 / max(error, 1e-6))), 100.0)
