"""The people in the frames of a clip as masks, by the landmark network of BlazePose, which also outlines the body."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from iclora_train.signals import blazepose
from iclora_train.signals.pose_tracking import track_people

GAP = 8  # frames over which a person who is lost and found again is one person


def person_masks(frames: np.ndarray, tiles: int = 1) -> Iterator[tuple[np.ndarray, bool]]:
    """For each frame of a clip uint8 (F,H,W,3) the share (H,W) in [0, 1] of people, and whether there is one.

    People are found and followed as for poses. tiles: see `PoseReader`.
    """
    network = blazepose.load()
    tracks = track_people(frames, network, tiles, GAP)
    for number, frame in enumerate(frames):
        bodies = [track[number] for track in tracks if number in track]
        mask = np.zeros(frame.shape[:2], np.float32)
        for body in bodies:
            np.maximum(mask, network.outline(frame, body.square), out=mask)
        yield mask, bool(bodies)
