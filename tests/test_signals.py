"""Signals that makers draw and the evaluation reads from generated clips."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from eval.metrics.base import CachedClip
from iclora_train.signals.point_tracks import detect_corners, max_round_trip_error, track_points
from iclora_train.signals.pose import PoseReader
from tests.doses import scene
from tests.test_pose import astronaut

GREY = list(CachedClip(scene()).grey)


def test_points_follow_a_moving_picture_from_their_start() -> None:
    start = np.array([[40.0, 20.0], [30.5, 41.5]])
    points, visible = track_points(GREY, 0.5, start)
    assert points.shape == (2, len(GREY), 2)
    assert visible.all()
    path = start[:, None] - np.stack([np.arange(len(GREY)), np.zeros(len(GREY))], axis=1)  # left by one pixel per frame
    assert points == pytest.approx(path, abs=0.1)


def test_a_lost_point_keeps_its_last_position() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    points, visible = track_points([*GREY[:3], noise, *GREY[4:]], 0.5, np.array([[40.0, 20.0]]))
    assert visible[0].tolist() == [True] * 3 + [False] * 6
    assert (points[0, 3:] == points[0, 2]).all()


def test_corners_are_tracked_by_default_and_flat_pictures_have_none() -> None:
    points, _ = track_points(GREY, 0.5)
    assert points[:, 0] == pytest.approx(detect_corners(GREY[0]))
    flat = [np.full((32, 32), 9, np.uint8)] * 3
    assert [part.shape for part in track_points(flat, 0.5)] == [(0, 3, 2), (0, 3)]
    assert [part.shape for part in track_points(flat, 0.5, np.zeros((0, 2)))] == [(0, 3, 2), (0, 3)]


def test_the_largest_round_trip_error_scales_with_the_size_down_to_a_minimum() -> None:
    assert max_round_trip_error(1.0, (1024, 2048)) == 2
    assert max_round_trip_error(1.0, (64, 64)) == 0.25


def test_poses_can_be_read_in_several_threads() -> None:
    clips = [np.repeat(astronaut(left=left, size=(256, 300))[None], 3, axis=0) for left in (0, 40)]
    one_by_one = [PoseReader().read(clip)[0] for clip in clips]
    assert all(len(people) == 1 for people in one_by_one)
    with ThreadPoolExecutor(2) as pool:
        in_threads = list(pool.map(lambda clip: PoseReader().read(clip)[0], clips))
    assert all((a == b).all() for a, b in zip(one_by_one, in_threads, strict=True))
