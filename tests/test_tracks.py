"""Motion tracks as Lightricks' adapter expects them, and the union of several controls."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.clips.windows import Window
from data_prep.makers import build_maker
from data_prep.makers.control.track_files import read_tracks
from data_prep.pairs import ReferenceScale, SourceVideo, make_reference
from iclora_train.config import ConfigError
from iclora_train.signals.point_tracks import track_points
from iclora_train.signals.track_curves import spline, timed_spline
from iclora_train.signals.track_drawing import draw_tracks, trail_colour
from tests.clips import moving, write_clip
from tests.prep import whole_clip

SIZE = (540, 960)  # half of the 1080 pixels at which discs are drawn


def points_of(*tracks: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    points = np.array(tracks, np.float64)
    return points, np.ones(points.shape[:2], bool)


def write_tracks(path: Path, tracks: object) -> Path:
    path.write_text(json.dumps(tracks))
    return path


def json_points(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"x": x, "y": y, "extra": 0} for x, y in points]


# --- drawing ---


def test_colours_go_from_blue_over_cyan_and_green_to_red():
    assert trail_colour(1.0) == pytest.approx((0, 0, 1))
    assert trail_colour(0.5) == pytest.approx((0, 1, 0.5))  # 25 frames old, as in the node
    assert trail_colour(0.2) == pytest.approx((0.4, 0.6, 0))
    assert trail_colour(0.0) == pytest.approx((1, 0, 0))


def test_a_point_leaves_a_trail_of_fifty_one_discs():
    xs = [30 + 9 * i for i in range(54)]
    points, visible = points_of([(x, 200) for x in xs])
    last = draw_tracks(points, visible, (540, 540))[-1]
    assert [x for x in xs if last[200, x].any()] == xs[3:]
    assert last[200, xs[53]].tolist() == [0, 0, 255]
    assert last[200, xs[28]].tolist() == [0, 255, 128]
    assert last[200, xs[3]].tolist() == [255, 0, 0]
    widths = [int((last[200, x - 4 : x + 5].max(axis=-1) > 100).sum()) for x in (xs[53], xs[28], xs[3])]
    assert widths == [8, 5, 2]  # radii of 8, 5 and 2 at twice the size


def test_discs_keep_their_share_of_the_picture():
    for size in ((540, 960), (1080, 1920), (960, 540)):
        points, visible = points_of([(size[1] / 2, size[0] / 2)])
        (frame,) = draw_tracks(points, visible, size)
        assert frame.max(axis=-1).astype(float).sum() / 255 == pytest.approx(
            np.pi * (8 * min(size) / 1080) ** 2, rel=0.1
        )
    points, visible = points_of([(32, 32)])
    assert draw_tracks(points, visible, (64, 64), larger=4.0).max() == 255


def test_a_lost_point_stops_and_its_trail_fades():
    points, _ = points_of([(100 + 16 * i, 200) for i in range(6)])
    visible = np.array([[True, True, True, False, False, False]])
    frames = draw_tracks(points, visible, SIZE)
    assert frames[2, 200, 132].tolist() == [0, 0, 255]
    assert not frames[5, :, 140:].any()
    assert frames[5, 200, 132].tolist() == [0, round(255 * 3 * 3 / 50), 255]  # three frames old
    assert not draw_tracks(*points_of([(0, 0)]), SIZE)[0, 100:].any()


# --- hand-drawn tracks ---


def test_the_editors_json_is_read_however_it_is_nested(tmp_path):
    one, two, three = json_points((1, 2), (3, 4)), json_points((5, 6)), json_points((7, 8), (9, 10), (11, 12))
    path = tmp_path / "tracks.json"
    for value, lengths in (
        (one, [2]),
        ([one, two], [2, 1]),
        ([json.dumps(one), [two, [three]]], [2, 1, 3]),
        (json.dumps([one, two]), [2, 1]),
        ([[], one], [2]),
    ):
        assert [len(track) for track in read_tracks(write_tracks(path, value))] == lengths
    assert read_tracks(write_tracks(path, [one, two]))[0].tolist() == [[1, 2], [3, 4]]


def test_tracks_are_read_from_the_editor_in_a_workflow(tmp_path: Path) -> None:
    """Both formats of ComfyUI; the editor may be in a subgraph. Bends go before the points that were sampled."""
    bends, points = '[[{"x": 1.5, "y": 2}, {"x": 30, "y": 4}]]', '[[{"x": 1, "y": 2}]]'
    editor = {"id": 3, "type": "LTXVSparseTrackEditor", "inputs": [{"name": "image"}]}
    page = {
        "nodes": [
            {"type": "LoadImage", "widgets_values": ["a.png"]},
            {**editor, "widgets_values": [bends, points, 121]},
        ]
    }
    path = tmp_path / "workflow.json"
    for workflow in (page, {"nodes": [], "definitions": {"subgraphs": [page]}}):
        assert [track.tolist() for track in read_tracks(write_tracks(path, workflow))] == [[[1.5, 2], [30, 4]]]
    inputs = {"image": ["7", 0], "points_store": "[]", "coordinates": points, "points_to_sample": 121}
    server = {"7": {"class_type": "LoadImage"}, "9": {"class_type": "LTXVSparseTrackEditor", "inputs": inputs}}
    assert [track.tolist() for track in read_tracks(write_tracks(path, server))] == [[[1, 2]]]
    with pytest.raises(ValueError, match="holds no tracks"):
        read_tracks(write_tracks(path, {"nodes": [{"type": "LoadImage", "widgets_values": ["a.png"]}]}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('[{"x": 1' + "0" * 400 + ', "y": 2}]', "holds a point that is not"),
        ('[{"x": "caf\u00e9", "y": 2}]'.encode("latin-1"), r"is not UTF-8 \(byte 0xe9"),
        ("[]", "holds no tracks"),
        ('{"x": 1, "y": 2}', "holds no tracks"),
        ('[{"x": 1}]', "holds a point that is not"),
        ('[{"x": "left", "y": 2}]', "holds a point that is not"),
        ('[{"x": NaN, "y": 2}]', "holds a point that is not"),
    ],
)
def test_json_without_tracks_is_refused(text, message, tmp_path):
    (tmp_path / "tracks.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        build_maker("control.tracks", {}).check({"tracks": tmp_path / "tracks.json"})


def test_curves_equal_the_curves_of_the_editor():
    assert spline(np.array([[3.0, 4.0]]), 3).tolist() == [[3, 4]] * 3
    assert spline(np.array([[0.0, 0.0], [4.0, 8.0]]), 5).tolist() == [[0, 0], [1, 2], [2, 4], [3, 6], [4, 8]]
    knots = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
    curve = spline(knots, 31)
    assert np.allclose(curve[[0, 10, 20, 30]], knots)  # equally many samples for each part
    assert curve[15].tolist() == [11.25, 5.0]  # Catmull-Rom at the middle: (-p0 + 9 p1 + 9 p2 - p3) / 16
    assert curve[5].tolist() == [5.0, -0.625]


def test_drawn_tracks_move_with_the_window(tmp_path):
    """A curve over the whole clip, in a scaled, cropped and mirrored window that begins at frame 4."""
    clip = write_clip(tmp_path / "a.mp4", 21, 270, 480)
    path = write_tracks(tmp_path / "t.json", [json_points((100, 150), (300, 150))])
    window = Window("a", 0, (4, 8, 12, 16, 20), (540, 960), (0, 100), (540, 720), True, 6.25)
    maker = build_maker("control.tracks", {"points": "spline"})
    blank = [np.zeros((270, 480, 3), np.uint8)] * 5
    reference, drawn = make_reference(blank, window, maker, SourceVideo(clip, {"tracks": path}), [0], ReferenceScale())
    expected = [719 - ((100 + 200 * i / 20 + 0.5) * 2 - 0.5 - 100) for i in window.indices]
    assert np.abs(np.array(drawn["tracks"][0])[:, 0] - expected).max() <= 0.5  # whole pixels, as in the editor
    newest = [np.argwhere((frame == (0, 0, 255)).all(axis=-1)).mean(axis=0) for frame in reference]
    assert np.abs(np.array(newest)[:, 1] - expected).max() < 1.5
    second, _ = make_reference(blank, window, maker, SourceVideo(clip, {"tracks": path}), [9], ReferenceScale())
    assert (second == reference).all()


def test_a_track_with_a_point_per_frame_ends_with_its_points(tmp_path):
    frames = np.zeros((6, *SIZE, 3), np.uint8)
    path = write_tracks(
        tmp_path / "t.json", [json_points(*[(100 + 20 * i, 300) for i in range(9)]), json_points((50, 50), (60, 50))]
    )
    source = replace(whole_clip(frames, tracks=path), indices=(1, 2, 3, 4, 5, 6))
    _, drawn = build_maker("control.tracks", {"points": "frames"})(frames, np.random.default_rng(0), source)
    assert drawn["tracks"] == [[[120 + 20 * i, 300] for i in range(6)], [[60, 50]]]


# --- tracked points ---


def test_points_are_tracked_and_lost():
    frames = moving(12, 128, 160)[..., 1]  # the texture slides left by two pixels a frame
    points, visible = track_points(list(frames), lost=0.5)
    assert len(points) > 30
    steps = np.diff(points, axis=1)[visible[:, 1:]]
    assert np.quantile(np.abs(steps - (-2, 0)), 0.95) < 0.1
    assert not visible[points[:, 0, 0] < 20, -1].any()  # they left the picture
    assert (np.diff(visible.astype(int), axis=1) <= 0).all()
    cut = [*frames[:6], *moving(6, 128, 160, seed=9)[..., 1]]
    assert track_points(cut, lost=0.5)[1][:, 6:].mean() < 0.1
    assert track_points([np.zeros((64, 64), np.uint8)] * 3, 1.0)[0].shape == (0, 3, 2)


def test_tracked_points_are_drawn_and_recorded():
    frames = moving(9, 128, 160)
    maker = build_maker("control.tracks", {"count": [5, 9]})
    reference, drawn = maker(frames, np.random.default_rng(3), whole_clip(frames))
    assert reference.shape == frames.shape
    assert 5 <= len(drawn["tracks"]) <= 9
    assert drawn["coverage"] == max(map(len, drawn["tracks"])) / 9
    assert all(len(track) >= 4.5 for track in drawn["tracks"])
    second, second_record = maker(frames, np.random.default_rng(3), whole_clip(frames))
    assert (second == reference).all()
    assert second_record == json.loads(json.dumps(drawn))
    assert maker(frames, np.random.default_rng(4), whole_clip(frames))[1] != drawn
    empty_reference, empty_record = maker(np.zeros_like(frames), np.random.default_rng(3), whole_clip(frames))
    assert not empty_reference.any()
    assert empty_record == {"tracks": [], "coverage": 0}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"count": [3.5, 4]}, "must be whole numbers"),
        ({"count": [9, 4]}, "from small to large"),
        ({"points": "samples"}, "points='samples' is not spline or frames"),
        ({"shortest": 2}, r"shortest=2 must lie in \[0, 1\]"),
    ],
)
def test_bad_arguments_of_tracks_are_named(args, message):
    with pytest.raises(ConfigError, match=message):
        build_maker("control.tracks", args)


# --- union ---

CONTROLS = {
    "control.canny": {"weight": 2, "args": {"low": 50, "blur": 1, "thickness": 2}},
    "degrade.grey": {},
    "control.tracks": {"args": {"count": [3, 3]}},
}


def test_a_union_gives_each_control_its_share_of_every_clip():
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    maker = build_maker("union", {"controls": CONTROLS})
    totals: Counter[str] = Counter()
    for clip in "abcdef":
        sources = (replace(whole_clip(frames), clip=clip, number=n) for n in range(40))
        counts = Counter(maker(frames, np.random.default_rng(0), source)[1]["control"] for source in sources)
        assert abs(counts["control.canny"] - 20) <= 2
        assert abs(counts["degrade.grey"] - 10) <= 2
        totals += counts
    assert abs(totals["control.canny"] - 120) <= 3


def test_a_union_gives_the_references_of_its_controls():
    frames = list(moving(5, 96, 128))
    union = build_maker("union", {"controls": CONTROLS})
    controls = set()
    for number in range(8):
        for crop, flip in (((30, 40), False), ((0, 90), True)):
            window = Window("a", number, (0, 1, 2, 3, 4), (96, 128), crop, (32, 32), flip, 25.0)
            reference, drawn = make_reference(frames, window, union, SourceVideo(Path()), [number], ReferenceScale())
            control = drawn.pop("control")
            maker = build_maker(control, CONTROLS[control].get("args", {}))
            expected, expected_record = make_reference(
                frames, window, maker, SourceVideo(Path()), [number], ReferenceScale()
            )
            assert (reference == expected).all()
            assert drawn == expected_record
            controls.add(control)
    assert controls == set(CONTROLS)


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({}, "controls is empty: name makers"),
        ({"control.cany": {}}, r"task\.maker='control\.cany' is not one of"),
        ({"control.canny": {"wait": 1}}, r"controls\.control\.canny has wait; allowed: weight and args"),
        ({"control.canny": {"weight": 0}}, r"controls\.control\.canny\.weight=0 must lie in"),
        ({"control.canny": {"args": {"size": 3}}}, "size=3 must lie in"),
    ],
)
def test_bad_unions_are_named(controls, message):
    with pytest.raises(ConfigError, match=message):
        build_maker("union", {"controls": controls})


# --- canny at every resolution ---


def band(height: int) -> np.ndarray:
    """One frame (1,H,W,3) with a vertical edge in its middle."""
    frames = np.zeros((1, height, height, 3), np.uint8)
    frames[:, :, height // 2 :] = 200
    return frames


def width_of(args: dict, height: int) -> float:
    """Width of the drawn line in pixels. A grey pixel counts as a fraction of a pixel."""
    frames = band(height)
    drawing, _ = build_maker("control.canny", args)(frames, np.random.default_rng(0), whole_clip(frames))
    return float(drawing[0, height // 2, :, 0].sum()) / 255


def test_the_thickness_of_lines_follows_the_settings_at_every_resolution():
    assert [width_of({"thickness": 2}, height) for height in (128, 256, 512)] == [2, 2, 2]
    relative = {"thickness": 2, "reference_height": 128}
    assert [width_of(relative, height) for height in (64, 128, 256, 512)] == [1, 2, 4, 8]
    working_size = {"thickness": 2, "size": 128}
    assert [width_of(working_size, height) for height in (64, 128, 256, 512)] == pytest.approx([1, 2, 4, 8], rel=0.05)
    with pytest.raises(ConfigError, match="size and reference_height cannot both be set"):
        build_maker("control.canny", {"size": 512, "reference_height": 512})


def test_edges_at_a_working_size_do_not_end_at_the_crop():
    frames = list(moving(1, 192, 256))
    maker = build_maker("control.canny", {"low": 40, "high": 90, "size": 48})
    window = Window("a", 0, (0,), (192, 256), (48, 64), (96, 96), False, 25.0)
    reference, _ = make_reference(frames, window, maker, SourceVideo(Path()), [0], ReferenceScale())
    assert reference.shape == (1, 96, 96, 3)
    assert reference[0, :2].any() or reference[0, -2:].any()


def test_points_at_even_times_lie_on_the_curve_of_the_editor() -> None:
    points = np.array([[3.0, 4.0], [20.0, 9.0], [31.0, 30.0], [8.0, 40.0]])
    for count in (1, 2, 3, 4):
        even = timed_spline(points[:count], np.linspace(0, 12, count), 13)
        np.testing.assert_allclose(even, spline(points[:count], 13), atol=1e-9)


def test_a_point_at_a_frame_is_there_at_that_frame_and_stands_still_outside_of_its_times() -> None:
    points, frames = np.array([[3.0, 4.0], [20.0, 9.0], [31.0, 30.0]]), np.array([2.0, 3.0, 9.0])
    track = timed_spline(points, frames, 13)
    np.testing.assert_allclose(track[[2, 3, 9]], points)
    np.testing.assert_allclose(track[:2], points[:1].repeat(2, 0))
    np.testing.assert_allclose(track[10:], points[2:].repeat(3, 0))
    middle = timed_spline(points[:2], frames[[0, 2]], 13)
    np.testing.assert_allclose(middle[4], points[0] + (points[1] - points[0]) * 2 / 7)


def test_single_frames_are_drawn_as_in_the_whole_clip() -> None:
    points = np.stack([spline(np.array([[3.0, 4.0], [20.0, 9.0], [31.0, 30.0]]), 60)])
    visible = np.ones(points.shape[:2], bool)
    whole = draw_tracks(points, visible, (32, 48), 3.0)
    np.testing.assert_array_equal(draw_tracks(points, visible, (32, 48), 3.0, [0, 7, 59]), whole[[0, 7, 59]])
