"""Frames at times between the frames there are."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from data_prep.makers.colour_space import code_values, luma

METHODS = ("flow", "blend")
MIN_FLOW_SIDE = 32  # short side in pixels; below, OpenCV's DIS refuses or crashes, and neighbours are blended
NO_MAP = np.empty(0, np.float32)


class FrameInterpolator:
    """Pictures of a clip (F,H,W,3) at any time in frames.

    way: `blend` mixes the two neighbours; `flow` moves both along the optical flow (DIS) to where things are at that
    time, with the flows of equation 4 of Jiang et al., Super SloMo (arXiv 1712.00080), and mixes these.
    """

    def __init__(self, frames: np.ndarray, way: str, linear: bool) -> None:
        self.frames, self.worth = frames, code_values(linear)
        height, width = frames.shape[1:3]
        self.moves = way == "flow" and min(height, width) >= MIN_FLOW_SIDE
        self.grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)  # (H,W,2)
        self.value = lru_cache(maxsize=2)(self._value)  # times are mostly asked for in order
        self.flows = lru_cache(maxsize=1)(self._flows)

    def frame_at(self, time: float) -> np.ndarray:
        """Values in [0, 1], fp32 (H,W,3), at `time`; before the first and after the last frame, these."""
        time = float(min(max(time, 0.0), len(self.frames) - 1.0))
        first = int(time)
        part = time - first
        if part == 0:
            return self.value(first)
        start, end = self.value(first), self.value(first + 1)
        if self.moves:
            there, back = self.flows(first)
            start = self._moved(start, cv2.addWeighted(back, part * part, there, -(1 - part) * part, 0))
            end = self._moved(end, cv2.addWeighted(there, (1 - part) ** 2, back, -part * (1 - part), 0))
        return np.asarray(cv2.addWeighted(start, 1 - part, end, part, 0))

    def _moved(self, picture: np.ndarray, flow: cv2.typing.MatLike) -> np.ndarray:
        """The picture (H,W,3) at each pixel plus its flow (H,W,2)."""
        there = cv2.add(self.grid, flow)
        return np.asarray(cv2.remap(picture, there, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))

    def _value(self, number: int) -> np.ndarray:
        """What the codes of a frame are worth, fp32 (H,W,3)."""
        return np.asarray(cv2.LUT(np.ascontiguousarray(self.frames[number]), self.worth))

    def _flows(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Flow (H,W,2) in pixels from frame `first` to the next, and from that back."""
        start, end = luma(self.frames[first]), luma(self.frames[first + 1])
        dis, still = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST), np.zeros_like(self.grid)
        return np.asarray(dis.calc(start, end, still.copy())), np.asarray(dis.calc(end, start, still))
