"""The pose maker: people are detected and tracked, gaps filled, jitter smoothed, and skeletons drawn as in OpenPose."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from data_prep.clips.crop import Crop
from data_prep.makers import build_maker
from iclora_train.config import ConfigError
from iclora_train.signals.blazepose import BlazePose, anchor_centres, load, weighted_nms
from iclora_train.signals.pose_tracking import contiguous_runs, fill_gaps, smooth_points, track_people
from iclora_train.signals.rtmpose import decode_simcc
from iclora_train.signals.skeleton import COLOURS, FROM_BLAZEPOSE, FROM_COCO, LIMBS, POINTS, draw_skeletons, to_openpose
from tests.prep import whole_clip

NOSE, RIGHT_EYE, LEFT_EYE = (POINTS.index(name) for name in ("nose", "right_eye", "left_eye"))
FACE = {NOSE: (223, 128), RIGHT_EYE: (205, 103), LEFT_EYE: (249, 112)}  # in the astronaut picture of scikit-image


def astronaut(left: int = 0, top: int = 0, scale: float = 0.5, size: tuple[int, int] = (256, 256)) -> np.ndarray:
    """The astronaut picture of scikit-image on a grey background."""
    picture = np.full((*size, 3), 128, np.uint8)
    small = cv2.resize(skimage.data.astronaut(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    picture[top : top + len(small), left : left + len(small)] = small[: size[0] - top, : size[1] - left]
    return picture


def posed(frames: np.ndarray, **args: object) -> tuple[np.ndarray, dict]:
    return build_maker("control.pose", args)(frames, np.random.default_rng(0), whole_clip(frames))


def skeletons(drawn: dict) -> list[np.ndarray]:
    """The record's skeletons as (F,18,3)."""
    return [np.array(skeleton["points"]).reshape(-1, 18, 3) for skeleton in drawn["skeletons"]]


@pytest.fixture(scope="module")
def walk() -> tuple[np.ndarray, np.ndarray, dict]:
    """The astronaut gliding 3 pixels to the right each frame, 7 frames; the drawing of the maker, and its record."""
    frames = np.stack([astronaut(left=3 * i, size=(256, 288)) for i in range(7)])
    return frames, *posed(frames)


def test_the_face_points_are_located(walk: tuple[np.ndarray, np.ndarray, dict]) -> None:
    person = skeletons(walk[2])[0]
    for point, (x, y) in FACE.items():
        assert np.hypot(*(person[0, point, :2] - (x / 2, y / 2))) < 8
        assert person[0, point, 2] > 0.8


def test_a_moving_person_is_one_track_and_the_points_move_along(walk: tuple[np.ndarray, np.ndarray, dict]) -> None:
    _, _, drawn = walk
    assert drawn["people"] == 1
    assert drawn["coverage"] == 1.0
    person = skeletons(drawn)[0]
    assert len(person) == 7
    steps = np.diff(person[:, list(FACE), 0], axis=0)
    assert abs(steps.mean() - 3) < 0.5


def test_the_drawing_shows_the_record(walk: tuple[np.ndarray, np.ndarray, dict]) -> None:
    frames, pictures, drawn = walk
    assert pictures.shape == frames.shape
    assert pictures.dtype == np.uint8
    x, y = np.rint(skeletons(drawn)[0][3, NOSE, :2]).astype(int)
    assert pictures[3, y, x].tolist() == list(COLOURS[NOSE])


def test_the_record_is_json_and_the_output_is_reproducible(walk: tuple[np.ndarray, np.ndarray, dict]) -> None:
    frames, pictures, drawn = walk
    second, record = posed(frames)
    assert (second == pictures).all()
    assert json.loads(json.dumps(drawn)) == record


def test_a_tilted_person_is_read_upright() -> None:
    """The landmark network gets each person rotated upright, so the points rotate with the picture."""
    picture, centre = astronaut(left=64, top=64, size=(384, 384)), (192.0, 192.0)
    rotation = cv2.getRotationMatrix2D(centre, 35, 1)
    tilted = cv2.warpAffine(picture, rotation, (384, 384), borderValue=(128, 128, 128))
    upright, tilted_points = (skeletons(posed(image[None])[1])[0][0] for image in (picture, tilted))
    expected = upright[list(FACE), :2] @ rotation[:, :2].T + rotation[:, 2]
    assert np.hypot(*(tilted_points[list(FACE), :2] - expected).T).max() < 12


