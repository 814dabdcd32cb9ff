"""Dense optical flow by OpenCV's DIS (Kroeger et al. 2016, arXiv 1603.03590). It needs no weights."""

from __future__ import annotations

import cv2
import numpy as np

SMALLEST = 16  # pixels; with a shorter side OpenCV 4.14 raises an error, or reads outside of its memory


def dis_flow(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Optical flow fp32 (H,W,2), x, y in pixels, from luma picture `source` (H,W) uint8 to `target`.

    Pictures with a side below SMALLEST are continued at the right and at the bottom with their last pixels.
    """
    height, width = source.shape
    if min(height, width) < SMALLEST:
        padding = ((0, max(SMALLEST - height, 0)), (0, max(SMALLEST - width, 0)))
        source, target = (np.pad(picture, padding, mode="edge") for picture in (source, target))
    initial = np.zeros((*source.shape, 2), np.float32)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(source, target, initial)
    return np.asarray(flow)[:height, :width]


def warp_by_flow(target: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Warp picture `target` (H,W) back along a flow (H,W,2), so that it aligns with the flow's source picture."""
    y, x = np.indices(flow.shape[:2], np.float32)
    return cv2.remap(target, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
