"""The jump at a seam: about 1 in continuous footage, well above where light, colour or content jumps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from iclora_train.signals.seams import seam_jumps

SEAM = 12


def scene(seed: int) -> np.ndarray:
    """A smooth picture of coloured blobs (96,200,3) uint8."""
    noise = np.random.default_rng(seed).uniform(0, 255, (96, 200, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return np.asarray(cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8))  # type: ignore[call-overload]


def pan(seed: int = 0, frames: int = 24, speed: int = 2) -> np.ndarray:
    """A picture that moves to the left: (F,64,64,3)."""
    picture = scene(seed)
    return np.stack([picture[16:80, speed * i : speed * i + 64] for i in range(frames)])


@pytest.mark.parametrize("speed", [0, 1, 2])
def test_continuous_footage_has_no_jump(speed: int) -> None:
    (jump,) = seam_jumps(pan(speed=speed), [SEAM])
    assert 0.7 < jump < 1.4


@pytest.mark.parametrize("kind", ["light", "colour", "content"])
def test_a_jump_at_the_seam_is_seen_in_moving_footage(kind: str) -> None:
    clip, other = pan().astype(np.int16), pan(seed=1)
    if kind == "content":
        clip[SEAM:] = other[SEAM:]
    else:
        clip[SEAM:, ..., slice(None) if kind == "light" else 2] += 15
    (jump,) = seam_jumps(clip.clip(0, 255).astype(np.uint8), [SEAM])
    assert jump > 3


def test_a_larger_jump_has_a_larger_value_and_another_seam_is_not_compared_with_it() -> None:
    clip = pan().astype(np.int16)
    clip[8:] += 6
    clip[16:] += 24
    small, large = seam_jumps(clip.clip(0, 255).astype(np.uint8), [8, 16])
    assert 1.5 < small < large
    (none,) = seam_jumps(clip.clip(0, 255).astype(np.uint8), [12])
    assert 0.7 < none < 1.4


def test_a_video_of_two_frames_has_a_jump_too() -> None:
    clip = np.zeros((2, 32, 32, 3), np.uint8)
    assert seam_jumps(clip, [1]) == [1.0]
    clip[1] = 10
    assert seam_jumps(clip, [1])[0] > 10
