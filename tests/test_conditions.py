"""Parts of the target that are clean (`task.conditions`): cells, training, validation, the adapter file."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.metrics import GroundTruth, Suite
from eval.scoring.ground_truth import new_pixels, region_to_make
from iclora_train.adapters.conditions import CONDITIONS, conditions_metadata, conditions_of, in_words, not_given
from iclora_train.adapters.metadata import FRAME, metadata_findings
from iclora_train.config import ConfigError, Flow, Task
from iclora_train.config.conditions import Condition
from iclora_train.core.types import Geometry, Pair
from iclora_train.data.batch import Batch
from iclora_train.data.reference_kinds import MASK_COLOUR
from iclora_train.diffusion.clean_cells import CleanCells, kept_of_target
from iclora_train.diffusion.loss import training_losses
from iclora_train.diffusion.random_draws import draw_random, step_generator
from iclora_train.diffusion.sampler import Reference
from iclora_train.diffusion.training_inputs import build_tokens

SIZE = (5, 6, 8)  # latent frames, height, width
GEOMETRY = Geometry(3, 8, 4)  # channels, spatial, temporal


def checked(*conditions: Condition) -> list[Condition]:
    return Task(name="x", maker="x", conditions=list(conditions)).conditions


def draw(*conditions: Condition, batch: int = 400, seed: int = 0) -> torch.Tensor:
    cells = CleanCells(checked(*conditions), GEOMETRY.temporal).draw(batch, SIZE, torch.Generator().manual_seed(seed))
    assert cells is not None
    return cells


@pytest.mark.parametrize(
    ("condition", "counts", "first"),
    [
        (Condition("first_frame"), {1}, True),
        (Condition("prefix", frames=[1, 9]), {1, 2, 3}, True),  # 1, 5 and 9 frames
        (Condition("prefix", frames=[6, 6]), {2}, True),  # 5 frames: whole latent frames only
        (Condition("suffix", frames=[4, 11]), {1, 2}, False),  # 4 and 8 frames
        (Condition("suffix", frames=[1, 1]), {1}, False),
    ],
)
def test_a_span_has_the_frames_of_its_bounds(condition: Condition, counts: set[int], first: bool) -> None:
    cells = draw(condition).flatten(2)
    assert (cells.all(2) == cells.any(2)).all()  # whole latent frames
    frames = cells.all(2) if first else cells.all(2).flip(1)
    lengths = frames.sum(1)
    assert set(lengths.tolist()) == counts
    assert all(clip[: int(length)].all() for clip, length in zip(frames, lengths, strict=True))  # from one end on


@pytest.mark.parametrize("shape", ["box", "side", "border"])
def test_a_mask_leaves_a_share_of_the_picture_to_the_model(shape: str) -> None:
    cells = draw(Condition("mask", shapes=[shape], cover=[0.2, 0.5]))
    assert torch.equal(cells, cells[:, :1].expand_as(cells))  # the same part in every frame
    shares = (~cells).float().mean((1, 2, 3))
    assert shares.mean().item() == pytest.approx(0.35, abs=0.04)
    assert shares.min() > 0.2 - 0.09  # half a row or column of cells is 0.083 or 0.0625
    assert shares.max() < 0.5 + 0.09
    new = ~cells[:, 0]
    corners = torch.stack([new[:, y, x] for y in (0, -1) for x in (0, -1)], dim=1).sum(1)
    allowed = {"box": {0, 1, 2}, "side": {2}, "border": {2, 3, 4}}[shape]
    assert set(corners.tolist()) <= allowed


def test_conditions_join_and_each_has_its_probability() -> None:
    cells = draw(Condition("prefix", p=0.6, frames=[1, 1]), Condition("suffix", p=0.3, frames=[4, 4]), batch=3000)
    has_prefix, has_suffix = cells[:, 0].all((1, 2)), cells[:, -1].all((1, 2))
    assert has_prefix.float().mean().item() == pytest.approx(0.6, abs=0.03)
    assert has_suffix.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert (has_prefix & has_suffix).float().mean().item() == pytest.approx(0.18, abs=0.03)
    assert not cells[:, 1:-1].any()


def test_a_clip_that_would_be_clean_everywhere_gets_no_condition() -> None:
    picture = CleanCells(checked(Condition("prefix", frames=[9, 9])), GEOMETRY.temporal)
    assert not picture.draw(3, (1, 4, 4), torch.Generator()).any()  # type: ignore[union-attr]
    assert picture.usual(3, (1, 4, 4)) is None


def test_the_usual_cells_are_the_middle_of_the_likely_conditions() -> None:
    conditions = checked(Condition("prefix", p=0.5, frames=[1, 9]), Condition("suffix", p=0.4, frames=[4, 4]))
    usual = CleanCells(conditions, GEOMETRY.temporal).usual(2, SIZE)
    assert usual is not None
    assert usual.shape == (2, *SIZE)
    assert usual.flatten(2).all(2).tolist() == [[True, True, False, False, False]] * 2
    assert CleanCells(conditions[1:], GEOMETRY.temporal).usual(2, SIZE) is None
    box = CleanCells(checked(Condition("mask", cover=[0.25, 0.25])), 4).usual(1, (2, 8, 8))
    assert box is not None
    assert (~box[0, 0]).nonzero().aminmax(dim=0).min.tolist() == [2, 2]
    assert (~box[0, 0]).nonzero().aminmax(dim=0).max.tolist() == [5, 5]


def test_clean_cells_are_clean_and_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 3, *SIZE, generator=generator)
    batch = Batch(target, [], torch.zeros(4, 1, 1), torch.full((4,), 25.0), list("abcd"))
    cells = CleanCells(checked(Condition("prefix", frames=[5, 5]), Condition("mask", p=0.5)), GEOMETRY.temporal)
    plain = draw_random(target, Flow(first_frame_p=0.3), step_generator(0, 0, 0))
    draws = draw_random(target, Flow(first_frame_p=0.3), step_generator(0, 0, 0), cells)
    for name in ("sigma", "noise", "clean_first_frame", "use_references"):
        assert torch.equal(getattr(plain, name), getattr(draws, name))  # drawn before the conditions
    assert draws.clean is not None
    tokens, _ = build_tokens(batch, draws, Task(name="x", maker="x"), GEOMETRY)
    clean = draws.clean.flatten(1)
    assert torch.equal(tokens.loss_mask, ~clean)
    assert torch.equal(tokens.level == 1, clean)
    assert torch.equal(tokens.latent[clean], target.flatten(2).transpose(1, 2)[clean])

    def wrong_where_clean(tokens, text, num_outputs):  # the exact velocity, except on clean tokens
        velocity = (draws.noise - target).flatten(2).transpose(1, 2)
        return torch.where(clean[..., None], 9.0, velocity)

    assert training_losses(wrong_where_clean, batch, draws, Task(name="x", maker="x"), GEOMETRY).flow.abs().max() < 1e-9


def test_an_evaluation_measures_the_part_that_is_not_given() -> None:
    conditions = checked(Condition("prefix", frames=[5, 5]), Condition("mask", cover=[0.25, 0.25]))
    task = Task(name="x", maker="x", conditions=conditions)
    new = new_pixels(task, (9, 64, 64), GEOMETRY)  # latent frames 0 to 2, cells of 8 pixels
    assert new is not None
    assert not new[:5].any()
    box = np.zeros((64, 64), bool)
    box[16:48, 16:48] = True  # the middle quarter
    assert (new[5:] == box).all()
    assert new_pixels(Task(name="x", maker="x"), (9, 64, 64), GEOMETRY) is None

    target, painted = np.zeros((2, 9, 64, 64, 3), np.uint8)
    painted[:, :32] = MASK_COLOUR  # the reference hides the upper half
    pair = Pair("x", target, (painted,), "", 25.0)
    region = region_to_make(replace(task, maker="edit.hole"), pair, GEOMETRY)
    assert region is not None
    assert (region[5:] == (box & (np.arange(64) < 32)[:, None])).all()
    assert Suite.of(replace(task, family="edit")).primary == "psnr_inside"
    output = target.copy()
    output[:5] = 255  # an error in the given part does not count inside
    output[5:, 20, 20] = 8
    values = Suite.of(task).measure(output, GroundTruth(target, target, target, new)).values
    assert values["psnr_inside"] == pytest.approx(10 * math.log10(255**2 * 32 * 32 / 64))


def test_kept_latents_of_a_target_are_its_usual_cells() -> None:
    target = torch.randn(2, 3, *SIZE)
    kept = kept_of_target(target, CleanCells(checked(Condition("prefix", frames=[5, 5])), GEOMETRY.temporal))
    assert kept is not None
    filled = kept.fill(torch.zeros_like(target))
    assert torch.equal(filled[:, :, :2], target[:, :, :2])
    assert not filled[:, :, 2:].any()
    assert kept_of_target(target, CleanCells([], GEOMETRY.temporal)) is None


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([Condition("begin")], r"task\.conditions\[0\]\.kind='begin' is not one of first_frame, prefix"),
        ([Condition("prefix")], r"task\.conditions\[0\] \(prefix\): set frames: \[fewest, most\]"),
        ([Condition("prefix", frames=[9, 1])], r"frames=\[9, 1\] must be \[fewest, most\]"),
        ([Condition("suffix", frames=[0, 8])], r"\(suffix\): frames=\[0, 8\]"),
        ([Condition("suffix", frames=[8])], r"\(suffix\): frames=\[8\]"),
        ([Condition("first_frame", frames=[1, 1])], r"\(first_frame\): frames is not a key of this kind: remove it"),
        ([Condition("first_frame", p=0.0)], r"p=0\.0 must lie in \(0, 1\]; leave the entry out"),
        ([Condition("mask", cover=[0.5, 1.0])], r"\(mask\): cover=\[0\.5, 1\.0\]"),
        ([Condition("mask", shapes=["disc"])], r"\(mask\): shapes='disc' is not one of box, side, border"),
        ([Condition("mask", shapes=[])], r"shapes is empty"),
        ([Condition("first_frame"), Condition("first_frame")], r"2 entries of kind first_frame: give one"),
    ],
)
def test_an_error_names_the_entry_and_the_key(conditions: list[Condition], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(*conditions)


def test_an_adapter_file_says_what_it_was_trained_with() -> None:
    conditions = checked(Condition("prefix", frames=[1, 17]), Condition("mask", p=0.25, shapes=["box"]))
    metadata = conditions_metadata(conditions)
    assert conditions_of(metadata) == conditions
    assert [in_words(condition) for condition in conditions] == [
        "the first 1 to 17 frames",
        "all but a part of 10% to 50% of the picture: box (in 25% of the training clips)",
    ]
    (line,) = not_given(metadata, set())
    assert line == "the adapter was trained with the first 1 to 17 frames: prefix=... gives it to this video"
    assert not_given(metadata, {"prefix"}) == []
    assert conditions_metadata([]) == {}
    for text in ("", "{", "[1]", json.dumps([{"kind": "prefix"}]), json.dumps([{"colour": "red"}]), "7"):
        assert conditions_of({CONDITIONS: text}) == []  # not written by this project


# --- a reference of one frame at a place in the clip ---

LAST = Task(name="x", maker="edit.frame", reference_frame=-1)


def tokens_of(task: Task, reference: torch.Tensor) -> torch.Tensor:
    """The positions (3,n,2) of the reference tokens."""
    target = torch.zeros(1, 3, *SIZE)
    batch = Batch(target, [reference], torch.zeros(1, 1, 1), torch.tensor([25.0]), ["a"])
    tokens, _ = build_tokens(batch, draw_random(target, Flow(), step_generator(0, 0, 0)), task, GEOMETRY)
    return tokens.position[0, :, math.prod(SIZE) :]


@pytest.mark.parametrize(("frame", "start"), [(-1, 16), (0, 0), (7, 7), (-5, 12)])  # 17 frames
def test_a_reference_of_one_frame_stands_at_its_frame(frame: int, start: int) -> None:
    """As ltx-core's VideoConditionByKeyframeIndex places a single picture: [frame, frame + 1) at the clip's rate."""
    position = tokens_of(replace(LAST, reference_frame=frame), torch.zeros(1, 3, 1, *SIZE[1:]))
    assert position[0].unique().tolist() == pytest.approx([start / 25, (start + 1) / 25])
    target = torch.stack(torch.meshgrid(torch.arange(6) * 8, torch.arange(8) * 8, indexing="ij")).flatten(1)
    assert torch.equal(position[1:, :, 0], target.float())


def test_a_reference_that_does_not_fit_at_its_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.reference_frame=-1: a reference of 2 latent frames at frame 13 ends"):
        tokens_of(LAST, torch.zeros(1, 3, 2, *SIZE[1:]))
    with pytest.raises(ConfigError, match=r"task\.reference_frame=-18 does not exist in a clip of 17 frames: choose"):
        tokens_of(replace(LAST, reference_frame=-18), torch.zeros(1, 3, 1, *SIZE[1:]))
    with pytest.raises(ConfigError, match=r"reference_frame=5: the reference is a clip of 2 latent frames, and only"):
        tokens_of(replace(LAST, reference_frame=5), torch.zeros(1, 3, 2, *SIZE[1:]))
    with pytest.raises(ConfigError, match=r"task\.reference_downscale=1: clip a has a latent reference of 4x3"):
        tokens_of(LAST, torch.zeros(1, 3, 1, 3, 4))
    with pytest.raises(ConfigError, match=r"reference_frame=-1 and task\.reference_temporal_scale=2 are both set"):
        replace(LAST, reference_temporal_scale=2)


def test_a_sampled_reference_stands_where_training_put_it() -> None:
    latent = torch.zeros(1, 3, 1, *SIZE[1:])
    reference = Reference.of_task(latent, replace(LAST, reference_downscale=2), 0.5)
    assert (reference.downscale, reference.frame, reference.attention_strength) == (2, -1, 0.5)
    assert Reference.of_task(latent, Task(name="x", maker="x")).frame == 0


@pytest.mark.parametrize("text", ["1.5", "--1", "last", "99999", ""])
def test_metadata_with_another_frame_than_a_number_are_refused(text: str) -> None:
    (finding,) = metadata_findings({FRAME: text})
    assert finding == f"metadata reference_frame={text!r} must be the number of a frame, e.g. -1 or 8 to -9"
    assert metadata_findings({FRAME: "-1"}) == []
