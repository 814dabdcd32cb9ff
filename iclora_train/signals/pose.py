"""Skeletons of the people in a clip: detect, track, fill gaps, smooth jitter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclora_train.config.paths import user_path
from iclora_train.signals import blazepose, rtmpose
from iclora_train.signals.pose_tracking import Track, fill_gaps, smooth_points, track_people
from iclora_train.signals.skeleton import FROM_BLAZEPOSE, FROM_COCO, draw_skeletons, to_openpose


@dataclass(frozen=True)
class PoseReader:
    """Read the 18-point OpenPose skeleton of every person in a clip, and draw it.

    model: an RTMPose or DWPose file (.onnx) for the keypoints; null uses MediaPipe's BlazePose, which also detects the
    people for the other models. tiles: people are detected in the whole picture and in tiles x tiles parts of it; raise
    it for small people. confidence: keypoints below it count as missing. gap: longest run of frames over which missing
    keypoints are filled in. smooth: window of the parabola that removes jitter, in frames (odd; 1 for none). shortest:
    people visible in fewer frames are left out (or in fewer frames than the clip has). thickness: line width of the
    drawing; 1 draws limbs 9 pixels wide at a short side of 512, as DWPose does.
    """

    model: str | None = None
    tiles: int = 1
    confidence: float = 0.3
    gap: int = 8
    smooth: int = 7
    shortest: int = 5
    thickness: float = 1.0

    def read(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """People (P,F,18,3) in frames uint8 (F,H,W,3), and the points (P,F,18) that were filled in.

        A point is x, y in pixels and confidence; confidence 0 means missing.
        """
        tracks = track_people(frames, blazepose.load(), self.tiles, self.gap)
        shortest = min(self.shortest, len(frames))
        skeletons = [self._points(frames, track) for track in tracks if len(track) >= shortest]
        raw = np.array(skeletons).reshape(-1, len(frames), 18, 3)  # (P,F,18,3)
        raw[raw[..., 2] < self.confidence] = 0
        filled = [fill_gaps(person, self.gap) for person in raw]
        people = np.array([smooth_points(person, self.smooth) for person, _ in filled]).reshape(raw.shape)
        return people, np.array([points for _, points in filled], bool).reshape(raw.shape[:3])

    def draw(self, people: np.ndarray, size: tuple[int, int], shorter: int) -> np.ndarray:
        """Draw skeletons (P,F,18,3) on black: uint8 (F,H,W,3) of `size`; shorter: the target's short side in pixels."""
        return np.stack([draw_skeletons(people[:, i], size, self.thickness * shorter) for i in range(people.shape[1])])

    def _points(self, frames: np.ndarray, track: Track) -> np.ndarray:
        """A person's skeleton (F,18,3) as x, y, confidence; all 0 in frames without the person."""
        network = rtmpose.load(user_path(self.model)) if self.model else None
        result = np.zeros((len(frames), 18, 3))
        for number, body in track.items():
            if network is None:
                result[number] = to_openpose(body.landmarks, FROM_BLAZEPOSE)
            else:
                result[number] = to_openpose(network.keypoints(frames[number], body.landmarks[:, :2]), FROM_COCO)
        return result
