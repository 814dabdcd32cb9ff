"""Several references per clip: each is placed in its own way, swapped and left out alone, and judged by a claim."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from eval.budget import SAMPLING_SHARE
from eval.clips.conditions import Condition, Item, all_conditions, at_strength, of_each_reference
from eval.clips.cost import ClipCost
from eval.clips.external import read_external_clip
from eval.clips.resized import ResizedHeldOut
from eval.clips.sampled import SampledClips
from eval.clips.windows import HeldOut
from eval.handout import write_handout
from eval.judging.answer import answer
from eval.judging.evidence import Evidence
from eval.judging.ranking import first_examples
from eval.judging.verdicts import Verdict, judge
from eval.metrics import Suite
from eval.report import wandb_log
from eval.report.media import Media
from eval.run import evaluate, open_source
from eval.scores import judged
from eval.scoring.measuring_time import MeasuringTime
from eval.suites import metric_of_each_reference
from iclora_train.config import ConfigError, Task, Thresholds
from iclora_train.config.evaluation import Eval
from iclora_train.config.references import MoreReference
from iclora_train.core.results_folder import results_folder
from iclora_train.core.types import Pair
from iclora_train.data.controls import controls_of, mixed_controls
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.clip import read_clip
from iclora_train.media.picture import read_picture
from iclora_train.media.shard_clip import encode_clip
from iclora_train.signals.edges import CannyEdges
from scripts.zoo_table import write_table
from tests.command import run
from tests.eval_world import (
    World,
    build,
    compose_config,
    refused,
    scores,
    without_evaluation,
    without_run,
    write_adapter,
)
from tests.test_eval import SCHEMA, violations
from tests.test_extra_metrics import write_videomae

pytestmark = pytest.mark.usefixtures("one_thread")

STILL = MoreReference("still", "edit.frame", {"frame": -1}, downscale=2, frame=-1)
OVERRIDE = "task.more_references=[{name: still, maker: edit.frame, maker_args: {frame: -1}, downscale: 2, frame: -1}]"
SETTINGS = ("task.reference_downscale=1", OVERRIDE, "eval.seeds=[0]", "eval.strengths=[1,0]")
LAYOUT = json.dumps([STILL.layout()])
NAMES = ["first", "still"]


def with_still(pair: Pair, window: int) -> Pair:
    """Edges of the target, and its last frame at half the size."""
    _, height, width, _ = pair.target.shape
    edges = CannyEdges().draw(pair.target, (height, width))
    small = cv2.resize(pair.target[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    made = [
        {"name": "first", "maker": "control.canny", "args": {}, "drawn": {}},
        {"name": "still", "maker": "edit.frame", "args": {"frame": -1}, "drawn": {}},
    ]
    return replace(pair, references=(edges, small[None]), record={**pair.record, **made[0], "references": made})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world of two references that is not evaluated yet."""
    world = build(tmp_path_factory.mktemp("several"), task="canny", settings=SETTINGS, controlled=with_still)
    write_adapter(world.adapter, BaseModel.open(str(world.root / "base")), more_references=LAYOUT)
    return world


@pytest.fixture(scope="module")
def evaluated(world: World) -> World:
    weights = write_videomae(world.root / "videomae")
    evaluate(world.config("eval.metrics=[fvd,warp_own]", f"eval.weights.fvd={weights}"))
    return world


@pytest.fixture
def source(world: World) -> SampledClips:
    source = open_source(world.config())
    assert isinstance(source, SampledClips)
    return source


def by_name(source: SampledClips, name: str) -> Condition:
    return next(condition for condition in source.conditions if condition.name == name)


# ---- sampling


def test_each_reference_is_swapped_and_left_out() -> None:
    names = [condition.name for condition in all_conditions([1, 0], references=NAMES)]
    of_each = ["swapped first", "swapped still", "without first", "without still"]
    assert names[names.index("swapped") + 1 :][:4] == of_each
    assert all_conditions([1, 0], references=["first"]) == all_conditions([1, 0])
    assert len(names) == Eval(strengths=[1, 0], seeds=[0]).clips_of(1, references=2)
    assert of_each_reference([]) == of_each_reference(["first"]) == []


