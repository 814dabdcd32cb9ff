"""Dense optical flow by OpenCV's DIS (Kroeger et al. 2016, arXiv 1603.03590). It needs no weights."""

from __future__ import annotations

import cv2
import numpy as np


def dis_flow(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Optical flow fp32 (H,W,2), x, y in pixels, from luma picture `source` (H,W) uint8 to `target`."""
    initial = np.zeros((*source.shape, 2), np.float32)
    return np.asarray(cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(source, target, initial))


def warp_by_flow(target: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Warp picture `target` (H,W) back along a flow (H,W,2), so that it aligns with the flow's source picture."""
    y, x = np.indices(flow.shape[:2], np.float32)
    return cv2.remap(target, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
