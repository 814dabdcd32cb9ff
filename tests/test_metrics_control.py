"""Control metrics (edges, tracks, pose, depth): requests, measurements, and metrics that cannot run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_prep.makers import build_maker
from eval.metrics import GroundTruth, Suite
from eval.metrics.base import CachedClip, Measurement
from eval.metrics.depth import depth_metrics
from eval.metrics.pose import joint_distances, pose_metrics, pose_values, requested_skeletons, similarity
from eval.metrics.tracks import track_values
from iclora_train.config import ConfigError, Task
from iclora_train.signals import blazepose
from iclora_train.signals.pose import PoseReader
from iclora_train.signals.skeleton import NECK, POINTS
from tests import doses
from tests.doses import scene
from tests.prep import whole_clip
from tests.test_depth import write_network
from tests.test_pose import astronaut

SIZE = (64, 64)


def task(maker: str, family: str = "structure", **args: object) -> Task:
    return Task("a", family, maker=maker, maker_args=args)


def blank(record: dict | None = None, clip: np.ndarray | None = None) -> GroundTruth:
    target = scene() if clip is None else clip
    return GroundTruth(target, target, target, record=record or {})


# --- which metrics ---


@pytest.mark.parametrize(
    ("maker", "family", "primary", "specific"),
    [
        ("degrade.defocus", "restoration", "psnr", {"erqa", "tof"}),
        ("degrade.grey", "colorize", "chroma_error", {"luma_psnr", "colourfulness_ratio", "cdc"}),
        ("control.canny", "structure", "edge_f1", set()),
        ("control.soft_edges", "structure", "edge_f1", set()),
        ("union", "structure", "edge_f1", set()),
        ("control.tracks", "structure", "track_error", {"track_error", "track_dx"}),
        ("control.pose", "structure", "pose_pck", {"pose_pck", "pose_oks", "pose_error", "pose_recall"}),
    ],
)
def test_a_task_has_its_primary_metric_and_the_metrics_of_its_control(
    maker: str, family: str, primary: str, specific: set[str]
) -> None:
    suite = Suite.of(task(maker, family))
    keys = [metric.key for metric in suite.metrics]
    assert suite.primary == primary
    # A grey reference fixes the luma, not the colours.
    assert suite.adherence == ("psnr_y" if family == "colorize" else primary)
    assert primary in keys
    assert specific <= set(keys)
    assert len(keys) == len(set(keys))
    assert {"psnr", "psnr_y", "ssim", "edge_f1", "edge_gap", "chroma_error", "colourfulness", "sharpness"} <= set(keys)
    for metric in suite.metrics:
        assert metric.better in ("high", "low", None)
        assert metric.group in ("picture", "structure", "colour", "time", "region")


def test_the_primary_metric_of_an_edit_depends_on_its_maker() -> None:
    for maker, primary in (("edit.hole", "psnr_outside"), ("edit.outpaint", "psnr_outside"), ("given", "psnr")):
        assert Suite.of(task(maker, "edit")).primary == primary


def test_metrics_that_cannot_run_are_listed_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Suite.of(task("degrade.defocus", "restoration")).not_run == ()
    for maker, args in (("control.depth", {}), ("control.depth", {"model": "gone"}), ("control.depth_given", {})):
        suite = Suite.of(task(maker, **args))
        assert suite.primary == "edge_f1"
        assert "task.maker_args.model" in next(entry.reason for entry in suite.not_run if entry.metric == "depth_error")
        assert suite.control(scene()) is None
    monkeypatch.setattr(blazepose, "is_installed", lambda: False)
    suite = Suite.of(task("control.pose"))
    assert {entry.metric for entry in suite.not_run} >= {"pose_pck", "pose_oks", "pose_error", "pose_recall"}
    assert suite.primary == "edge_f1"


@pytest.mark.parametrize("maker", ["control.canny", "control.soft_edges"])
def test_edges_are_drawn_as_the_maker_draws_them(maker: str) -> None:
    args = {"thickness": 2, "soft": 0.6} if maker == "control.canny" else {"scales": [1.0, 3.0]}
    drawing, _ = build_maker(maker, args)(scene(), np.random.default_rng(0), whole_clip(scene()))
    assert (Suite.of(task(maker, **args)).control(scene()) == drawing).all()


# --- tracks ---


def test_tracks_of_the_maker_are_measured_and_drawn() -> None:
    frames = scene()
    drawing, drawn = build_maker("control.tracks", {"count": [12, 12]})(
        frames, np.random.default_rng(0), whole_clip(frames)
    )
    suite, truth = Suite.of(task("control.tracks", count=[12, 12])), blank({"drawn": drawn})
    measured = suite.measure(frames, truth)
    assert measured.values["track_error"] < 0.1
    assert measured.values["track_dx"] == measured.values["track_within_5"] == measured.values["track_found"] == 1
    assert np.abs(suite.control(frames, truth).astype(int) - drawing).mean() < 2
    assert suite.control(frames) is None  # without a record the start points are unknown


def test_track_errors_are_in_pixels_and_shares_of_the_diagonal() -> None:
    requested = np.zeros((2, 4, 2))
    is_requested = np.array([[True, True, True, True], [True, True, False, False]])
    measured = requested + np.array([3.0, 4.0])
    values = track_values(requested, is_requested, measured, np.ones_like(is_requested), (60, 80)).values
    assert values["track_error"] == 5
    assert values["track_error_diagonal"] == 5
    assert values["track_within_5"] == 1
    assert values["track_within_1"] == 0
    scaled = np.hypot(3 * 256 / 80, 4 * 256 / 60)  # 19.6 px at 256 x 256, beyond all five limits
    assert scaled > 16
    assert values["track_dx"] == 0


def test_a_lost_point_keeps_its_position_and_is_beyond_every_distance() -> None:
    requested = np.stack([np.stack([np.arange(5.0), np.zeros(5)], axis=1)])
    is_requested = np.ones((1, 5), bool)
    is_tracked = np.array([[True, True, False, False, False]])
    held_position = requested[:, [0, 1, 1, 1, 1]]
    measured = track_values(requested, is_requested, held_position, is_tracked, (300, 400))
    assert measured.values["track_error"] == pytest.approx((0 + 1 + 2 + 3) / 4)
    assert measured.values["track_within_5"] == measured.values["track_found"] == 1 / 4
    assert measured.frames["track_error"] == [0, 0, 1, 2, 3]


def test_without_tracks_there_is_no_track_error() -> None:
    suite = Suite.of(task("control.tracks"))
    for tracks in ([], [[[3.0, 4.0]]]):  # the second track ends at the first frame
        assert "track_error" not in suite.measure(scene(), blank({"drawn": {"tracks": tracks}})).values
    assert "track_error" not in suite.measure(scene(), blank()).values


def test_a_still_output_has_the_error_of_the_requested_motion() -> None:
    frames = scene()
    tracks = [[[x - t, y] for t in range(9)] for x, y in ((30.0, 20.0), (40.0, 40.0), (22.0, 33.0))]
    still = np.repeat(frames[:1], 9, axis=0)
    measured = Suite.of(task("control.tracks")).measure(still, blank({"drawn": {"tracks": tracks}}))
    assert measured.values["track_error"] == pytest.approx(np.mean(range(1, 9)), abs=0.05)


# --- pose ---


def person(x: float = 30, y: float = 10, frames: int = 3) -> np.ndarray:
    """The joints (F,18,3) of a standing person, 20 pixels wide and 40 tall."""
    rng = np.random.default_rng(5)
    joints = rng.uniform((x, y), (x + 20, y + 40), (18, 2))
    joints[[0, 10]] = (x, y), (x + 20, y + 40)
    return np.repeat(np.concatenate([joints, np.full((18, 1), 0.9)], axis=1)[None], frames, axis=0)


def moved(people: np.ndarray, pixels: float) -> np.ndarray:
    return people + np.array([pixels, 0, 0])


def requested_of(*people: np.ndarray) -> np.ndarray:
    drawn = {"skeletons": [{"start": 0, "points": person.reshape(len(person), -1).tolist()} for person in people]}
    return requested_skeletons(drawn, 3, (100, 100))


def test_joints_at_the_requested_positions_are_perfect() -> None:
    measured = pose_values(requested_of(person()), person()[None])
    assert measured.values == {"pose_pck": 1, "pose_oks": 1, "pose_recall": 1, "pose_error": 0}
    assert measured.frames["pose_pck"] == [1, 1, 1]


def test_pose_metrics_get_worse_with_every_displacement() -> None:
    values = [pose_values(requested_of(person()), moved(person(), d)[None]).values for d in (0, 1, 3, 9)]
    for key, sign in (("pose_oks", -1), ("pose_error", 1)):
        assert all(sign * a[key] < sign * b[key] for a, b in pairwise(values)), key
    assert [v["pose_error"] for v in values] == pytest.approx([0, 1, 3, 9])
    assert [v["pose_pck"] for v in values] == [1, 1, 1, 0]  # a tenth of the box's longer side is 4 pixels


def test_oks_follows_coco() -> None:
    """A joint at a distance of k times the root of the area counts exp(-1/2)."""
    requested = requested_of(person())[0, 0]
    knee = POINTS.index("right_knee")
    single = requested.copy()
    single[:, 2] = 0
    single[[0, 10, knee], 2] = 1
    distances = np.where(np.arange(18) == knee, 2 * 0.087 * np.sqrt(20 * 40), 0.0)
    assert similarity(single, distances) == pytest.approx((2 + np.exp(-0.5)) / 3)


def test_people_are_matched_one_to_one_and_missing_people_count() -> None:
    left, right = person(5), person(60)
    measured = pose_values(requested_of(left, right), np.stack([moved(right, 1), moved(left, 1)]))
    assert measured.values["pose_error"] == pytest.approx(1)
    assert measured.values["pose_recall"] == 1
    single = pose_values(requested_of(left, right), moved(left, 1)[None])
    assert single.values["pose_error"] == pytest.approx(1)
    assert single.values["pose_recall"] == single.values["pose_pck"] == 0.5
    nobody = pose_values(requested_of(left), np.zeros((0, 3, 18, 3)))
    assert nobody.values == {"pose_pck": 0, "pose_oks": 0, "pose_recall": 0}  # and no joint error


def test_only_confident_joints_inside_the_picture_are_requested() -> None:
    unsure = person()
    unsure[:, 4, 2], unsure[:, 5, 0] = 0.2, 200
    requested = requested_of(unsure)
    missing = np.flatnonzero(requested[0, 0, :, 2] == 0).tolist()
    assert missing == sorted([NECK, 4, 5])
    assert np.isinf(joint_distances(requested[0, 0], person()[0])[missing]).all()
    assert pose_values(requested_of(moved(person(), 500)), person()[None]) == Measurement()
    nose_and_neck = person()
    nose_and_neck[:, 2:, 2] = 0
    assert pose_values(requested_of(nose_and_neck), person()[None]) == Measurement()


def test_the_recorded_person_is_detected_in_the_picture() -> None:
    frames = np.stack([astronaut(left=3 * i, size=(256, 288)) for i in range(5)])
    _, drawn = build_maker("control.pose", {})(frames, np.random.default_rng(0), whole_clip(frames))
    truth, group = blank({"drawn": drawn}, frames), pose_metrics(PoseReader())
    identical = group.measure(CachedClip(frames), truth).values
    assert identical["pose_pck"] == identical["pose_recall"] == 1
    assert identical["pose_error"] < 0.1
    assert group.measure(CachedClip(doses.shift(frames, 20)), truth).values["pose_error"] == pytest.approx(20, abs=4)
    empty = group.measure(CachedClip(np.full_like(frames, 128)), truth).values
    assert empty == {"pose_pck": 0, "pose_oks": 0, "pose_recall": 0}
    assert group.measure(CachedClip(frames), blank(clip=frames)) == Measurement()
    drawing = Suite.of(task("control.pose")).control(frames)
    assert drawing is not None
    assert drawing.shape == frames.shape
    assert drawing.max() == 255


# --- depth ---


class Ramp:
    """A network that returns brightness as nearness."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def nearness(self, frames: np.ndarray) -> np.ndarray:
        return (self.scale * (1 + frames.astype(np.float32).mean(-1))).astype(np.float32)