def test_one_reference_is_weakened_alone(source: SampledClips, world: World, tmp_path: Path) -> None:
    conditions = of_each_reference(NAMES, [0.1, 0.5])[4:]
    names = [condition.name for condition in conditions]
    assert names == ["weakened first 0.5", "weakened first 0.1", "weakened still 0.5", "weakened still 0.1"]
    batch = [Item(window, 0) for window in source.held_out.windows]
    strengths = [[r.attention_strength for r in source._references(c, batch, source.held_out)] for c in conditions]
    assert strengths == [[0.5, 1], [0.1, 1], [1, 0.5], [1, 0.1]]
    assert (
        len({json.dumps(source.specification(c, batch)) for c in [at_strength(1), at_strength(0.5), *conditions]}) == 6
    )
    settings = Eval(strengths=[1, 0], seeds=[0], reference_strengths=[0.5])
    assert settings.clips_of(1, references=2) == len(all_conditions([1, 0], True, NAMES, [0.5]))
    of_world = without_evaluation(world, tmp_path)
    config = of_world.config("eval.reference_strengths=[0.5]", "eval.windows=3")
    plain, asked = (results_folder(c, tmp_path / "eval") for c in (of_world.config("eval.windows=3"), config))
    assert plain != asked
    evaluate(config)
    (path,) = tmp_path.rglob("scores.json")
    assert results_folder(config, path.parent) == path.parent
    assert results_folder(of_world.config("eval.windows=3"), path.parent) != path.parent
    result = json.loads(path.read_text())
    assert violations(result, SCHEMA) == []
    for name in ("weakened first 0.5", "weakened still 0.5"):
        assert result["cells"][name]["psnr"]["mean"] > 0
        assert name in result["paired"]
        assert name in path.with_name("report.html").read_text()
    with pytest.raises(ConfigError, match="weakens one of several references, and task canny has 1: use"):
        of_world.config("eval.reference_strengths=[0.5]", "task.more_references=[]")


def test_references_have_their_own_place_and_their_own_grid(source: SampledClips) -> None:
    batch = [Item(window, 0) for window in source.held_out.windows]
    edges, still = source._references(at_strength(0.5), batch, source.held_out)
    assert (edges.downscale, edges.frame, edges.latent.shape[-3:]) == (1, 0, (2, 4, 4))
    assert (still.downscale, still.frame, still.latent.shape[-3:]) == (2, -1, (1, 2, 2))
    assert edges.attention_strength == still.attention_strength == 0.5
    halves = [r.attention_mask for r in source._references(by_name(source, "half mask"), batch, source.held_out)]
    assert [mask.shape[-1] for mask in halves if mask is not None] == [8, 4]
    edges, still = source._references(by_name(source, "fade mask"), batch, source.held_out)
    assert edges.attention_mask is not None
    assert still.attention_mask is not None
    assert edges.attention_mask[0].flatten().tolist() == [0, 1]
    assert still.attention_mask[0].flatten().tolist() == [1]  # at the last frame of the target, where the fade ends


def test_references_are_sampled_with_the_strengths_of_their_training(source: SampledClips) -> None:
    batch = [Item(window, 0) for window in source.held_out.windows]
    plain = source.specification(at_strength(1), batch)
    more = [replace(STILL, strength=[0.2, 0.6], attention_strength=0.8)]
    task = replace(source.config.task, reference_noise=0.3, more_references=more)
    source.config = replace(source.config, task=task)
    edges, still = source._references(at_strength(0.5), batch, source.held_out)
    assert (edges.strength, edges.attention_strength) == (1, 0.5)
    assert (still.strength, still.attention_strength) == (0.6, 0.4)
    assert source.specification(at_strength(1), batch) == {**plain, "strengths": [(1, 1), (0.6, 0.8)]}


