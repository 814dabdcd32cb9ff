"""Frame interpolation: pictures at times between the frames of a clip."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from data_prep.makers.colour_space import code_values, luma

METHODS = ("flow", "blend")
MIN_FLOW_SIDE = 32  # pixels of the short side; OpenCV's DIS rejects smaller frames or crashes, so they are blended
NO_MAP = np.empty(0, np.float32)


class FrameInterpolator:
    """Pictures of a clip (F,H,W,3) at any time, measured in frames.

    method: `blend` mixes the two neighbouring frames. `flow` first moves both along the optical flow (DIS) to the
    requested time, with the flows of equation 4 of Jiang et al., Super SloMo (arXiv 1712.00080), and then mixes them.
    """

    def __init__(self, frames: np.ndarray, method: str, linear: bool) -> None:
        self.frames, self.table = frames, code_values(linear)
        height, width = frames.shape[1:3]
        self.use_flow = method == "flow" and min(height, width) >= MIN_FLOW_SIDE
        self.grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)  # (H,W,2)
        self.frame = lru_cache(maxsize=2)(self._frame)  # most callers request times in order
        self.flows = lru_cache(maxsize=1)(self._flows)

    def frame_at(self, time: float) -> np.ndarray:
        """Values in [0, 1], fp32 (H,W,3), at `time`, which is clamped to the first and the last frame."""
        time = float(min(max(time, 0.0), len(self.frames) - 1.0))
        first = int(time)
        t = time - first
        if t == 0:
            return self.frame(first)
        start, end = self.frame(first), self.frame(first + 1)
        if self.use_flow:
            forward, backward = self.flows(first)
            start = self._warp(start, cv2.addWeighted(backward, t * t, forward, -(1 - t) * t, 0))
            end = self._warp(end, cv2.addWeighted(forward, (1 - t) ** 2, backward, -t * (1 - t), 0))
        return np.asarray(cv2.addWeighted(start, 1 - t, end, t, 0))

    def _warp(self, picture: np.ndarray, flow: cv2.typing.MatLike) -> np.ndarray:
        """The picture (H,W,3) sampled at each pixel plus its flow (H,W,2)."""
        positions = cv2.add(self.grid, flow)
        return np.asarray(cv2.remap(picture, positions, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))

    def _frame(self, number: int) -> np.ndarray:
        """Values of a frame, fp32 (H,W,3)."""
        return np.asarray(cv2.LUT(np.ascontiguousarray(self.frames[number]), self.table))

    def _flows(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Flow (H,W,2) in pixels from frame `first` to the next frame, and from the next frame back."""
        start, end = luma(self.frames[first]), luma(self.frames[first + 1])
        dis, zero = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST), np.zeros_like(self.grid)
        return np.asarray(dis.calc(start, end, zero.copy())), np.asarray(dis.calc(end, start, zero))
