"""The jump at a seam: how much more a clip changes from one frame to the next there than around it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from iclora_train.signals.optical_flow import dis_flow, warp_by_flow

AROUND = 8  # steps on each side of a seam with which it is compared
STILL = 0.25  # levels; the noise of a decoder alone changes luma by about this much


def change_along_flow(first: np.ndarray, second: np.ndarray) -> float:
    """Mean |x - y| in levels of a frame x (H,W,3) uint8 and the next one y warped back along the flow from x to y.

    Motion that the flow follows cancels. What appears, disappears or changes its light or colour remains.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    flow = dis_flow(grey[0], grey[1])
    back = np.stack([warp_by_flow(channel, flow) for channel in np.moveaxis(second.astype(np.float32), -1, 0)], -1)
    return float(np.abs(first - back).mean())


def seam_jumps(frames: np.ndarray, seams: Sequence[int]) -> list[float]:
    """The change of a clip (F,H,W,3) at each seam, over the median change of the steps around it. 1: nothing jumps.

    seams: the first frame after each seam, at least 1. The steps around a seam are the AROUND before and after it
    without other seams; a clip with no such step has a median of 0. STILL is added to both, so that the noise of a
    still clip does not count as a jump.
    """
    changes: dict[int, float] = {}

    def change(frame: int) -> float:
        if frame not in changes:
            changes[frame] = change_along_flow(frames[frame - 1], frames[frame])
        return changes[frame]

    jumps = []
    for seam in seams:
        steps = range(max(seam - AROUND, 1), min(seam + AROUND + 1, len(frames)))
        around = [change(step) for step in steps if step not in seams]
        median = float(np.median(around)) if around else 0.0
        jumps.append((change(seam) + STILL) / (median + STILL))
    return jumps