def test_another_strength_than_that_of_training_is_refused(world: World, tmp_path: Path) -> None:
    weak = json.dumps([{**STILL.layout(), "strength": 0.5}])
    path = tmp_path / "weak.safetensors"
    write_adapter(path, BaseModel.open(str(world.root / "base")), more_references=weak)
    with pytest.raises(ConfigError, match=r"strength 0.5 and attention strength 1 of reference still, and task\.more"):
        open_source(world.config(f"adapter={path}"))
    assert open_source(world.config(f"adapter={path}", OVERRIDE.replace("frame: -1}]", "frame: -1, strength: 0.5}]")))


def test_a_condition_changes_only_its_own_reference(source: SampledClips) -> None:
    batch = [Item(window, 0) for window in source.held_out.windows]
    partners = [Item(source.held_out.windows_and_donors[item.window.partner], 0) for item in batch]
    own, other = (
        [reference.latent for reference in source._references(at_strength(1), items, source.held_out)]
        for items in (batch, partners)
    )
    assert not torch.equal(own[1], other[1])
    expected = {
        "adapter+reference": own,
        "swapped": other,
        "swapped first": [other[0], own[1]],
        "swapped still": [own[0], other[1]],
        "without first": [own[1]],
        "without still": [own[0]],
        "adapter": [],
    }
    for name, latents in expected.items():
        made = source._references(by_name(source, name), batch, source.held_out)
        assert len(made) == len(latents), name
        assert all(torch.equal(a.latent, b) for a, b in zip(made, latents, strict=True)), name
    (still,) = source._references(by_name(source, "without first"), batch, source.held_out)
    assert (still.frame, still.number) == (-1, 1)  # it keeps its frame and its learned slot


def test_clips_are_cached_by_what_differs_and_ordinary_tasks_keep_their_cache(
    source: SampledClips, tmp_path: Path
) -> None:
    batch = [Item(source.held_out.windows[0], 0)]
    specs = [json.dumps(source.specification(c, batch), sort_keys=True) for c in source.conditions]
    assert len(set(specs)) == len(specs)
    moved = [replace(STILL, frame=0)]
    source.config = replace(source.config, task=replace(source.config.task, more_references=moved))
    assert json.dumps(source.specification(source.conditions[0], batch), sort_keys=True) not in specs
    ordinary = open_source(build(tmp_path).config())
    assert isinstance(ordinary, SampledClips)
    for condition in ordinary.conditions:
        spec = ordinary.specification(condition, [Item(ordinary.held_out.windows[0], 0)])
        assert spec.keys() - {"mask", "text"} == {
            *("protocol", "base", "precision", "device", "latents", "adapter", "reference", "strength"),
            *("half_mask", "factors", "sigmas", "guidance", "items"),
        }


# ---- a whole evaluation


def test_every_reference_has_rows_differences_and_a_claim(evaluated: World) -> None:
    result = scores(evaluated)
    assert violations(result, SCHEMA) == []
    made = {"first": ("control.canny", "edge_f1"), "still": ("edit.frame", "psnr")}
    assert {n: (of["maker"], of["metric"]) for n, of in result["references"].items()} == made
    assert (result["primary"], result["adherence"], "controls" in result) == ("edge_f1", "edge_f1", False)
    own = np.array(result["windows"]["adapter+reference"]["edge_f1"])
    for name in ("swapped first", "swapped still", "without first", "without still"):
        row = result["windows"][name]["edge_f1"]
        difference = result["paired"][name]["edge_f1"]["mean"]
        assert difference == pytest.approx(np.mean(own - row), abs=1e-5)
        assert result["cells"][name]["psnr"]["n"] == 4
    psnr = {name: row["psnr"]["mean"] for name, row in result["cells"].items()}
    of_references = ("adapter+reference", "swapped", "swapped first", "swapped still", "without first", "without still")
    assert len({round(psnr[name], 6) for name in of_references}) == 6
    claims = {v["name"]: v for v in result["verdicts"] if v["name"].startswith("follows ")}
    assert claims.keys() == {"follows first", "follows still"}
    assert {v["kind"] for v in claims.values()} == {"diagnostic"}
    assert {v["outcome"] for v in claims.values()} == {"inconclusive"}  # of two recordings
    again = judged(result, result["mask"]["band_pixels"], result["mask"]["band_frames"])
    assert json.loads(json.dumps(again)) == {key: result[key] for key in again}


