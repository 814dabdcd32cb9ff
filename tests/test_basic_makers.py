"""Defocus, motion blur, grey and Canny: exact effects, determinism, and real pixels in the margin of a crop."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.clips.windows import Window
from data_prep.makers import build_maker
from data_prep.pairs import ReferenceScale, SourceVideo, make_reference
from iclora_train.config import ConfigError
from tests.clips import moving
from tests.prep import whole_clip

MAKERS = [
    ("degrade.defocus", {"radius": [3, 4]}),
    ("degrade.defocus", {"radius": [1, 6], "rack": True, "linear": True}),
    ("degrade.gaussian", {"sigma": [1, 2]}),
    ("degrade.motion", {"length": [5, 9], "average": 3}),
    ("degrade.grey", {}),
    ("control.canny", {"low": 50, "high": 100, "thickness": 2, "soft": 0.6, "blur": 1}),
]


@pytest.mark.parametrize(("name", "args"), MAKERS)
def test_makers_are_deterministic_and_use_the_margin(name, args):
    """The reference of a crop equals the crop of the whole picture's reference: borders are real pixels."""
    frames = list(moving(5, 96, 128))
    maker = build_maker(name, args)
    inner = Window("a", 0, (0, 1, 2, 3, 4), (96, 128), (30, 40), (32, 32), False, 25.0)
    whole = replace(inner, crop=(0, 0), size=(96, 128))
    reference, drawn = make_reference(frames, inner, maker, SourceVideo(Path()), [1, 2], ReferenceScale())
    assert reference.shape == (5, 32, 32, 3)
    assert reference.dtype == np.uint8
    full, _ = make_reference(frames, whole, maker, SourceVideo(Path()), [1, 2], ReferenceScale())
    assert np.abs(reference.astype(int) - full[:, 30:62, 40:72]).max() <= 1
    mirrored, _ = make_reference(
        frames, replace(inner, flip=True), maker, SourceVideo(Path()), [1, 2], ReferenceScale()
    )
    assert mirrored.shape == reference.shape
    again, _ = make_reference(frames, inner, maker, SourceVideo(Path()), [1, 2], ReferenceScale())
    assert (again == reference).all()
    json.dumps(drawn)


def point() -> np.ndarray:
    frames = np.zeros((3, 41, 41, 3), np.uint8)
    frames[:, 18:23, 18:23] = 255
    return frames


def test_defocus_is_a_disk_with_sum_one():
    rng = np.random.default_rng(0)
    blurred, drawn = build_maker("degrade.defocus", {"radius": [5, 5]})(point(), rng, whole_clip(point()))
    assert drawn["radius"] == [5.0, 5.0]
    assert blurred.sum() == pytest.approx(point().sum(), rel=0.02)
    row = blurred[0, 20, :, 0]
    assert (row > 0).sum() in (15, 17)  # five pixels and a radius of five on each side
    racked, drawn = build_maker("degrade.defocus", {"radius": [1, 8], "rack": True})(point(), rng, whole_clip(point()))
    assert drawn["radius"][0] != drawn["radius"][1]
    assert len({frame.tobytes() for frame in racked}) == 3
    bloom, _ = build_maker("degrade.defocus", {"radius": [5, 5], "linear": True})(point(), rng, whole_clip(point()))
    assert bloom.max() > blurred.max()


def test_motion_is_a_line_and_averages_frames():
    blurred, _ = build_maker("degrade.motion", {"length": [9, 9]})(
        point(), np.random.default_rng(0), whole_clip(point())
    )
    _, (short, long), _ = cv2.minAreaRect(np.argwhere(blurred[0, ..., 0] > 25).astype(np.float32))
    assert max(short, long) > 1.5 * min(short, long)
    frames = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 90, 180)])
    averaged, _ = build_maker("degrade.motion", {"length": [1, 1], "average": 3})(
        frames, np.random.default_rng(0), whole_clip(frames)
    )
    assert averaged[:, 8, 8, 0].tolist() == [45, 90, 135]
    with pytest.raises(ConfigError, match="average=2 must be an odd number"):
        build_maker("degrade.motion", {"average": 2})


def test_grey_is_rec_601():
    colours = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], np.uint8)
    grey, _ = build_maker("degrade.grey", {})(colours, np.random.default_rng(0), whole_clip(colours))
    assert grey[0, 0, :, 0].tolist() == [76, 150, 29, 255]
    assert (grey == grey[..., :1]).all()


def test_canny_lines_have_the_set_thickness():
    frames = np.zeros((1, 40, 40, 3), np.uint8)
    frames[:, :, 20:] = 255
    widths = []
    for thickness in (1, 2, 3):
        edges, _ = build_maker("control.canny", {"thickness": thickness})(
            frames, np.random.default_rng(0), whole_clip(frames)
        )
        widths.append(int((edges[0, 20, :, 0] > 0).sum()))
    assert widths == [1, 2, 3]
    with pytest.raises(ConfigError, match="low=300 must not be above high"):
        build_maker("control.canny", {"low": 300})