def test_small_people_are_detected_in_tiles() -> None:
    picture = astronaut(left=40, top=40, scale=0.125, size=(480, 640))
    assert posed(picture[None])[1]["people"] == 0
    frames, record = posed(picture[None], tiles=3)
    assert record["people"] == 1
    assert frames[0, :120, :120].any()
    assert not frames[0, 200:].any()


def test_people_are_detected_in_the_whole_picture_and_recorded_in_the_window() -> None:
    """The window shows only half of the face. Its skeleton is the translated skeleton of the whole picture."""
    frames = np.stack([astronaut()] * 2)
    full_skeleton = skeletons(posed(frames)[1])[0]
    maker, window = build_maker("control.pose", {}), Crop((256, 256), (256, 256), (16, 112), (96, 96), False, 1 << 20)
    pictures, drawn = maker(frames, np.random.default_rng(0), replace(whole_clip(frames), crop=window))
    assert maker.margin > 10_000
    assert pictures.shape == frames.shape
    window_skeleton = skeletons(drawn)[0]
    assert np.allclose(window_skeleton[:, NOSE, :2], full_skeleton[:, NOSE, :2] - (112, 16), atol=0.11)
    assert drawn["coverage"] == 1.0
    assert drawn["points"] < posed(frames)[1]["points"]


def test_without_people_the_reference_is_black() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    pictures, record = posed(frames)
    assert not pictures.any()
    assert record == {"people": 0, "coverage": 0.0, "points": 0.0, "filled": 0.0, "skeletons": []}