def test_the_report_shows_all_references_and_the_probes_say_why_they_are_not_run(evaluated: World) -> None:
    result, page = scores(evaluated), (evaluated.results / "report.html").read_text()
    for text in ("reference still", "swapped still", "without first", "follows still"):
        assert text in page, text
    players = page[page.index('<section class="window"') :]
    of_row = re.findall('data-column="([^"]+)"', players[: players.index("</section>")])
    assert of_row[:2] == ["reference first", "reference still"]
    first_screen = page[: page.index('<section class="window"')]
    titles = [re.findall("<figcaption><b>([^<]+)", row) for row in first_screen.split('class="example"')[1:]]
    assert titles
    for row in titles:
        assert row == ["reference first", "reference still", "without adapter", "with adapter", "target"]
    assert result["simple"]["of"] == 0
    assert {entry["reason"] for entry in result["simple"]["not_run"]} == {
        "the task has several references, and a probe draws one"
    }


def test_the_answer_says_which_references_are_used(evaluated: World) -> None:
    result = scores(evaluated)
    assert "; whether it uses the references first or still is not decided; " in answer(result)
    for outcomes, text in (
        (("holds", "holds"), "; it uses the references first and still; "),
        (("holds", "fails"), "; it uses the reference first; it does not use the reference still; "),
        (("fails", "fails"), "; it does not use the references first or still; "),
    ):
        changed = dict(zip(("follows first", "follows still"), outcomes, strict=True))
        verdicts = [{**v, "outcome": changed.get(v["name"], v["outcome"])} for v in result["verdicts"]]
        assert text in answer({**result, "verdicts": verdicts})
    page = (evaluated.results / "report.html").read_text()
    assert "synthetic probes: not run</a>" in page


def test_extra_metrics_and_sets_of_clips_have_rows_of_each_reference(evaluated: World) -> None:
    result, config = scores(evaluated), evaluated.config()
    of_one = [condition.name for condition in of_each_reference(config.task.reference_names)]
    rows, paired = result["sets"]["rows"], result["sets"]["paired"]
    names = list(rows)
    assert names[names.index("swapped") + 1 :][:4] == of_one
    assert len({round(rows[name]["fvd"]["mean"], 9) for name in of_one}) == 4
    for name in of_one:
        difference = rows["adapter+reference"]["fvd"]["mean"] - rows[name]["fvd"]["mean"]
        assert paired[name]["fvd"]["mean"] == pytest.approx(difference)
        assert result["cells"][name]["warp_own"]["n"] == result["paired"][name]["warp_own"]["n"] == 4
    time = MeasuringTime(features=1.0)
    assert time.of({"adapter+reference", *of_one}, 1, 1) - time.of({"adapter+reference"}, 1, 1) == 4
    page = (evaluated.results / "report.html").read_text()
    assert "adapter+reference - swapped still, paired" in page
    logged = {(row, minus) for row, minus, *_ in wandb_log.set_rows(result)}
    assert {*((name, None) for name in of_one), *(("adapter+reference", name) for name in of_one)} <= logged


