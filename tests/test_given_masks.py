"""Masks of the part that is made anew from the data: a column of the clip list, or what a pair maker paints."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from data_prep import pipeline
from data_prep.checks.pictures import pair_picture
from data_prep.clips.columns import FILE_COLUMNS
from data_prep.given_masks import mask_maker
from data_prep.makers.edit.masks import mask_from_colour
from eval.clips.resized import resized_clip
from eval.scoring.ground_truth import region_to_make
from iclora_train.adapters.comfyui_given import GivenParts
from iclora_train.adapters.comfyui_workflow import build_workflow
from iclora_train.adapters.conditions import (
    CONDITIONS,
    conditions_metadata,
    conditions_of,
    in_words,
    not_given,
    other_mode,
)
from iclora_train.adapters.file import Adapter
from iclora_train.adapters.loaders import loader_limits
from iclora_train.config import ConfigError, Flow, Task
from iclora_train.config.conditions import NEW_KEYS, Condition
from iclora_train.core.fingerprint import comparable_task, content_settings, plain
from iclora_train.core.types import Geometry, LatentPair, Pair, VideoShape
from iclora_train.data.batch import Batch, collate
from iclora_train.data.shard_sample import ClipRecord, latents_of, pack_latents, pack_pair, pair_of
from iclora_train.data.shards import ShardSet
from iclora_train.diffusion.clean_cells import CleanCells, kept_of_target
from iclora_train.diffusion.kept_latents import levels_to_cells, mask_to_cells, mask_to_levels
from iclora_train.diffusion.random_draws import draw_random, step_generator
from iclora_train.diffusion.training_inputs import build_tokens
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.kept import _new_cells
from iclora_train.generate.windows import Window as VideoWindow
from iclora_train.media.shard_clip import encode_clip
from iclora_train.training.checkpointing import _with_new_settings
from tests.prep import config_of, write_clips
from tests.test_comfy_workflow import api_json, node_of
from tests.test_comfy_workflow import settings_for as workflow_settings
from tests.test_generate import assets
from tests.test_generate import settings_for as generate_settings

__all__ = ["assets"]  # the fixture
MODES = ("any", "half", "all")
GEOMETRY = Geometry(3, 8, 4)
COLUMN = "task.conditions=[{kind: mask, source: column}]"
PAINTED = "task.conditions=[{kind: mask, source: maker, mode: half}]"
HOLES = "task.maker_args={shapes: [box, ellipse], cover: [0.1, 0.4], course: ease, dilate: [0, 3]}"
SAME_HOLES = (
    "task.conditions=[{kind: mask, source: maker, maker: edit.hole, "
    "maker_args: {shapes: [box, ellipse], cover: [0.1, 0.4], course: ease, dilate: [0, 3]}}]"
)
LENIENT = tuple(f"checks.{name}.action=warn" for name in ("blank", "clipped", "static", "offset"))


def mask_task(**keys: Any) -> Task:
    return Task(name="x", maker="edit.hole", conditions=[Condition("mask", **keys)])


# ---- settings


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition("mask", source="file"), r"conditions\[0\] \(mask\): source='file' is not one of column, maker"),
        (
            Condition("mask", source="column", shapes=["box"]),
            "shapes does not go with source=column: remove one",
        ),
        (Condition("mask", source="column", maker="edit.hole"), "maker does not go with source=column"),
        (Condition("mask", source="maker", column="mask"), "column does not go with source=maker"),
        (Condition("mask", source="column", column="depth"), r"\(mask\): column='depth' is not one of mask, mask_2"),
        (Condition("mask", source="column", mode="most"), r"\(mask\): mode='most' is not one of any, half, all"),
        (Condition("mask", mode="half"), "mode is a key of a mask from the data: set source too"),
        (
            Condition("prefix", frames=[1, 1], source="column"),
            r"\(prefix\): source is not a key of this kind: rem",
        ),
    ],
)
def test_an_error_names_the_entry_and_the_key(condition: Condition, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Task(name="x", maker="edit.hole", conditions=[condition])


def test_the_maker_of_a_mask_must_paint() -> None:
    with pytest.raises(ConfigError, match=r"\(mask\): source=maker: task\.maker=none paints no mask: set maker, e"):
        Task(name="x", family="style", maker="none", conditions=[Condition("mask", source="maker")])
    with pytest.raises(ConfigError, match=r"conditions\[0\] \(mask\): maker=edit\.frame paints no part of the clip"):
        mask_maker(Task(name="x", maker="edit.frame", conditions=[Condition("mask", source="maker")]))
    with pytest.raises(ConfigError, match=r"conditions\[0\] \(mask\): task\.maker_args\.size is not an argument of"):
        mask_maker(mask_task(source="maker", maker_args={"size": 3}, maker="edit.hole"))
    assert mask_maker(mask_task()) is None


def test_conditions_of_older_runs_compare_as_before(tmp_path: Path, base: Path) -> None:
    clips = write_clips(tmp_path / "clips")
    drawn = config_of(tmp_path, clips, base, "task.conditions=[{kind: mask, p: 0.5}]")
    assert "data_mask" not in content_settings(drawn)["task"]
    (entry,) = comparable_task(asdict(drawn.task))["conditions"]
    assert not set(NEW_KEYS) & set(entry)
    settings = {"task": plain(asdict(drawn.task))}
    older = {"task": {**settings["task"], "conditions": [entry]}}
    assert _with_new_settings(older, settings) == settings
    first, second = (
        content_settings(config_of(tmp_path, clips, base, f"task.conditions=[{{kind: mask, source: column{more}}}]"))
        for more in ("", ", mode: all, p: 0.3")
    )
    assert first == second  # how the mask is used does not make the shards anew
    assert first["task"]["data_mask"] == {"source": "column", "column": "mask"}


# ---- preparation


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with a mask: a box that moves, in all but the first, whose mask is a picture."""
    listed = write_clips(tmp_path_factory.mktemp("clips"))
    rows = listed.read_text().split("\n")
    for i in range(5):
        masks = np.zeros((24 + i, 48, 64, 3), np.uint8)
        for frame in range(len(masks)):
            masks[frame, 8:30, frame : frame + 31] = 255
        if i == 0:
            cv2.imwrite(str(listed.parent / "mask0.png"), masks[0])
        else:
            (listed.parent / f"mask{i}.mp4").write_bytes(encode_clip(masks, 25.0))
    names = ["mask0.png", *(f"mask{i}.mp4" for i in range(1, 5))]
    listed.write_text("\n".join([rows[0] + ",mask", *(f"{row},{n}" for row, n in zip(rows[1:], names, strict=True))]))
    return listed


