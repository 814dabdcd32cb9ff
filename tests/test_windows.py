"""Windows of clips: their number, places, crops and frame rates, and reading them in one pass."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_prep.clips.clip_list import Clip
from data_prep.clips.crop import Crop
from data_prep.clips.probed_clip import ProbedClip
from data_prep.clips.windows import Window, heldout_windows, train_windows
from data_prep.pairs import read_windows
from iclora_train.config import Data
from iclora_train.media.clip import ClipInfo, read_clip
from iclora_train.media.frame_times import FrameTimes, exact_rate
from tests.clips import write_clip


def info(frames: int, height: int = 48, width: int = 64, fps: float = 25.0) -> ClipInfo:
    return ClipInfo(height, width, FrameTimes.constant(frames, exact_rate(fps)))


def data(**changes: object) -> Data:
    settings = {"root": "", "frames": 5, "height": 32, "width": 32, "train_windows": 12, "heldout_windows": 12}
    return Data(**{**settings, **changes})


CLIPS = [ProbedClip(Clip(name, Path(name), ""), info(frames)) for name, frames in (("a", 40), ("b", 12), ("c", 60))]


def test_heldout_windows_are_disjoint_evenly_spaced_and_have_different_crops():
    windows = heldout_windows(CLIPS, data())
    per_clip = {name: [w for w in windows if w.clip == name] for name in "abc"}
    assert {name: len(clip_windows) for name, clip_windows in per_clip.items()} == {
        "a": 5,
        "b": 2,
        "c": 5,
    }  # b is long enough for two
    for clip_windows in per_clip.values():
        assert all(a.indices[-1] < b.indices[0] for a, b in pairwise(clip_windows))
        assert len({w.crop for w in clip_windows}) == len(clip_windows)
    assert not any(w.flip for w in windows)
    assert windows == heldout_windows(CLIPS, data(seed=5))
    assert len(heldout_windows(CLIPS, data(heldout_windows=1000))) == 8 + 2 + 12


def test_train_windows_are_seeded_and_inside_the_clip():
    windows = train_windows(CLIPS, data(train_windows=90))
    assert windows == train_windows(CLIPS, data(train_windows=90))
    assert windows != train_windows(CLIPS, data(train_windows=90, seed=1))
    frames = {footage.clip.id: footage.info.frames for footage in CLIPS}
    for window in windows:
        assert 0 <= window.indices[0] <= window.indices[-1] < frames[window.clip]
        assert len(window.indices) == 5
        assert all(0 <= offset <= length - 32 for offset, length in zip(window.crop, window.scaled, strict=True))
        assert 32 <= window.scaled[0] <= 40
    assert len({w.scaled for w in windows}) > 3
    assert {w.flip for w in windows} == {True, False}
    assert not any(w.flip or w.scaled[0] > 32 for w in train_windows(CLIPS, data(flip=False, zoom=1.0)))


def test_fps_selects_the_nearest_frame_by_time():
    uneven = FrameTimes.measure([0, 40, 80, 200, 240, 400], Fraction(1, 1000), Fraction(25))
    assert uneven.frame_numbers(10.0).tolist() == [0, 2, 3, 4, 5]
    assert info(50).times.frame_numbers(12.5).tolist() == list(range(0, 50, 2))
    assert info(50).times.frame_numbers().tolist() == list(range(50))
    assert info(1).times.frame_numbers(10.0).tolist() == [0]
    (window, *_) = heldout_windows([ProbedClip(Clip("a", Path("a"), ""), info(50))], data(fps=12.5, heldout_windows=1))
    assert np.diff(window.indices).tolist() == [2] * 4
    assert window.fps == 12.5


@pytest.mark.parametrize(
    ("clip", "changes", "message"),
    [
        (info(4), {}, "4 frames are fewer than data.frames=5"),
        (info(40), {"fps": 2.0}, "4 of 40 frames at 2 fps are fewer"),
        (info(40, fps=0.0003), {}, "0.0003 frames a second are not the rate of a video: set data.fps"),
        (info(40, fps=90000), {}, "90000 frames a second are not the rate of a video"),
        (
            info(40, fps=22),
            {"fps": 24.0, "frames": 17},
            "11 frames without a repeated one are fewer than data.frames=17",
        ),
        (info(40, height=24), {}, "64x24 pixels do not hold"),
        (info(40, fps=10), {"fps": 24.0}, "10 frames a second are too few"),
        (info(40, 640, 480), {"short_side": 32}, None),
        (info(40), {"width": 48, "short_side": 32}, "do not hold"),
    ],
)
def test_the_reason_why_a_clip_does_not_fit(clip, changes, message):
    footage = ProbedClip(Clip("a", Path("a"), ""), clip)
    if message is None:
        footage.best_bucket(data(**changes))
    else:
        with pytest.raises(ValueError, match=message):
            footage.best_bucket(data(**changes))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("top_left", "margin"), [((30, 40), 0), ((30, 40), 7), ((0, 0), 9), ((58, 84), 9)])
def test_points_are_cropped_like_pixels(top_left, margin, flip):
    """Coordinates mapped by the crop match the cropped frames."""
    window = Window("a", 0, (0,), (90, 120), top_left, (32, 36), flip, 25.0)
    crop = Crop.of_window(window, (180, 240), margin)
    picture = np.zeros((180, 240), np.float32)
    y, x = 2 * top_left[0] + 30, 2 * top_left[1] + 20
    picture[y - 4 : y + 4, x - 4 : x + 4] = 1
    placed = crop.apply(picture)
    assert placed.shape == crop.padded_size
    rows, columns = np.nonzero(placed)
    weights = placed[rows, columns]
    centre = [(columns * weights).sum() / weights.sum(), (rows * weights).sum() / weights.sum()]
    assert crop.apply_to_points(np.array([[x - 0.5, y - 0.5]]))[0] == pytest.approx(centre, abs=1e-5)
    top, left = crop.inner_offset
    inner = replace(crop, margin=0).apply(picture)
    assert (placed[top : top + 32, left : left + 36] == inner).all()
    assert (crop.apply_all([picture, 1 - picture]) == [placed, crop.apply(1 - picture)]).all()


def test_windows_are_read_in_one_pass(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 20)
    frames = list(read_clip(path))
    starts = (0, 2, 2, 11)
    windows = [
        Window("a", i, (first, first + 1, first + 4), (48, 64), (0, 0), (8, 8), False, 25.0)
        for i, first in enumerate(starts)
    ]
    for start, frames_read in zip(starts, read_windows(path, windows), strict=True):
        expected = [frames[start], frames[start + 1], frames[start + 4]]
        assert (np.stack(frames_read) == np.stack(expected)).all()
