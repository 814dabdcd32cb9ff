"""A reference of one frame at a place that is drawn for each clip: pairs, shards, tokens, files and programs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_prep import pipeline
from data_prep.pairs import SourceVideo
from data_prep.reference_makers import makers_of_references
from eval.clips.conditions import Item, at_strength
from eval.clips.sampled import SampledClips
from eval.diagnosis.record import RecordSettings
from eval.diagnosis.references import _facts, _layouts
from eval.handout import _entry
from eval.run import open_source
from iclora_train.adapters import card
from iclora_train.adapters.comfyui_references import what_to_select
from iclora_train.adapters.comfyui_workflow import build_workflow
from iclora_train.adapters.file import Adapter
from iclora_train.adapters.loaders import frame_number, loader_limits
from iclora_train.adapters.metadata import FRAME, frame_text, metadata_findings
from iclora_train.adapters.references import ReferenceLayout, more_findings, references_metadata
from iclora_train.config import ConfigError, Flow, Task
from iclora_train.config.references import MoreReference
from iclora_train.core.fingerprint import content_settings
from iclora_train.core.types import Geometry, Pair
from iclora_train.data.batch import Batch, collate
from iclora_train.data.shard_sample import ClipRecord, _places
from iclora_train.data.shards import ShardSet
from iclora_train.diffusion.random_draws import draw_random, step_generator
from iclora_train.diffusion.sampler import Reference, clip_tokens
from iclora_train.diffusion.training_inputs import build_tokens
from iclora_train.generate.guides import reference_layouts, unusual_places
from iclora_train.ltx2.base_model import BaseModel
from tests.eval_world import World, build, write_adapter
from tests.prep import config_of, remake, write_clips
from tests.test_comfy_workflow import api_json, node_of, settings_for
from tests.test_generate import assets
from tests.test_generate import settings_for as generate_settings

__all__ = ["assets"]  # the fixture
GEOMETRY = Geometry(3, 8, 4)
SIZE = (5, 6, 8)  # 17 frames
IN_BETWEEN = ("conf=in_between", "task.reference_frame=[1,-2]")
EDGES = "{name: edges, maker: control.canny, maker_args: {low: 20, high: 60}, frame: any, p: 0.5}"
ANY = Task(name="x", maker="edit.frame", reference_frame="any")


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"reference_frame": "last"},
            r"task\.reference_frame='last' must be the number of a frame, .* \[first, last\]",
        ),
        ({"reference_frame": [1]}, r"task\.reference_frame=\[1\] must be the number of a frame"),
        ({"reference_frame": [1, 2.5]}, r"task\.reference_frame=\[1, 2\.5\] must be the number of a frame"),
        ({"reference_frame": True}, r"task\.reference_frame=True must be the number of a frame"),
        ({"reference_frame": [8, 3]}, r"task\.reference_frame=\[8, 3\] must be \[first, last\] with first <= last"),
        (
            {"reference_frame": "any", "reference_temporal_scale": 2},
            "=any and task.reference_temporal_scale=2 are both",
        ),
        (
            {"more_references": [MoreReference("a", "edit.frame", frame=[-1, -5])]},
            r"more_references\[0\]\.frame=\[-1, -5\] must be \[first, last\]",
        ),
    ],
)
def test_a_wrong_place_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Task(name="x", maker="edit.frame", **settings)


def test_edit_frame_must_show_the_frame_at_which_it_stands() -> None:
    with pytest.raises(ConfigError, match=r"task\.maker_args\.frame=-1: task\.reference_frame=any is drawn for each"):
        makers_of_references(ANY)
    makers_of_references(replace(ANY, maker_args={"frame": "any"}))
    more = MoreReference("key", "edit.frame", {"frame": [1, 2]}, frame=[1, 3])
    with pytest.raises(ConfigError, match=r"more_references\[0\] \(key\): task\.maker_args\.frame=\[1, 2\]: .* drawn"):
        makers_of_references(Task(name="x", maker="control.canny", more_references=[more]))


def test_bounds_that_a_clip_does_not_have_are_named(tmp_path: Path, base: Path, clips: Path) -> None:
    for frame, message in (("[1,5]", "reference_frame=5 does not exist in a clip of 5"), ("[4,-3]", "4 lies after 2")):
        config = config_of(tmp_path / "root", clips, base, "conf=in_between", f"task.reference_frame={frame}")
        with pytest.raises(ConfigError, match=message):
            pipeline.prepare(config)


def test_only_drawn_places_are_part_of_what_made_the_shards(tmp_path: Path, base: Path, clips: Path) -> None:
    for frame, expected in (("-1", None), ("any", "any"), ("[1,-2]", [1, -2])):
        config = config_of(tmp_path, clips, base, "conf=in_between", f"task.reference_frame={frame}")
        assert content_settings(config)["task"].get("reference_frame") == expected
    for frame, expected in (("0", False), ("any", True)):
        more = f"task.more_references=[{{name: a, maker: edit.frame, maker_args: {{frame: any}}, frame: {frame}}}]"
        (entry,) = content_settings(config_of(tmp_path, clips, base, more))["task"]["more_references"]
        assert ("frame" in entry) is expected


# ---- pairs and shards


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, base: Path, clips: Path) -> Path:
    """Windows of 5 frames with two references: frame 1, 2 or 3 as it is, and the edges of any frame."""
    checks = ("checks.contrast.action=warn", "checks.blank.action=warn", "checks.flicker.action=warn")
    more = f"task.more_references=[{EDGES}]"
    return pipeline.prepare(config_of(tmp_path_factory.mktemp("root"), clips, base, *IN_BETWEEN, more, *checks))


def test_a_reference_shows_exactly_the_frame_at_which_it_stands(
    prepared: Path, tmp_path: Path, base: Path, clips: Path
) -> None:
    pairs = ShardSet.open(prepared / "pairs")
    places = []
    for i in range(len(pairs)):
        pair = pairs.read_pair(i)
        picture, edges = pair.references
        first, second = (record["place"] for record in pair.record["references"])  # type: ignore[attr-defined]
        assert pair.record["place"] == first
        assert np.array_equal(picture, pair.target[[first]])
        assert edges.shape == (1, 32, 32, 3)
        places.append((first, second))
    assert {first for first, _ in places} == {1, 2, 3}
    assert {second for _, second in places} == {0, 1, 2, 3, 4}
    along = f"task.more_references=[{EDGES.replace('frame: any', 'frame: null')}]"
    checks = ("checks.contrast.action=warn", "checks.blank.action=warn", "checks.flicker.action=warn")
    other = ShardSet.open(
        pipeline.prepare(config_of(tmp_path / "root", clips, base, *IN_BETWEEN, along, *checks)) / "pairs"
    )
    for i, (first, second) in enumerate(places):  # the maker draws the whole clip as it does without a place
        drawing = other.read_pair(i)
        assert drawing.record["place"] == first
        assert np.array_equal(pairs.read_pair(i).references[1], drawing.references[1][[second]])


def test_latents_carry_the_places_into_the_batch(prepared: Path) -> None:
    pairs, latents = ShardSet.open(prepared / "pairs"), ShardSet.open(prepared / "latents")
    clips = [latents.read_latents(i) for i in range(4)]
    records = [pairs.read_pair(i).record["references"] for i in range(4)]
    assert [clip.places for clip in clips] == [tuple(r["place"] for r in record) for record in records]  # type: ignore
    batch = collate(clips)
    assert [None if p is None else p.tolist() for p in batch.places] == [
        [clip.places[number] for clip in clips] for number in (0, 1)
    ]
    alone = batch.clip(2)
    assert [alone.place(number).tolist() for number in (0, 1)] == [[place] for place in clips[2].places]  # type: ignore


def test_a_pair_can_be_made_again_from_its_record(prepared: Path, clips: Path) -> None:
    pair = ShardSet.open(prepared / "pairs").read_pair(0)
    video = SourceVideo(clips.parent / str(pair.record["file"]))
    assert np.array_equal(remake(video, pair.record), pair.references[0])


def test_a_place_outside_of_the_clip_is_damage() -> None:
    record = ClipRecord(5, 32, 32, 24.0, "32x32x5", "", "clip", {})
    assert _places(record, 2) == (None, None)  # shards of a task without drawn places, and older ones
    assert _places(replace(record, record={"place": 4}), 2) == (4, None)
    for place in (5, -1, "4", 1.0, True, [1]):
        with pytest.raises(ValueError, match=r"the place of a reference is .*, not one of its 5 frames"):
            _places(replace(record, record={"place": place}), 1)


# ---- tokens


def batch_of(places: list[int | None]) -> Batch:
    count = len(places)
    target, reference = torch.zeros(count, 3, *SIZE), torch.zeros(count, 3, 1, *SIZE[1:])
    known = None if None in places else torch.tensor(places)
    keys, fps = [f"clip{i}" for i in range(count)], torch.full((count,), 25.0)
    return Batch(target, [reference], torch.zeros(count, 1, 1), fps, keys, places=[known])


def positions(task: Task, batch: Batch) -> torch.Tensor:
    """The positions (B,3,n,2) of the reference tokens."""
    draws = draw_random(batch.target, Flow(), step_generator(0, 0, 0))
    return build_tokens(batch, draws, task, GEOMETRY)[0].position[:, :, math.prod(SIZE) :]


def test_each_clip_of_a_batch_has_its_own_place() -> None:
    drawn = positions(ANY, batch_of([0, 7, 16]))
    for row, frame in zip(drawn, (0, 7, 16), strict=True):
        (alone,) = positions(replace(ANY, reference_frame=frame), batch_of([None]))
        assert torch.equal(row, alone)
    assert not torch.equal(drawn, positions(ANY, batch_of([0, 8, 16])))  # positions are stored by place


def test_training_and_the_sampler_place_it_alike() -> None:
    frames = torch.tensor([3, 11])
    reference = Reference.of_task(torch.zeros(2, 3, 1, *SIZE[1:]), ANY, places=frames)
    tokens = clip_tokens(torch.zeros(2, 3, *SIZE), None, GEOMETRY, 25.0, [reference])
    assert torch.equal(tokens.position[:, :, math.prod(SIZE) :], positions(ANY, batch_of([3, 11])))


def test_clips_without_a_place_are_named() -> None:
    for places in ([None], [17]):
        with pytest.raises(
            ConfigError, match="reference_frame=any: clip clip0 has no place for its reference in its 17"
        ):
            positions(ANY, batch_of(places))
    mixed = batch_of([4, 5])
    mixed = replace(mixed, places=[torch.tensor([4, -1])])  # of a source without places
    with pytest.raises(ConfigError, match="clip clip1 has no place"):
        positions(ANY, mixed)
    along = replace(batch_of([4]), references=[torch.zeros(1, 3, *SIZE)])
    with pytest.raises(ConfigError, match="the reference of clip clip0 has 5 latent frames, and only a picture"):
        positions(ANY, along)


# ---- adapter file and programs


@pytest.mark.parametrize(("frame", "text"), [("any", "0 to -1"), ([8, -9], "8 to -9"), (-1, "-1")])
def test_the_file_says_where_the_picture_stood(frame: Any, text: str) -> None:
    assert frame_text(frame) == text
    (layout,) = Adapter({}, {FRAME: text}).references
    expected = frame if isinstance(frame, int) else (0, -1) if frame == "any" else tuple(frame)
    assert layout == ReferenceLayout("first", frame=expected)
    metadata = references_metadata([MoreReference("key", "edit.frame", frame=frame)])
    assert Adapter({}, metadata).references[1] == ReferenceLayout("key", frame=expected)
    assert not list(more_findings(metadata))


def test_a_malformed_place_is_a_finding() -> None:
    (finding,) = metadata_findings({FRAME: "8 to the end"})
    assert finding == "metadata reference_frame='8 to the end' must be the number of a frame, e.g. -1 or 8 to -9"
    for frame in ([1], [1, 2, 3], [1, None], [0, 10**6], {}):
        (finding,) = more_findings({"more_references": json.dumps([{"name": "a", "frame": frame}])})
        assert "not the number of a frame or the first and the last" in finding


def test_generate_asks_where_the_picture_stands(assets: Path, tmp_path: Path) -> None:
    adapter = Adapter({}, {FRAME: "8 to -9"})
    with pytest.raises(ConfigError, match="reference_frame is not set: the adapter was trained with a picture at any"):
        reference_layouts(generate_settings(assets, tmp_path), adapter)
    settings = generate_settings(assets, tmp_path, reference=["a.png"] * 3, reference_frame=[8, 20, -3])
    assert [layout.frame for layout in reference_layouts(settings, adapter)] == [8, 20, -3]
    (line,) = unusual_places(settings, adapter, 33)
    assert line == (
        "first: reference_frame=-3 is not a place that the adapter was trained with, which is any frame from 8 to -9"
    )
    two = Adapter({}, references_metadata([MoreReference("key", "edit.frame", frame="any")]))
    with pytest.raises(ConfigError, match=r"reference_frame is not set for key: .* any frame from 0 to -1"):
        reference_layouts(generate_settings(assets, tmp_path, reference=["a.mp4", "b.png"]), two)


def test_the_workflow_has_an_example_and_says_what_to_set() -> None:
    api = api_json(build_workflow(settings_for(reference_frame="8 to -9")))
    frame = node_of(api, "guide")["frame_idx"]
    assert isinstance(frame, int)
    assert frame % 8 == 1
    assert node_of(api, "reference") == {"image": "reference.png"}
    (line,) = what_to_select([ReferenceLayout("first", frame=(8, -9))])
    assert line == "reference: a picture, at any frame from 8 to -9: set `frame_idx` of the node guide."


def test_programs_that_cannot_place_it_are_named() -> None:
    metadata = {"size": "960x544x121", "reference_downscale_factor": "1"}
    everywhere, between = (Adapter({}, {**metadata, FRAME: text}) for text in ("0 to -1", "2 to 8"))
    assert frame_number(everywhere, everywhere.references[0]) == 57  # 1 + 7 * 8
    (line,) = loader_limits(everywhere)
    assert "ltx-pipelines" in line
    assert "first begins at any frame from 0 to -1" in line
    lines = list(loader_limits(between))
    assert "diffusers cannot use" in lines[-1]
    assert "at the frames 1, 9, 17, ... only, and first begins at any frame from 2 to 8" in lines[-1]
    assert ("frames of the reference", "one, at any frame from 0 to -1 of the output clip") in card._references(
        everywhere
    )


def test_diagnose_asks_where_the_picture_stands() -> None:
    layout, *_ = _layouts(ANY, {})
    assert layout.frame == (0, -1)
    no_value = SimpleNamespace(attention_strength=None, attention_mask=None, reference_frame=None)
    recorded = RecordSettings([], [], [], [], [])
    with pytest.raises(
        ConfigError, match=r"reference_frame is not set for b\.png: .* any frame from 0 to -1; say where"
    ):
        _facts(no_value, recorded, ANY, layout, "", 0, None, "b.png")  # type: ignore[arg-type]
    no_value.reference_frame = 7
    assert _facts(no_value, recorded, ANY, layout, "", 0, None, "b.png").layout.frame == 7  # type: ignore[arg-type]


# ---- evaluation

STILL = "task.more_references=[{name: still, maker: edit.frame, maker_args: {frame: any}, frame: any}]"


def with_still(pair: Pair, window: int) -> Pair:
    """Edges of the target, and one of its frames."""
    place = window % len(pair.target)
    made = [
        {"name": "first", "maker": "control.canny", "args": {}, "drawn": {}},
        {"name": "still", "maker": "edit.frame", "args": {"frame": "any"}, "drawn": {}, "place": place},
    ]
    references = (pair.target, pair.target[[place]])
    return replace(pair, references=references, record={**pair.record, **made[0], "references": made})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    settings = ("task.reference_downscale=1", STILL, "eval.seeds=[0]", "eval.strengths=[1,0]")
    world = build(tmp_path_factory.mktemp("places"), task="canny", settings=settings, controlled=with_still)
    layout = json.dumps([MoreReference("still", "edit.frame", frame="any").layout()])
    write_adapter(world.adapter, BaseModel.open(str(world.root / "base")), more_references=layout)
    return world


def test_the_evaluation_places_the_reference_of_another_clip_where_its_own_stood(world: World, tmp_path: Path) -> None:
    source = open_source(world.config())
    assert isinstance(source, SampledClips)
    batch = [Item(window, 0) for window in source.held_out.windows]
    places = [source.held_out.latents(item.window).places[1] for item in batch]
    assert len(set(places)) > 1
    swapped = next(condition for condition in source.conditions if condition.name == "swapped")
    fade = next(condition for condition in source.conditions if condition.name == "fade mask")
    for condition in (at_strength(1), swapped, fade):
        _, still = source._references(condition, batch, source.held_out)
        assert isinstance(still.frame, torch.Tensor)
        assert still.frame.tolist() == places
    assert still.attention_mask is not None
    assert still.attention_mask.flatten().tolist() == [0.0 if place == 0 else 1.0 for place in places]
    manifest = _entry(tmp_path, source.held_out, batch[0].window, world.config(), source.base.geometry)
    assert manifest["places"] == [None, places[0]]  # for other programs
    clip, _ = source.clips(at_strength(1), batch)
    assert len(clip) == len(batch)
