"""Sets with several controls: each window is judged by its own, each control for itself, and all of them together."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from eval.clips.clip_source import ClipSource
from eval.clips.windows import HeldOut, Window, donors_for, partners
from eval.metrics import GroundTruth, Suite
from eval.metrics.structure import Readers
from eval.run import evaluate
from eval.scores import judged
from iclora_train.config import ConfigError, Task
from iclora_train.core.types import Pair
from iclora_train.data.controls import Control, controls_of, drawn_of, makers_of, mixed_controls
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.signals.edges import CannyEdges
from iclora_train.signals.track_drawing import draw_tracks
from tests.doses import scene
from tests.eval_world import World, build, scores
from tests.test_depth import write_network
from tests.test_eval import SCHEMA, violations

pytestmark = pytest.mark.usefixtures("one_thread")

CONTROLS = {"control.canny": {"weight": 1, "args": {"low": 50}}, "control.tracks": {}, "control.pose": {"weight": 2}}
UNION = Task("union", "structure", maker="union", maker_args={"controls": CONTROLS})


def record_of(control: str, **drawn: object) -> dict[str, Any]:
    """The record of a pair whose reference a union has made."""
    return {"maker": "union", "args": {"controls": CONTROLS}, "drawn": {"control": control, **drawn}}


# ---- which control


def test_the_record_names_the_control_of_a_window() -> None:
    assert controls_of(UNION, record_of("control.canny")) == (Control("control.canny", {"low": 50}),)
    assert controls_of(UNION, record_of("control.pose"))[0].name == "pose"
    single = {"maker": "control.canny", "args": {"low": 30}, "drawn": {}}
    assert controls_of(UNION, single) == (Control("control.canny", {"low": 30}),)
    assert controls_of(UNION, {})[0].name == "union"  # a pair of another program names none
    assert controls_of(Task("a", "edit", maker="edit.loop"), {})[0].name == "edit.loop"


def test_a_union_may_hold_a_union() -> None:
    args = {"controls": {"control.pose": {}, "union": {"args": {"controls": CONTROLS}}}}
    record = {"maker": "union", "args": args, "drawn": {"control": "control.canny"}}
    assert controls_of(UNION, record) == (Control("control.canny", {"low": 50}),)
    assert makers_of(replace(UNION, maker_args=args)) == set(CONTROLS)


def test_a_pair_with_several_references_has_several_controls() -> None:
    tracks = [[[1.0, 2.0], [3.0, 2.0]]]
    parts = [
        {"maker": "control.canny", "args": {}},
        {"maker": "control.tracks", "args": {}, "drawn": {"tracks": tracks}},
    ]
    record = {"references": [*parts, parts[0]]}
    assert [control.name for control in controls_of(UNION, record)] == ["canny", "tracks"]
    assert drawn_of(record) == {"tracks": tracks}


def test_a_control_without_a_window_is_not_forgotten() -> None:
    windows = [controls_of(UNION, record_of("control.canny"))] * 3
    assert list(mixed_controls(UNION, windows)) == ["canny", "tracks", "pose"]
    canny = Task("canny", "structure", maker="control.canny")
    assert mixed_controls(canny, windows) == {}
    assert list(mixed_controls(canny, [*windows, (Control("control.pose"),)])) == ["canny", "pose"]
    assert mixed_controls(replace(UNION, family="restoration"), windows) == {}


def test_a_reference_is_swapped_for_one_of_the_same_control() -> None:
    sources, kinds = list("aabbcc"), ["canny", "pose", "pose", "canny", "pose", "canny"]
    result = partners(sources, kinds)
    assert all(kinds[i] == kinds[j] and sources[i] != sources[j] for i, j in enumerate(result))
    assert partners(list("aab"), ["canny", "pose", "canny"]) == [2, 2, 0]  # no other recording has a pose
    assert donors_for(["canny", "pose", "depth"], ["pose", "canny"]) == [1, 0, 0]


# ---- which metric


def change_bias(folder: Path) -> None:
    """Other weights in the same folder, as of a network that was trained further."""
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["head.conv3.bias"] += 0.5
    safetensors.torch.save_file(weights, file, {"format": "pt"})


def truth(controls: tuple[str, ...], **drawn: object) -> GroundTruth:
    return GroundTruth(scene(), scene(1), scene(), record={"drawn": drawn}, controls=controls)


def test_a_window_is_measured_by_the_metrics_of_its_own_control() -> None:
    suite = Suite.of(UNION, controls=mixed_controls(UNION, []))
    tracks = [[[30.0 - t, 20.0] for t in range(9)]]
    edges, both = truth(("canny",), tracks=tracks), truth(("canny", "tracks"), tracks=tracks)
    assert (suite.primary, suite.adherence) == ("agreement", "agreement")
    assert suite.readers == {"canny": "Canny edges", "tracks": "Lucas-Kanade tracks", "pose": "BlazePose"}
    keys = [metric.key for metric in suite.metrics]
    assert len(keys) == len(set(keys))
    assert {"agreement", "edge_f1", "track_error", "pose_pck"} <= set(keys)
    measured = suite.measure(scene(1), edges)
    assert measured.values.keys().isdisjoint({"track_error", "pose_pck"})
    assert measured.frames.keys() == {"psnr", "edge_f1"}
    measured = suite.measure(scene(1), both)
    assert {"edge_f1", "track_error"} <= measured.values.keys()
    assert measured.frames.keys() == {"psnr", "edge_f1", "track_error"}
    assert (suite.control(scene(), edges) == CannyEdges(low=50).draw(scene(), (64, 64))).all()


def test_depth_is_read_by_the_network_that_is_given(tmp_path: Path) -> None:
    own, other, namesake = (write_network(tmp_path / name, "relative") for name in ("own", "other", "more/own"))
    made = Task("depth", "structure", maker="control.depth", maker_args={"model": str(own)})
    given = Task("depth", "structure", maker="control.depth_given")
    assert re.fullmatch(r"depth_anything own \([0-9a-f]{8}\)", Suite.of(made).readers["depth"])
    assert Suite.of(made, readers=Readers(depth=str(other))).readers["depth"].startswith("depth_anything other (")
    change_bias(namesake)
    assert Suite.of(made, readers=Readers(depth=str(namesake))).readers != Suite.of(made).readers
    assert Suite.of(given).readers == {"depth_given": "Canny edges instead of depth error (si-RMSE)"}
    assert "eval.depth_network" in Suite.of(given).not_run[0].reason
    suite = Suite.of(given, readers=Readers(depth=str(other)))
    assert (suite.primary, suite.not_run) == ("depth_error", ())
    assert suite.measure(scene(1), truth(())).values["depth_error"] > 0
    gone = replace(made, maker_args={"model": str(tmp_path / "gone")})
    assert Suite.of(gone).primary == "edge_f1"
    assert Suite.of(gone, readers=Readers(depth=str(other))).primary == "depth_error"
    with pytest.raises(ConfigError, match=r"eval.depth_network=.*gone is not the folder of a depth network"):
        Suite.of(made, readers=Readers(depth=str(tmp_path / "gone")))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"eval.depth_network=.* is not a depth network"):
        Suite.of(made, readers=Readers(depth=str(tmp_path)))


def test_poses_are_read_by_the_network_that_is_given() -> None:
    pose = Task("pose", "structure", maker="control.pose", maker_args={"model": "gone.onnx"})
    with pytest.raises(ConfigError, match=r"task.maker_args.model=.*gone.onnx does not exist"):
        Suite.of(pose)
    assert Suite.of(pose, readers=Readers(pose="blazepose")).readers == {"pose": "BlazePose"}
    with pytest.raises(ConfigError, match=r"eval.pose_network=.*other.onnx does not exist"):
        Suite.of(pose, readers=Readers(pose="other.onnx"))


@pytest.mark.parametrize("chosen", ["blazepose", "other.onnx"])
def test_a_chosen_pose_network_is_not_replaced_by_edges(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pose = Task("pose", "structure", maker="control.pose")
    monkeypatch.setattr("iclora_train.signals.blazepose.is_installed", lambda: False)
    assert Suite.of(pose).primary == "edge_f1"
    with pytest.raises(ConfigError, match=rf"eval.pose_network={chosen} .*pip install 'iclora_train\[pose\]'"):
        Suite.of(pose, readers=Readers(pose=chosen))


def test_a_picture_as_reference_and_optical_flow_have_metrics_too() -> None:
    sheet = Task("ingredients", "edit", maker="edit.loop")
    assert Suite.of(sheet).measure(scene(), truth(())).values["psnr"] == 100
    union = replace(UNION, maker_args={"controls": {"control.flow": {}, "edit.loop": {}}})
    suite = Suite.of(union, controls=mixed_controls(union, []))
    assert {name: metrics.primary for name, metrics in suite.controls.items()} == {
        "flow": "tof",
        "edit.loop": "edge_f1",
    }
    holes = Task("in_out", "edit", maker="union", maker_args={"controls": {"edit.hole": {}, "edit.outpaint": {}}})
    assert Suite.of(holes).primary == "psnr_outside"


# ---- a whole evaluation


def controlled(pair: Pair, window: int) -> Pair:
    """Canny in the first window of a clip; tracks in the second, or depth if the name of the clip begins with d.

    The blocks of one clip move to the left, those of the next to the right, and their borders lie elsewhere.
    """
    frames, height, width = pair.target.shape[:3]
    clip = pair.key.split("-")[1]
    number = sum(clip.encode())
    direction = 1 if number % 2 else -1
    target = np.ascontiguousarray(np.roll(pair.target, (number % 7, number % 5), axis=(1, 2))[::-direction])
    control = "control.canny" if window == 0 else "control.depth" if clip.startswith("d") else "control.tracks"
    starts = ((12.0, 8.0), (20.0, 22.0), (18.0, 14.0))
    tracks = np.array([[(x + direction * t, y) for t in range(frames)] for x, y in starts])
    drawn: dict[str, Any] = {"control": control}
    if control == "control.tracks":
        drawn["tracks"] = tracks.tolist()
        reference = draw_tracks(tracks, np.ones(tracks.shape[:2], bool), (height, width), 4.0)
    elif control == "control.depth":
        reference = target.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
    else:
        reference = CannyEdges().draw(target, (height, width))
    record = {**pair.record, "maker": "union", "drawn": drawn}
    return replace(pair, target=target, references=(reference,), record=record)


def round_trip(source: ClipSource, window: Window) -> np.ndarray:
    """The target with a little noise, as from a trained VAE: that of a random one shows nothing."""
    target = source.held_out.pair(window).target
    noise = np.random.default_rng(window.number).normal(0, 4, target.shape)
    return (target + noise).round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("union")
    network = write_network(root / "network", "relative")
    settings = (
        "task.reference_downscale=1",
        "+task.maker_args.controls={control.tracks:{weight:1},control.depth:{weight:1,args:{model:gone}}}",
        "eval.windows=22",
        "eval.seeds=[0]",
        "eval.batch_size=11",
        f"eval.depth_network={network}",
        f"eval.junit={root / 'claims.xml'}",
    )
    clips = {"train": ["sea", "road"], "heldout": [*"abcefghi", "da", "db", "dc"]}
    world = build(root, clips, task="union", settings=settings, controlled=controlled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipSource, "round_trip", round_trip)
        evaluate(world.config())
    return world


def test_a_union_is_evaluated_by_control_and_together(evaluated: World) -> None:
    result = scores(evaluated)
    assert violations(result, SCHEMA) == []
    assert result["primary"] == result["adherence"] == "agreement"
    own = {name: (entry["metric"], len(entry["windows"])) for name, entry in result["controls"].items()}
    assert (own["canny"], own["pose"]) == (("edge_f1", 11), ("pose_pck", 0))
    assert (own["tracks"], own["depth"]) == (("track_error", 8), ("depth_error", 3))
    for name, entry in result["controls"].items():
        assert {result["clips"][i]["control"] for i in entry["windows"]} <= {name}
        donors = {clip["partner"] for clip in result["clips"] if clip["control"] == name}
        assert donors == {result["clips"][i]["key"] for i in entry["windows"]}
    assert result["readers"]["depth"].startswith("depth_anything network (")
    tracks = result["windows"]["adapter+reference"]["track_error"]
    assert [i for i, value in enumerate(tracks) if value is not None] == result["controls"]["tracks"]["windows"]


def test_fewer_windows_than_there_are_show_every_control_equally_often(evaluated: World) -> None:
    windows = HeldOut.open(evaluated.config("eval.windows=9"), BaseModel.open(str(evaluated.root / "base")))
    kinds = Counter(windows.controls[window.key][0].name for window in windows.windows)
    assert kinds == {"canny": 3, "tracks": 3, "depth": 3}  # all three of depth, which has 3 of 22
    assert len({window.source for window in windows.windows}) >= 8


def test_small_and_absent_controls_are_named_and_decide_nothing(evaluated: World) -> None:
    result = scores(evaluated)
    few = {name for name, entry in result["controls"].items() if entry["too_few"]}
    assert few == {"pose", "depth"}
    assert {"follows.pose", "picture.pose", "swap_floor.pose"} <= set(result["gates"]["not_measured"])
    assert all(v["outcome"] == "inconclusive" for v in result["verdicts"] if v.get("control") in few)
    assert result["controls"]["pose"]["outcome"] == "inconclusive"
    assert "agreement" in result["cells"]["adapter+reference"]


def test_the_common_scale_goes_from_another_clip_to_the_round_trip(evaluated: World) -> None:
    result = scores(evaluated)
    usable = {name: entry for name, entry in result["controls"].items() if entry["in_agreement"]}
    assert "canny" in usable
    for entry in usable.values():
        for row, end in (("floor", 0), ("ceiling", 1)):
            values = [result["windows"][row]["agreement"][i] for i in entry["windows"]]
            assert np.mean(values) == pytest.approx(end, abs=1e-4)  # every recording has one window of a control
        if entry["metric"] == "depth_error":
            continue  # of a random network: too small for the digits of scores.json
        i = entry["windows"][0]
        value = result["windows"]["swapped"][entry["metric"]][i]
        expected = (value - entry["floor"]) / (entry["ceiling"] - entry["floor"])
        assert result["windows"]["swapped"]["agreement"][i] == pytest.approx(expected, abs=1e-4)


def test_every_verdict_of_a_union_follows_from_its_scores(evaluated: World) -> None:
    result = scores(evaluated)
    again = judged(result, result["mask"]["band_pixels"], result["mask"]["band_frames"])
    assert json.loads(json.dumps(again)) == {key: result[key] for key in again}


def test_the_report_and_the_tests_of_a_ci_server_name_the_controls(evaluated: World) -> None:
    page = (evaluated.results / "report.html").read_text()
    assert "Each control" in page
    assert "8 windows of 8 recordings" in page
    assert "too few to decide" in page
    assert "swap_floor.tracks" in page
    claims = (evaluated.root / "claims.xml").read_text()
    assert 'name="edge_gap.canny"' in claims


# ---- several references in a window


def with_two_references(pair: Pair, window: int) -> Pair:
    """Edges and tracks of the same target, as two references."""
    parts = [controlled(replace(pair, key=f"{pair.key[0]}-a-0"), number) for number in (0, 1)]
    made = [{"maker": part.record["drawn"]["control"], "args": {}, "drawn": part.record["drawn"]} for part in parts]
    references = tuple(part.references[0] for part in parts)
    return replace(pair, target=parts[0].target, references=references, record={**pair.record, "references": made})


def test_every_reference_of_a_window_is_scored_by_its_own_metric(tmp_path: Path) -> None:
    settings = ("task.reference_downscale=1", "eval.seeds=[0]", "eval.strengths=[1,0]")
    world = build(tmp_path, task="canny", settings=settings, controlled=with_two_references)
    evaluate(world.config())
    result = scores(world)
    assert violations(result, SCHEMA) == []
    assert {clip["control"] for clip in result["clips"]} == {"canny + tracks"}
    assert [(n, c["metric"], c["windows"]) for n, c in result["controls"].items()] == [
        ("canny", "edge_f1", [0, 1, 2, 3]),
        ("tracks", "track_error", [0, 1, 2, 3]),
    ]
    row, parts = result["windows"]["adapter+reference"], []
    for entry in result["controls"].values():
        if entry["in_agreement"]:
            scale = entry["ceiling"] - entry["floor"]
            parts.append((np.array(row[entry["metric"]]) - entry["floor"]) / scale)
    if parts:
        assert row["agreement"] == pytest.approx(np.mean(parts, axis=0).tolist(), abs=1e-3)
    names = {verdict["name"] for verdict in result["verdicts"]}
    assert {"swap_floor.canny", "swap_floor.tracks"} <= names