def depth_of(output: np.ndarray, network: Ramp) -> float:
    return depth_metrics(network).measure(CachedClip(output), blank()).values["depth_error"]


def test_depth_error_grows_with_every_dose_and_is_scale_invariant() -> None:
    for damage, amounts in ((doses.blur, (0, 1, 2, 4)), (doses.shift, (0, 1, 3, 6)), (doses.noise, (0, 4, 12))):
        errors = [depth_of(damage(scene(), amount), Ramp()) for amount in amounts]
        assert errors[0] == 0
        assert all(a < b for a, b in pairwise(errors)), damage
    blurred = doses.blur(scene(), 2)
    assert depth_of(blurred, Ramp(40)) == pytest.approx(depth_of(blurred, Ramp()), rel=1e-5)


def test_depth_without_a_scale_is_not_measured() -> None:
    assert depth_metrics(Ramp(0)).measure(CachedClip(scene()), blank()) == Measurement()


def test_depth_is_measured_with_the_network_of_the_maker(tmp_path: Path) -> None:
    suite = Suite.of(task("control.depth", model=str(write_network(tmp_path / "net", "relative"))))
    assert suite.primary == "depth_error"
    assert suite.measure(scene(), blank()).values["depth_error"] == 0
    assert suite.measure(scene(1), blank()).values["depth_error"] > 0
    drawing = suite.control(scene())
    assert drawing is not None
    assert drawing.shape == scene().shape
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a depth network"):
        Suite.of(task("control.depth", model=str(tmp_path)))
