"""task.more_references: several references of a clip, each with its own maker, factors, frame and dropout."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import pipeline
from data_prep.clips.windows import Window
from data_prep.pairs import make_pairs
from data_prep.reference_makers import makers_of_references
from iclora_train.config import ConfigError, Flow, Task
from iclora_train.config.references import MoreReference
from iclora_train.core.fingerprint import comparable_task, content_settings
from iclora_train.core.types import Geometry
from iclora_train.data.batch import Batch
from iclora_train.data.controls import controls_of
from iclora_train.data.shards import ShardSet
from iclora_train.diffusion.random_draws import draw_random, step_generator
from iclora_train.diffusion.training_inputs import build_tokens
from tests.clips import write_clip
from tests.prep import config_of, contents, listed, write_clips

GEOMETRY = Geometry(4, 8, 4)
CANNY = ("conf=canny", "task.maker_args={low: 20, high: 60}")
STILL = "{name: still, maker: edit.frame, maker_args: {frame: -1}, frame: 0, p: 0.5}"
SMALL = "{name: small, maker: degrade.defocus, maker_args: {radius: [1, 2]}, downscale: 2}"
TWO = f"task.more_references=[{STILL},{SMALL}]"


def task_of(*more: MoreReference, **settings: object) -> Task:
    return Task(name="x", maker="control.canny", more_references=list(more), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (MoreReference(maker="edit.frame"), r"more_references\[0\] has no name"),
        (MoreReference("a"), r"more_references\[0\] has no maker"),
        (MoreReference("a b", "edit.frame"), r"more_references\[0\].name='a b' must be a letter"),
        (MoreReference("first", "edit.frame"), "name first: first is the reference of task.maker"),
        (MoreReference("a", "edit.frame", downscale=0), r"more_references\[0\].downscale=0 must be"),
        (MoreReference("a", "edit.frame", p=0), r"more_references\[0\].p=0 must lie in"),
        (MoreReference("a", "none"), r"more_references\[0\].maker=none makes no reference"),
        (MoreReference("a", "edit.loop", temporal_scale=2, frame=0), "frame=0 and temporal_scale=2 are both set"),
    ],
)
def test_a_wrong_entry_is_named(more: MoreReference, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(more)


def test_two_entries_need_two_names_and_a_first_reference() -> None:
    with pytest.raises(ConfigError, match="name a: two references have it"):
        task_of(MoreReference("a", "edit.frame"), MoreReference("a", "edit.loop"))
    with pytest.raises(ConfigError, match=r"task\.maker=none has no first reference"):
        Task(name="x", family="style", maker="none", more_references=[MoreReference("a", "edit.frame")])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (MoreReference("a", "edit.fram"), r"more_references\[0\] \(a\): task.maker='edit.fram' is not one of"),
        (MoreReference("a", "edit.frame", {"number": 1}), r"\(a\): task.maker_args.number is not an argument"),
        (MoreReference("a", "given"), r"\(a\): set maker_args.column to another column"),
        (MoreReference("a", "given", {"column": "mask"}), r"\(a\): task.maker_args.column"),
    ],
)
def test_a_wrong_maker_is_named(more: MoreReference, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        makers_of_references(task_of(more))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Windows with three references: edges, the last frame, a blurred clip of half the size."""
    clips = write_clips(tmp_path_factory.mktemp("clips"))
    checks = ("checks.contrast.action=warn", "checks.blank.action=warn", "checks.flicker.action=warn")
    return pipeline.prepare(config_of(tmp_path_factory.mktemp("root"), clips, base, *CANNY, TWO, *checks))


def test_every_reference_is_made_in_its_own_way(prepared: Path) -> None:
    pairs = ShardSet.open(prepared / "pairs")
    pair = pairs.read_pair(0)
    edges, still, small = pair.references
    assert edges.shape == pair.target.shape == (5, 32, 32, 3)
    assert np.array_equal(still, pair.target[-1:])
    assert small.shape == (5, 16, 16, 3)
    records = pair.record["references"]
    assert [record["name"] for record in records] == ["first", "still", "small"]
    assert [record["maker"] for record in records] == ["control.canny", "edit.frame", "degrade.defocus"]
    assert pair.record["maker"] == "control.canny"
    assert len({tuple(record["seed"]) for record in records}) == 3
    task = Task(name="x", family="structure", maker="control.canny")
    assert [control.name for control in controls_of(task, pair.record)] == ["canny", "edit.frame", "degrade.defocus"]