def test_a_late_detection_is_tracked_back_to_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector misses the first four frames; the landmark network does not."""
    frames = np.stack([astronaut(left=2 * i, size=(256, 288)) for i in range(6)])
    detect, network = BlazePose.detect, load()
    calls: list[int] = []

    def late(self: BlazePose, *args: object) -> list:
        calls.append(1)
        return detect(self, *args) if len(calls) > 4 else []  # type: ignore[arg-type]

    monkeypatch.setattr(BlazePose, "detect", late)
    tracks = track_people(frames, network, tiles=1, patience=0)
    assert [sorted(track) for track in tracks] == [[0, 1, 2, 3, 4, 5]]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ConfigError, match=r"pip install 'iclora_train\[pose\]'"):
        build_maker("control.pose", {})


def test_a_model_that_is_missing_or_cannot_be_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "dw-ll_ucoco_384.onnx"
    with pytest.raises(ConfigError, match=r"dw-ll_ucoco_384\.onnx does not exist"):
        build_maker("control.pose", {"model": str(model)})
    model.touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="pip install onnxruntime"):
        build_maker("control.pose", {"model": str(model)})


@pytest.mark.parametrize(
    ("args", "key"),
    [({"smooth": 4}, "smooth"), ({"tiles": 0}, "tiles"), ({"gap": 1.5}, "gap"), ({"confidence": 2}, "confidence")],
)
def test_bad_arguments_are_named(args: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=f"task.maker_args.{key}"):
        build_maker("control.pose", args)


def test_anchor_centres_of_the_detector() -> None:
    """28x28 cells with two anchors, 14x14 with two, 7x7 with six."""
    centres = anchor_centres()
    assert len(centres) == 28 * 28 * 2 + 14 * 14 * 2 + 7 * 7 * 6 == 2254
    assert centres[0].tolist() == centres[1].tolist() == [1 / 56, 1 / 56]
    assert centres[2].tolist() == [3 / 56, 1 / 56]
    assert centres[-1].tolist() == [13 / 14, 13 / 14]


def test_detections_of_one_person_are_averaged_by_score() -> None:
    detections = np.zeros((3, 13))
    detections[:, :4] = [[0.5, 0.5, 0.2, 0.2], [0.52, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]
    detections[:, 12] = [0.6, 0.9, 0.7]
    first, second = weighted_nms(detections)
    assert first[0] == pytest.approx((0.5 * 0.6 + 0.52 * 0.9) / 1.5)
    assert first[12] == 0.9
    assert second[:2] == pytest.approx([0.1, 0.1])


def test_simcc_points_are_the_maxima_with_the_lower_confidence() -> None:
    x, y = np.zeros((1, 133, 384)), np.zeros((1, 133, 512))
    x[0, :17, 96], y[0, :17, 384] = 0.8, 0.5
    points = decode_simcc(x, y)
    assert points.shape == (17, 3)
    assert points[0].tolist() == [0.25, 0.75, 0.5]


def test_the_neck_is_between_the_shoulders_and_sides_are_not_swapped() -> None:
    for count, order, left, right in ((33, FROM_BLAZEPOSE, 11, 12), (17, FROM_COCO, 5, 6)):
        points = np.zeros((count, 3))
        points[left], points[right] = (10, 4, 0.9), (20, 8, 0.5)
        openpose = to_openpose(points, order)
        assert openpose[POINTS.index("neck")].tolist() == [15, 6, 0.5]
        assert openpose[POINTS.index("left_shoulder")].tolist() == [10, 4, 0.9]


def test_limbs_and_joints_have_openpose_colours_and_widths() -> None:
    person = np.zeros((18, 3))
    person[[2, 3]] = (200, 120, 1), (200, 320, 1)  # right shoulder and elbow: the third limb
    picture = draw_skeletons(person[None], (512, 512), 512)
    assert picture[120, 200].tolist() == [255, 170, 0]
    assert picture[320, 200].tolist() == [255, 255, 0]
    assert picture[220, 200].tolist() == [int(0.6 * value) for value in COLOURS[LIMBS.index((2, 3))]] == [153, 102, 0]
    rows, columns = np.nonzero(picture.max(axis=2) > 100)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (196, 204, 116, 324)


def test_limbs_of_missing_points_are_not_drawn() -> None:
    person = np.zeros((18, 3))
    person[[2, 3]] = (100, 60, 1), (100, 160, 0)
    picture = draw_skeletons(person[None], (256, 256), 256)
    assert not picture[70:].any()


def test_drawings_cover_the_same_share_at_every_size() -> None:
    covered = []
    for scale in (1, 2, 4, 8):
        person = np.zeros((18, 3))
        person[[2, 3]] = (64 * scale, 40 * scale, 1), (64 * scale, 90 * scale, 1)
        covered.append(draw_skeletons(person[None], (128 * scale, 128 * scale), 128 * scale).mean())
    assert covered == pytest.approx([covered[-1]] * 4, rel=0.3)


def series(path: np.ndarray, missing: slice) -> np.ndarray:
    """One point (F,1,3) along a path (F,2), missing in some frames."""
    points = np.concatenate([path, np.ones((len(path), 1))], axis=1)[:, None]
    points[missing] = 0
    return points


def test_short_gaps_are_filled_along_a_line_and_long_gaps_stay() -> None:
    path = np.stack([np.arange(12.0), 2 * np.arange(12.0)], axis=1)
    points, filled = fill_gaps(series(path, slice(3, 6)), gap=3)
    assert np.allclose(points[:, 0, :2], path)
    assert np.flatnonzero(filled).tolist() == [3, 4, 5]
    points, filled = fill_gaps(series(path, slice(3, 6)), gap=2)
    assert not filled.any()
    assert not points[3:6].any()


def test_frames_before_the_first_and_after_the_last_detection_are_not_filled() -> None:
    points, filled = fill_gaps(series(np.ones((6, 2)), slice(0, 3)), gap=8)
    assert not points[:3].any()
    assert not filled.any()


def test_smoothing_keeps_parabolas_and_removes_jitter() -> None:
    t = np.arange(25.0)
    path = np.stack([0.3 * t**2 - 2 * t, 40 - t], axis=1)
    still = series(path, slice(0, 0))
    assert np.allclose(smooth_points(still, 7), still)
    noise = np.random.default_rng(0).normal(0, 1, (400, 2))
    smoothed = smooth_points(series(noise, slice(0, 0)), 7)
    assert smoothed[..., :2].std() == pytest.approx(noise.std() * 3**-0.5, rel=0.1)  # the filter's gain on white noise


def test_smoothing_does_not_reach_over_a_gap() -> None:
    path = np.zeros((20, 2))
    path[12:] = 100.0
    points = smooth_points(series(path, slice(8, 12)), 9)
    assert np.allclose(points[:8, 0, :2], 0)
    assert np.allclose(points[12:, 0, :2], 100)
    assert not points[8:12].any()


def test_contiguous_runs() -> None:
    assert contiguous_runs(np.array([1, 1, 0, 1, 0, 0, 1], bool)) == [slice(0, 2), slice(3, 4), slice(6, 7)]
