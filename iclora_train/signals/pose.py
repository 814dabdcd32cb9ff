"""The skeletons of the people in a clip: found, followed, gaps closed, jitter smoothed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iclora_train.signals import blazepose, rtmpose
from iclora_train.signals.pose_tracking import Track, fill_gaps, smooth_points, track_people
from iclora_train.signals.skeleton import FROM_BLAZEPOSE, FROM_COCO, draw_skeletons, to_openpose


@dataclass(frozen=True)
class PoseReader:
    """Everybody's 18-point OpenPose skeleton.

    model: an RTMPose or DWPose file (.onnx) for the keypoints; null takes MediaPipe's BlazePose, which also finds the
    people for the others. tiles: people are looked for in the whole picture and in tiles x tiles parts of it; raise it
    where they are small. confidence: keypoints below it are missing. gap: they are filled in over at most so many
    frames. smooth: frames of the parabola that takes the jitter out (odd; 1 for none). shortest: who is seen in fewer
    frames is left out (or in fewer than the clip has). thickness: of the drawing; at 1, limbs are 9 pixels wide on a
    shorter side of 512, as DWPose draws them.
    """

    model: str | None = None
    tiles: int = 1
    confidence: float = 0.3
    gap: int = 8
    smooth: int = 7
    shortest: int = 5
    thickness: float = 1.0

    def read(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of frames uint8 (F,H,W,3): people (P,F,18,3) as x, y in pixels and confidence, where 0 means missing, and
        which points (P,F,18) were filled in.
        """
        tracks = track_people(frames, blazepose.load(), self.tiles, self.gap)
        least = min(self.shortest, len(frames))
        found = [self._points(frames, track) for track in tracks if len(track) >= least]
        raw = np.array(found).reshape(-1, len(frames), 18, 3)  # (P,F,18,3)
        raw[raw[..., 2] < self.confidence] = 0
        pairs = [fill_gaps(person, self.gap) for person in raw]
        people = np.array([smooth_points(person, self.smooth) for person, _ in pairs]).reshape(raw.shape)
        return people, np.array([filled for _, filled in pairs], bool).reshape(raw.shape[:3])

    def draw(self, people: np.ndarray, size: tuple[int, int], shorter: int) -> np.ndarray:
        """Skeletons (P,F,18,3) on black, uint8 (F,H,W,3) of `size`; `shorter`: the target's shorter side in pixels."""
        return np.stack([draw_skeletons(people[:, i], size, self.thickness * shorter) for i in range(people.shape[1])])

    def _points(self, frames: np.ndarray, track: Track) -> np.ndarray:
        """A person's skeleton (F,18,3) as x, y, confidence; all 0 where they were not seen."""
        network = rtmpose.load(Path(self.model).expanduser()) if self.model else None
        result = np.zeros((len(frames), 18, 3))
        for number, body in track.items():
            if network is None:
                result[number] = to_openpose(body.landmarks, FROM_BLAZEPOSE)
            else:
                result[number] = to_openpose(network.keypoints(frames[number], body.landmarks[:, :2]), FROM_COCO)
        return result
