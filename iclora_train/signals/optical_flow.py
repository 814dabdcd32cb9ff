"""Dense optical flow: OpenCV's DIS (Kroeger et al. 2016, arXiv 1603.03590), which needs no weights."""

from __future__ import annotations

import cv2
import numpy as np


def dis_flow(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Flow fp32 (H,W,2) as x, y in pixels: where each pixel of one luma picture (H,W) uint8 is in another."""
    guess = np.zeros((*here.shape, 2), np.float32)
    return np.asarray(cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(here, there, guess))


def warp_by_flow(there: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """A picture (H,W) fetched along a flow (H,W,2), so that it lies over the one that the flow starts from."""
    y, x = np.indices(flow.shape[:2], np.float32)
    return cv2.remap(there, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