def test_w_and_b_shows_each_reference_and_each_swap(evaluated: World) -> None:
    """The files that the report wrote stand in for those that a run of W&B gets."""
    result, media = scores(evaluated), Media(evaluated.results, with_files=True)
    media._files = {path.stem.rpartition("-")[0]: path for path in (evaluated.results / "media").glob("*.mp4")}
    columns, rows = wandb_log.clip_columns(result), list(wandb_log.clip_rows(media, result))
    shown = ["reference still", "swapped first", "swapped still", "without first", "without still"]
    assert columns[-5:] == shown
    assert len(rows) == 4
    for number, row in enumerate(rows):
        found = dict(zip(columns, row, strict=True))
        names = {name: found[name].name for name in ("reference", *shown)}
        assert {name: file[: -len("-12345678.mp4")] for name, file in names.items()} == {
            name: f"{number:03d}-{name.replace(' ', '-')}" for name in names
        }
    examples = list(wandb_log.example_rows(media, result))
    columns = wandb_log.example_columns(result)
    assert columns[-1] == "reference still"
    assert all(len(row) == len(columns) and "reference-still" in row[-1].name for row in examples)
    assert wandb_log.clip_columns({**result, "references": {}})[-1] != "reference still"


def test_a_picture_of_the_zoo_shows_all_references(evaluated: World, tmp_path: Path) -> None:
    write_table(tmp_path / "results.md", {"two": evaluated.results / "scores.json"}, [])
    text = (tmp_path / "results.md").read_text()
    assert "![reference, reference still, without the adapter, with it, target: middle frame" in text
    assert re.search(r"if one reference alone is swapped: first .*\(undecided\), still .*\(undecided\)\.", text)
    picture = cv2.imread(str(tmp_path / "zoo" / "two.jpg"))
    assert picture is not None
    number = first_examples(scores(evaluated))[1].number
    media = evaluated.results / "media"
    still = next(media.glob(f"{number:03d}-reference-still-????????.mp4"))
    frame = next(iter(read_clip(still)))
    height, width = frame.shape[:2]
    assert picture.shape == (height, 5 * width, 3)
    shown = picture[:, width : 2 * width, ::-1].astype(int)
    assert np.abs(shown - frame).mean() < 12  # losses of JPEG


def test_other_references_than_the_tasks_are_refused(world: World, tmp_path: Path) -> None:
    base, task = BaseModel.open(str(world.root / "base")), "evaluate it with the task that it was trained for"
    write_adapter(tmp_path / "one.safetensors", base)
    one = [*world.overrides, f"adapter={tmp_path / 'one.safetensors'}"]
    refused(compose_config(one), rf"no other one; task canny has still \(factor 2, at frame -1\).*{task}")
    single = build(tmp_path / "single", task="canny", settings=("task.reference_downscale=1",))
    single_base = BaseModel.open(str(tmp_path / "single" / "base"))
    write_adapter(single.adapter, single_base, more_references=LAYOUT)
    refused(single.config(), rf"still \(factor 2, at frame -1\); task canny has no other one.*{task}")


def test_pairs_with_another_number_of_references_are_refused(tmp_path: Path) -> None:
    world = build(tmp_path, task="canny", settings=SETTINGS)  # pairs of one reference
    refused(world.config(), r"its pairs have 1 references, and task.more_references makes it 2 \(first, still\)")


# ---- budget and processes