@pytest.fixture(scope="module")
def of_column(tmp_path_factory: pytest.TempPathFactory, base: Path, clips: Path) -> Path:
    root = tmp_path_factory.mktemp("column")
    return pipeline.prepare(config_of(root, clips, base, "conf=regenerate", COLUMN, *LENIENT))


@pytest.fixture(scope="module")
def of_maker(tmp_path_factory: pytest.TempPathFactory, base: Path, clips: Path) -> Path:
    root = tmp_path_factory.mktemp("maker")
    return pipeline.prepare(config_of(root, clips, base, "conf=inpaint", HOLES, PAINTED, *LENIENT))


def test_a_mask_of_the_clip_list_is_cut_like_its_window(of_column: Path, clips: Path) -> None:
    pairs = ShardSet.open(of_column / "pairs")
    seen = set()
    for i in range(len(pairs)):
        pair = pairs.read_pair(i)
        assert pair.mask is not None
        assert pair.mask.shape == pair.target.shape[:3]
        record: Any = pair.record
        window = record["window"]
        number, (height, width), (top, left) = int(window["clip"][4:]), window["scaled"], window["crop"]
        picture = np.zeros((48, 64), np.uint8)
        for frame, source in zip(pair.mask, window["indices"], strict=True):
            shift = 0 if number == 0 else source
            picture[:], picture[8:30, shift : shift + 31] = 0, 1
            scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST_EXACT) > 0
            part = scaled[top : top + 32, left : left + 32]
            assert np.array_equal(frame, part[:, ::-1] if window["flip"] else part)
        assert record["mask"]["covered"] == pytest.approx(pair.mask.mean())
        seen.add(number)
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("root", ["of_column", "of_maker"])
def test_latents_have_the_cells_of_every_mode(root: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(root)
    pairs, latents = ShardSet.open(folder / "pairs"), ShardSet.open(folder / "latents")
    found: set[int] = set()
    for i in range(len(pairs)):
        mask, latent = pairs.read_pair(i).mask, latents.read_latents(i)
        assert mask is not None
        assert latent.mask is not None
        _, f, h, w = latent.target.shape
        for mode in MODES:
            expected = mask_to_cells(torch.from_numpy(mask), (f, h, w), mode)[0]
            assert torch.equal(levels_to_cells(latent.mask, mode), expected)
        found |= set(latent.mask.unique().tolist())
    assert found == {0, 1, 2, 3}


def test_the_mask_is_what_the_reference_hides(of_maker: Path) -> None:
    pairs = ShardSet.open(of_maker / "pairs")
    for i in range(len(pairs)):
        pair = pairs.read_pair(i)
        assert pair.mask is not None
        assert np.array_equal(pair.mask, mask_from_colour(pair.references[0]))


def test_a_task_without_a_reference_gets_the_same_holes(
    of_maker: Path, tmp_path: Path, base: Path, clips: Path
) -> None:
    """So that inpainting by tokens can be compared with inpainting by painting."""
    other = ShardSet.open(
        pipeline.prepare(config_of(tmp_path, clips, base, "conf=regenerate", SAME_HOLES, *LENIENT)) / "pairs"
    )
    painted = ShardSet.open(of_maker / "pairs")
    for i in range(len(painted)):
        mine, theirs = painted.read_pair(i), other.read_pair(i)
        assert mine.key == theirs.key
        assert not theirs.references
        assert mine.mask is not None
        assert theirs.mask is not None
        assert np.array_equal(mine.mask, theirs.mask)
        assert np.array_equal(mine.target, theirs.target)


def test_clips_without_a_mask_are_dropped_with_the_reason(tmp_path: Path, base: Path) -> None:
    clips = write_clips(tmp_path / "clips")
    with pytest.raises(ConfigError):
        pipeline.prepare(config_of(tmp_path / "root", clips, base, "conf=regenerate", COLUMN))
    report = json.loads((tmp_path / "root/report.json").read_text())
    assert "its row has no `mask`, which task.conditions (mask) needs" in json.dumps(report)
    assert "mask_2" in FILE_COLUMNS


def test_the_contact_sheet_shows_the_part() -> None:
    target = np.full((5, 32, 32, 3), 200, np.uint8)
    pair = Pair("a", target, (), "", 25.0)
    alone, with_mask = (
        cv2.imdecode(np.frombuffer(pair_picture(p), np.uint8), cv2.IMREAD_COLOR)
        for p in (pair, replace(pair, mask=np.ones((5, 32, 32), bool)))
    )
    assert alone is not None
    assert with_mask is not None
    assert with_mask.shape[0] == 2 * alone.shape[0]
    assert with_mask[-16, 16, 0] < 130  # the colour of masks has no blue


# ---- shards


def sample_of(mask: torch.Tensor | None) -> tuple[ClipRecord, dict[str, memoryview]]:
    pair = LatentPair("a", torch.zeros(3, 2, 4, 4), (), torch.zeros(1, 2), 25.0, mask=mask)
    members = pack_latents(pair, VideoShape(5, 32, 32, 25.0), "clip", {})
    return ClipRecord(5, 32, 32, 25.0, "32x32x5", "", "clip"), {
        name: memoryview(bytearray(data)) for name, data in members.items() if isinstance(data, bytes)
    }


def test_a_damaged_mask_is_refused_and_shards_without_one_are_read() -> None:
    record, members = sample_of(None)
    assert latents_of("a", record, members, {}, torch.float32).mask is None
    levels = torch.randint(4, (2, 4, 4))
    record, members = sample_of(levels)
    again = latents_of("a", record, members, {}, torch.float32).mask
    assert again is not None
    assert torch.equal(again.long(), levels)
    for wrong in (torch.full((2, 4, 4), 4.0), torch.full((2, 4, 4), 0.5), torch.zeros(2, 4, 5)):
        record, members = sample_of(wrong)
        with pytest.raises(ValueError, match="its mask has the size"):
            latents_of("a", record, members, {}, torch.float32)


def test_a_mask_of_another_size_than_its_target_is_damage() -> None:
    mask = np.random.default_rng(0).random((5, 32, 32)) > 0.5
    pair = Pair("a", np.zeros((5, 32, 32, 3), np.uint8), (), "", 25.0, mask=mask)
    record = ClipRecord(5, 32, 32, 25.0, "32x32x5", "", "clip")

    def stored(pair: Pair) -> dict[str, memoryview]:
        return {n: memoryview(data) for n, data in pack_pair(pair, "clip").items() if isinstance(data, bytes)}

    again = pair_of("a", record, stored(pair))
    assert again.mask is not None
    assert np.array_equal(again.mask, mask)  # lossless
    with pytest.raises(ValueError, match="its mask has the size"):
        pair_of("a", record, stored(replace(pair, mask=mask[:, :16])))


# ---- training, validation, evaluation, generate


def batch_of(levels: torch.Tensor | None, count: int = 2) -> Batch:
    target = torch.randn(count, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(
        target, [], torch.zeros(count, 1, 1), torch.full((count,), 25.0), list("abcdefgh"[:count]), mask=levels
    )


@pytest.mark.parametrize("mode", MODES)
def test_each_clip_keeps_what_its_own_mask_does_not_cover(mode: str) -> None:
    levels = torch.randint(4, (2, 3, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    task, batch = mask_task(source="column", mode=mode), batch_of(levels)
    cells, clean = CleanCells(task.conditions, 4), ~levels_to_cells(levels, mode)
    draws = draw_random(batch.target, Flow(first_frame_p=0), step_generator(0, 0, 0), cells, masks=batch.mask)
    assert draws.clean is not None
    assert torch.equal(draws.clean, clean)
    tokens, _ = build_tokens(batch, draws, replace(task, maker="x"), GEOMETRY)
    assert torch.equal(tokens.loss_mask, ~clean.flatten(1))
    usual = cells.usual(2, (3, 4, 4), levels)
    assert usual is not None
    assert torch.equal(usual, clean)
    kept = kept_of_target(batch.target, cells, levels)
    assert kept is not None
    assert torch.equal(kept.mask, clean)
    assert torch.equal(batch.clip(1).mask, levels[1:])  # type: ignore[arg-type]


def test_a_mask_has_its_probability_and_a_clip_without_a_white_cell_gets_no_condition() -> None:
    levels = torch.zeros(400, 1, 2, 2, dtype=torch.uint8)
    levels[:, :, 0] = 3
    cells = CleanCells(mask_task(source="column", p=0.3).conditions, 4)
    drawn = cells.draw(400, (1, 2, 2), torch.Generator().manual_seed(0), levels)
    assert drawn is not None
    assert drawn.any((1, 2, 3)).float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert cells.usual(400, (1, 2, 2), levels) is None  # p below 0.5
    always = CleanCells(mask_task(source="column").conditions, 4)
    none = always.draw(2, (1, 2, 2), torch.Generator(), torch.zeros(2, 1, 2, 2, dtype=torch.uint8))
    assert none is not None
    assert not none.any()


def test_pairs_without_masks_are_named() -> None:
    task, batch = mask_task(source="column"), batch_of(None)
    for masks in (None, collate_masks(has=[True, False])):
        with pytest.raises(ConfigError, match=r"source=column, and the pairs of data\.root have no mask: prepare"):
            draw_random(batch.target, Flow(), step_generator(0, 0, 0), CleanCells(task.conditions, 4), masks=masks)


def collate_masks(has: list[bool]) -> torch.Tensor | None:
    levels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    pairs = [
        LatentPair(str(i), torch.zeros(3, 3, 4, 4), (), torch.zeros(1, 1), 25.0, mask=levels if known else None)
        for i, known in enumerate(has)
    ]
    return collate(pairs).mask


def test_the_evaluation_measures_the_part_of_the_pairs_own_mask() -> None:
    mask = np.zeros((5, 32, 32), bool)
    mask[1:, 9:17] = True  # one pixel row in the cells of rows 8 to 15 is missing, one in those from 16 on is there
    pair = Pair("a", np.zeros((5, 32, 32, 3), np.uint8), (), "", 25.0, mask=mask)
    rows = {}
    for mode in MODES:
        task = replace(mask_task(source="column", mode=mode), maker="none", family="style")
        region = region_to_make(task, pair, GEOMETRY)
        if mode == "all":  # no cell is white everywhere: the clip gets no condition
            assert region is None
            continue
        assert region is not None
        assert not region[0].any()
        rows[mode] = sorted(set(np.nonzero(region[1:].any((0, 2)))[0].tolist()))
    assert rows == {"any": list(range(8, 24)), "half": list(range(8, 16))}
    assert resized_clip(mask.astype(np.uint8) * 255, (5, 16, 16)).shape == (5, 16, 16)


@pytest.mark.parametrize("mode", MODES)
def test_generate_makes_the_same_cells_anew(mode: str, of_column: Path, assets: Path, tmp_path: Path) -> None:
    pair = ShardSet.open(of_column / "pairs").read_pair(0)
    assert pair.mask is not None
    frames = np.repeat(pair.mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
    (tmp_path / "mask.mp4").write_bytes(encode_clip(frames, 25.0))
    changes = {"source": "s.mp4", "regenerate": str(tmp_path / "mask.mp4"), "regenerate_mode": mode}
    settings = generate_settings(assets, tmp_path, **changes)
    media = InputMedia.open("regenerate", str(tmp_path / "mask.mp4"))
    count, size = len(frames), mask_to_levels(torch.from_numpy(pair.mask), (2, 4, 4)).shape[1:]
    new = _new_cells(media, settings, VideoShape(count, 32, 32, 25.0), VideoWindow(0, count), tuple(size))  # type: ignore
    assert torch.equal(new[0], levels_to_cells(mask_to_levels(torch.from_numpy(pair.mask), (2, 4, 4)), mode)[0])


# ---- adapter file and programs


def test_the_file_says_that_the_mask_came_from_the_data() -> None:
    column, maker = mask_task(source="column", mode="all").conditions, mask_task(source="maker").conditions
    assert json.loads(conditions_metadata(column)[CONDITIONS]) == [
        {"kind": "mask", "p": 1.0, "source": "column", "column": "mask", "mode": "all"}
    ]
    for conditions in (column, maker):
        assert conditions_of(conditions_metadata(conditions)) == conditions
    assert in_words(column[0]) == "all but the part that a mask shows (cells with all pixels in it)"
    (line,) = not_given(conditions_metadata(maker), set())
    assert line.endswith("(cells with any pixel in it): source=... gives it to this video")
    assert GivenParts.usual(column) == GivenParts(mask=True, mode="all", moves=True)
    assert GivenParts.usual(mask_task().conditions) == GivenParts(mask=True)
    (line,) = other_mode(conditions_metadata(column), "any")
    assert line == "the adapter was trained with masks of mode all: regenerate_mode=all, here it is any"
    assert other_mode(conditions_metadata(maker), "any") == other_mode({}, "half") == []


@pytest.mark.parametrize(("mode", "threshold"), [("any", 0.0), ("half", 0.5), ("all", 0.99)])
def test_the_workflow_makes_cells_anew_by_the_mode(mode: str, threshold: float) -> None:
    metadata = conditions_metadata(mask_task(source="column", mode=mode).conditions)
    workflow = workflow_settings(adapter_kind="lora", **metadata)
    assert node_of(api_json(build_workflow(workflow)), "new cells")["value"] == threshold
    assert "The mask stands still here; those of training could move." in workflow.notes()


def test_programs_that_cannot_give_it_are_named() -> None:
    metadata = {
        "reference_downscale_factor": "1",
        **conditions_metadata(mask_task(source="column", mode="half").conditions),
    }
    lines = list(loader_limits(Adapter({}, metadata)))
    assert [line.split(" cannot give")[0] for line in lines] == ["ltx-pipelines", "diffusers", "ComfyUI"]
    assert "takes one picture for all frames, and keeps a cell of which exactly half of the pixels are" in lines[2]
    drawn = {"reference_downscale_factor": "1", **conditions_metadata(mask_task().conditions)}
    assert not list(loader_limits(Adapter({}, drawn)))