def test_latents_have_all_references_in_order(prepared: Path) -> None:
    latents = ShardSet.open(prepared / "latents").read_latents(0)
    _, f, h, w = latents.target.shape
    assert [tuple(latent.shape[1:]) for latent in latents.references] == [(f, h, w), (1, h, w), (f, h // 2, w // 2)]


def test_the_first_reference_does_not_depend_on_others(prepared: Path, tmp_path: Path, base: Path) -> None:
    clips = write_clips(tmp_path / "clips")
    config = config_of(tmp_path / "root", clips, base, *CANNY)
    three = ShardSet.open(prepared / "pairs").read_pair(0)
    (clip,) = [clip for clip in listed(config) if three.key.startswith(clip.id)]
    (alone,) = make_pairs(clip, [Window.from_record(three.record["window"])], config)
    assert np.array_equal(alone.references[0], three.references[0])
    assert "references" not in alone.record


def test_a_supplied_second_reference_is_read_from_its_column(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "clips"
    clips = write_clips(folder)
    rows = clips.read_text().split("\n")
    for i in range(5):
        write_clip(folder / f"other{i}.mp4", 24 + i, seed=100 + i)
    clips.write_text("\n".join([rows[0] + ",reference_2", *(f"{row},other{i}.mp4" for i, row in enumerate(rows[1:]))]))
    more = "task.more_references=[{name: other, maker: given, maker_args: {column: reference_2}}]"
    config = config_of(tmp_path / "root", clips, base, more)
    clip = listed(config)[0]
    window = Window(clip.id, 0, (3, 4, 5, 6, 7), (32, 32), (0, 0), (32, 32), False, 24.0)
    (pair,) = make_pairs(clip, [window], config)
    other = config_of(tmp_path / "other", clips, base)
    expected = make_pairs(listed(other)[0].__class__(**{**vars(clip), "path": folder / "other0.mp4"}), [window], other)
    assert np.array_equal(pair.references[1], next(expected).target)
    clips.write_text("\n".join([rows[0] + ",reference_2", *(f"{row}," for row in rows[1:])]))
    with pytest.raises(ConfigError, match="reference_2"):
        pipeline.prepare(config_of(tmp_path / "root", clips, base, more))


def test_settings_of_tasks_with_one_reference_are_unchanged(tmp_path: Path, base: Path) -> None:
    clips = write_clips(tmp_path / "clips")
    config = config_of(tmp_path / "root", clips, base)
    assert "more_references" not in content_settings(config)["task"]
    assert "more_references" not in comparable_task(asdict(config.task))
    changed = config_of(tmp_path / "root", clips, base, TWO)
    entries = content_settings(changed)["task"]["more_references"]
    assert [sorted(entry) for entry in entries] == 2 * [["downscale", "maker", "maker_args", "temporal_scale"]]


def test_a_factor_that_does_not_fit_the_vae_is_named(tmp_path: Path, base: Path) -> None:
    clips = write_clips(tmp_path / "clips")
    more = "task.more_references=[{name: tiny, maker: edit.loop, downscale: 3}]"
    with pytest.raises(ConfigError, match=r"task.more_references\[0\].downscale=3"):
        pipeline.prepare(config_of(tmp_path / "root", clips, base, more))
    assert not contents(tmp_path / "root")


BATCH = Batch(
    target=torch.randn(4, 4, 3, 4, 4),
    references=[torch.randn(4, 4, 3, 4, 4), torch.randn(4, 4, 1, 2, 2)],
    text=torch.zeros(4, 1, 8),
    fps=torch.full((4,), 8.0),
    keys=list("abcd"),
    captions=[""] * 4,
)
LAST = MoreReference("last", "edit.frame", downscale=2, frame=-1)


def test_each_reference_has_its_own_factors_and_frame() -> None:
    draws = draw_random(BATCH.target, Flow(), step_generator(0, 0, 0))
    tokens, _ = build_tokens(BATCH, draws, task_of(LAST), GEOMETRY)
    assert tokens.group.unique_consecutive(return_counts=True)[1].tolist() == [48, 48, 4]
    assert torch.equal(tokens.position[:, :, 48:96], tokens.position[:, :, :48])
    time, height, _ = tokens.position[0, :, 96:].unbind(0)
    assert torch.equal(time, torch.tensor([8 / 8, 9 / 8]).expand(4, 2))
    assert height.tolist() == [[0, 16], [0, 16], [16, 32], [16, 32]]
    assert tokens.weight is None


def test_a_wrong_size_names_the_entry() -> None:
    draws = draw_random(BATCH.target, Flow(), step_generator(0, 0, 0))
    three = task_of(MoreReference("a", "edit.frame"), MoreReference("b", "edit.frame"))
    with pytest.raises(ConfigError, match=r"task.more_references\[0\].downscale=1: clip a has"):
        build_tokens(BATCH, draws, task_of(MoreReference("last", "edit.frame", frame=-1)), GEOMETRY)
    with pytest.raises(ConfigError, match=r"clip a has 2 references, and the task has 3 \(first, a, b\)"):
        build_tokens(BATCH, draws, three, GEOMETRY)


def test_each_reference_is_dropped_on_its_own_and_all_together() -> None:
    more = [MoreReference("last", "edit.frame", downscale=2, frame=-1, p=0.5)]
    seen, absent = np.zeros((2, 2)), 0
    for step in range(200):
        draws = draw_random(BATCH.target, Flow(reference_p=0.8), step_generator(0, step, 0), more_references=more)
        tokens, _ = build_tokens(BATCH, draws, task_of(*more), GEOMETRY)
        weight = torch.ones(4, 100) if tokens.weight is None else tokens.weight
        if tokens.absent is not None:
            assert not tokens.absent[:, :96].any()
            assert (weight[tokens.absent] == 0).all()
            absent += int(tokens.absent[:, 96].sum())
        for first, last in zip(weight[:, 48].tolist(), weight[:, 96].tolist(), strict=True):
            seen[int(first), int(last)] += 1
    assert seen[0, 1] == 0  # without the first reference there is none
    assert absent == seen[1, 0]
    assert seen[1, 1] / seen[1].sum() == pytest.approx(0.5, abs=0.05)
    assert seen[1].sum() / seen.sum() == pytest.approx(0.8, abs=0.05)


def test_probabilities_of_1_draw_nothing() -> None:
    flow = Flow(attention_strength_p=0.5)
    alone = draw_random(BATCH.target, flow, step_generator(0, 3, 0))
    more = draw_random(BATCH.target, flow, step_generator(0, 3, 0), more_references=[LAST])
    assert more.use_more is None
    assert torch.equal(alone.noise, more.noise)