def test_a_budget_keeps_the_swap_of_each_reference(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budgeted = without_evaluation(world, tmp_path)
    monkeypatch.setattr(SampledClips, "measure_cost", lambda source, batch: ClipCost(5.0, 5.0, 0.0, 1))
    monkeypatch.setattr("eval.planning.measure_measuring", lambda *_: MeasuringTime())
    seconds = 4 * 10 * 5 / SAMPLING_SHARE  # four windows under five conditions
    report = evaluate(budgeted.config(f"eval.budget={seconds}s"))
    result = json.loads((report.parent / "scores.json").read_text())
    chosen = ["adapter+reference", "base+reference", "swapped", "swapped first", "swapped still"]
    assert result["plan"]["conditions"] == chosen
    assert violations(result, SCHEMA) == []
    assert {"follows first", "follows still"} <= {verdict["name"] for verdict in result["verdicts"]}
    table = capsys.readouterr().out
    assert re.search(r"without still .*left out", table)
    assert not re.search(r"swapped still .*left out", table)


def test_two_processes_give_the_scores_of_one(world: World, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone, shared = (without_evaluation(world, tmp_path / name) for name in ("one", "two"))
    for of_world, devices in ((alone, 1), (shared, 2)):
        result = run(of_world.root, "eval", *of_world.arguments, f"eval.devices={devices}")
        assert result.code == 0, result.err
    clips = 4 * len(all_conditions([1, 0], references=NAMES))
    assert f"{clips} clips in 13 conditions" in result.out
    assert "2 processes sample" in result.out
    assert without_run(scores(shared)) == without_run(scores(alone))


# ---- other programs and people


def test_a_handout_says_where_each_reference_belongs_and_a_study_shows_all(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    manifest = json.loads(write_handout(world.bare(f"videos={folder}")).read_text())
    alike = {"downscale": 1, "temporal_scale": 1, "frame": None}
    still = {"name": "still", "downscale": 2, "temporal_scale": 1, "frame": -1}
    assert manifest["references"] == {"reference0": {"name": "first", **alike}, "reference1": still}
    for window in manifest["windows"]:
        files = window["files"]
        assert {name: (entry["frames"], entry["height"]) for name, entry in files.items()} == {
            "reference0": (5, 32),
            "reference1": (1, 16),
            "target": (5, 32),
        }
        target = read_external_clip(folder / files["target"]["file"])
        picture = read_picture(folder / files["reference1"]["file"])
        assert np.array_equal(picture, cv2.resize(target[-1], (16, 16), interpolation=cv2.INTER_AREA))
        for side, level in (("a", 0), ("b", 40)):
            (tmp_path / side).mkdir(exist_ok=True)
            clip = (target // 2 + level).astype(np.uint8)
            (tmp_path / side / window["outputs"][0]).write_bytes(encode_clip(clip, 25.0))
    arguments = ("a", "b", "--out", "s", "--references", str(folder / "inputs"))
    result = run(tmp_path, "eval.study", *arguments)
    assert result.code == 0, result.err
    pairs = json.loads((tmp_path / "s" / "study.key.json").read_text())["pairs"]
    sections = re.findall(r'<section class="pair".*?</section>', (tmp_path / "s" / "study.html").read_text(), re.DOTALL)
    by_window = {window["key"]: window["files"] for window in manifest["windows"]}
    for pair, section in zip(pairs, sections, strict=True):
        assert re.findall("to follow: (first|still)</figcaption>", section) == ["first", "still"]
        assert [len(re.findall(f"<{tag} ", section)) for tag in ("video", "img")] == [3, 1]
        data = re.search(r"data:image/png;base64,([^\"]+)", section)
        assert data is not None
        shown = cv2.imdecode(np.frombuffer(base64.b64decode(data[1]), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        files = by_window[pair["name"].rpartition(".")[0]]
        picture = read_picture(folder / files["reference1"]["file"])
        assert np.array_equal(shown, cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA))


# ---- claims


def verdicts(swapped: dict[str, float], spread: float = 0.2, recordings: int = 6) -> dict[str, Verdict]:
    """The verdicts of an adapter of 25 dB, whose floor is 10 dB. swapped: PSNR when one reference is swapped."""
    rng = np.random.default_rng(0)
    levels = {"adapter+reference": 25.0, "floor": 10.0, "ceiling": 35.0, "input": 20.0, "base+reference": 15.0}
    levels |= {f"swapped {name}": level for name, level in swapped.items()}
    rows = {
        name: {"psnr": level + rng.normal(0, spread if name.startswith("swapped") else 0.01, 12)}
        for name, level in levels.items()
    }
    sources = [f"tape {i % recordings}" for i in range(12)]
    evidence = Evidence(rows, [], {}, sources, "psnr", references=dict.fromkeys(swapped, "psnr"))
    return {verdict["name"]: verdict for verdict in judge("restoration", evidence, Thresholds())}


def test_a_reference_is_followed_if_swapping_it_loses_a_share_of_the_gain() -> None:
    found = verdicts({"first": 12.0, "still": 23.5, "ignored": 25.0})
    assert {name: found[f"follows {name}"]["outcome"] for name in ("first", "still", "ignored")} == {
        "first": "holds",
        "still": "holds",
        "ignored": "fails",
    }
    assert found["follows still"]["value"]["mean"] == pytest.approx(1.5 / 15, abs=0.02)
    assert found["follows first"]["threshold"] == "≥ 0.05"


def test_an_interval_that_contains_the_threshold_decides_nothing() -> None:
    assert verdicts({"still": 24.2}, spread=2.0)["follows still"]["outcome"] == "inconclusive"
    assert verdicts({"still": 12.0}, recordings=2)["follows still"]["outcome"] == "inconclusive"


# ---- metrics and controls


def task_of(maker: str, *more: str, family: str = "structure", **settings: Any) -> Task:
    references = [MoreReference(f"r{number}", name) for number, name in enumerate(more)]
    return Task("t", family, maker=maker, more_references=references, **settings)


def record_of(task: Task) -> dict[str, Any]:
    """The record of a pair of a task."""
    return {"references": [{"maker": part.maker, "args": {}, "drawn": {}} for part in task.for_references()]}


@pytest.mark.parametrize(
    ("task", "mixed", "primary", "of_each"),
    [
        (task_of("control.canny", "edit.frame"), [], "edge_f1", ["edge_f1", "psnr"]),
        (task_of("control.flow", "edit.frame"), [], "tof", ["tof", "psnr"]),
        (task_of("edit.frame", "control.flow"), [], "tof", ["psnr", "tof"]),
        (
            task_of("control.flow", "control.tracks", "edit.frame"),
            ["flow", "tracks"],
            "agreement",
            ["tof", "track_error", "psnr"],
        ),
        (task_of("degrade.defocus", "edit.frame", family="restoration"), [], "psnr", ["psnr", "psnr"]),
        (task_of("degrade.grey", "edit.frame", family="colorize"), [], "chroma_error", ["psnr_y", "chroma_error"]),
    ],
)
def test_the_metric_of_a_task_is_that_of_its_first_control(
    task: Task, mixed: list[str], primary: str, of_each: list[str]
) -> None:
    controls = mixed_controls(task, [controls_of(task, record_of(task))] * 3)
    suite = Suite.of(task, controls=controls)
    assert (list(controls), suite.primary) == (mixed, primary)
    assert list(metric_of_each_reference(task, suite).values()) == of_each


def test_a_union_beside_a_picture_keeps_its_controls() -> None:
    union = task_of("union", "edit.frame", maker_args={"controls": {"control.canny": {}, "control.tracks": {}}})
    record = record_of(union)
    record["references"][0] |= {"args": union.maker_args, "drawn": {"control": "control.tracks"}}
    controls = mixed_controls(union, [controls_of(union, record)])
    assert list(controls) == ["canny", "tracks"]
    assert [control.name for control in controls_of(union, record)] == ["tracks"]
    suite = Suite.of(union, controls=controls)
    assert metric_of_each_reference(union, suite) == {"first": "agreement", "r0": "psnr"}


def test_windows_of_another_size_keep_the_factors_of_each_reference(world: World) -> None:
    config, base = world.config(), BaseModel.open(str(world.root / "base"))
    resized = ResizedHeldOut(HeldOut.open(config, base), (5, 16, 16), config.task, base.vae())
    edges, still = resized.pair(resized.windows[0]).references
    assert (edges.shape, still.shape) == ((5, 16, 16, 3), (1, 8, 8, 3))
