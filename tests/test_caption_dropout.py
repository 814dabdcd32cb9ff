"""Caption dropout: some clips of a batch are trained with the features of the empty caption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iclora_train.config import ConfigError, Flow
from iclora_train.core.fingerprint import config_hash
from iclora_train.data.batch import Batch, collate
from iclora_train.data.shards import ShardSet
from iclora_train.diffusion.random_draws import RandomDraws, draw_random, step_generator
from iclora_train.diffusion.training_inputs import drop_captions
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.training.lightning_module import ICLoRA
from tests.command import read_csv, run
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents

TARGET = torch.zeros(4, 3, 2, 2, 4)
TEXT = torch.arange(24.0).view(4, 2, 3)
EMPTY = -torch.ones(2, 3)
BATCH = Batch(TARGET, [], TEXT, torch.full((4,), 25.0), list("abcd"))
P = "flow.caption_dropout_p"
EVERY_DRAW = Flow(attention_strength_p=1.0, region_mask_p=1.0, locality=1.0, locality_p=1.0)


def draws_of(flow: Flow, target: Tensor = TARGET) -> RandomDraws:
    return draw_random(target, flow, step_generator(0, 3, 1))


@pytest.mark.parametrize("flow", [Flow(), EVERY_DRAW])
def test_caption_dropout_changes_no_other_draw(flow: Flow) -> None:
    plain, dropped = draws_of(flow), draws_of(replace(flow, caption_dropout_p=1.0))
    assert plain.drop_caption is None
    assert dropped.drop_caption is not None
    assert dropped.drop_caption.all()
    for name in ("sigma", "noise", "clean_first_frame", "use_references", "attention_strength", "region"):
        first, second = getattr(plain, name), getattr(dropped, name)
        assert (first is None and second is None) or torch.equal(first, second)


def test_captions_are_dropped_with_probability_p_by_seed_step_and_slot() -> None:
    flow, many = Flow(caption_dropout_p=0.1), torch.zeros(5000, 1, 1, 1, 1)
    first, again = (draw_random(many, flow, step_generator(0, 7, 1)).drop_caption for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    assert float(first.float().mean()) == pytest.approx(0.1, abs=0.02)
    for seed, step, slot in ((1, 7, 1), (0, 8, 1), (0, 7, 0)):
        other = draw_random(many, flow, step_generator(seed, step, slot)).drop_caption
        assert other is not None
        assert not torch.equal(first, other)


def test_only_the_dropped_clips_get_the_empty_caption() -> None:
    dropped = torch.tensor([False, True, False, True])
    batch = drop_captions(BATCH, replace(draws_of(Flow()), drop_caption=dropped), EMPTY)
    assert torch.equal(batch.text[~dropped], TEXT[~dropped])
    assert torch.equal(batch.text[dropped], EMPTY.expand(2, 2, 3))
    assert torch.equal(BATCH.text, torch.arange(24.0).view(4, 2, 3))  # the batch of the loader is unchanged
    assert drop_captions(BATCH, draws_of(Flow()), None) is BATCH


def test_an_empty_caption_of_another_size_is_refused() -> None:
    draws = replace(draws_of(Flow()), drop_caption=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"empty caption .* \(1, 3\), clip a of \(2, 3\)"):
        drop_captions(BATCH, draws, EMPTY[:1])


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_probability_beyond_its_bounds_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"flow\.caption_dropout_p={value} must lie in \[0, 1\]"):
        Flow(caption_dropout_p=value)


def test_caption_dropout_is_part_of_the_hash_of_an_adapter() -> None:
    """That the hash without it is as before, `test_compatibility` shows with an adapter of version 0.1."""
    plain, zero, dropout = (composed("conf=deblur", *more) for more in ([], [f"{P}=0"], [f"{P}=0.1"]))
    assert config_hash(plain) == config_hash(zero) != config_hash(dropout)


def test_a_module_trains_dropped_captions_as_the_empty_caption(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    config = composed("conf=deblur", f"model.checkpoint={base}", "model.precision=fp32", "flow.caption_dropout_p=1")
    shards = ShardSet.open(write_tiny_latents(tmp_path / "latents", base, config))
    batch, empty = collate([shards.read_latents(i) for i in range(3)]), shards.empty_text()
    module = ICLoRA(config, BaseModel.open(str(base)), empty_text=empty)
    assert "empty_text" not in module.state_dict()
    without = module.losses(batch, step_generator(0, 0, 0)).flow
    captioned = module.losses(replace(batch, text=2 * batch.text), step_generator(0, 0, 0)).flow
    assert torch.equal(without, captioned)
    config.flow.caption_dropout_p = 0.0
    expected = module.losses(replace(batch, text=empty.expand_as(batch.text)), step_generator(0, 0, 0)).flow
    assert torch.equal(without, expected)
    assert not torch.equal(without, module.losses(batch, step_generator(0, 0, 0)).flow)


def test_a_run_on_two_sources_drops_captions_and_validates_with_them(tmp_path: Path) -> None:
    """Before the first step, the validation losses of runs with and without dropout are equal: captions stay there."""
    base = write_tiny_base(tmp_path / "base")
    common = ["conf=deblur", f"model.checkpoint={base}", "trainer.accelerator=cpu", *SETTINGS, "model.lora.rank=2"]
    common += ["optim=adamw", "trainer.max_steps=2", "logger=csv", "eval.after_training=false", "sample.steps=2"]
    common += ["validation.sigmas=[0.5]", "validation.loss_every=2", "data.batch_size=4"]
    for seed, name in enumerate(("soft", "hard")):
        write_tiny_latents(tmp_path / name / "latents", base, composed(*common, f"data.root={tmp_path}"), seed=seed)
    common += ["data.sources=[{root: soft}, {root: hard}]"]
    rows = {}
    for name, p in (("plain", 0), ("dropout", 1)):
        result = run(tmp_path, "iclora_train", *common, f"flow.caption_dropout_p={p}", f"run={name}")
        assert (result.code, result.err) == (0, "")
        rows[name] = read_csv(tmp_path / f"runs/{name}/metrics.csv")
    losses = [column for column in rows["plain"][0] if column.startswith("val_")]
    assert [rows["plain"][0][column] for column in losses] == [rows["dropout"][0][column] for column in losses]
    assert rows["plain"][1]["loss"] != rows["dropout"][1]["loss"]
