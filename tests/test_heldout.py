"""Watching a run: figures of val clips in every row where they are due, and nothing of the run changed by looking."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.training.validation import ValidationBatches, validation_columns, validation_losses
from iclora_train.training.validation_metrics import SAMPLED
from tests.command import Result, run
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents

OFF = ["validation.loss_every=0", "validation.clips_every=0"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a short run on a tiny base with its latents, looked at in every way."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny_base(folder / "base")
    overrides = ["conf=deblur", f"model.checkpoint={base}", f"data.root={folder}/shards", *SETTINGS]
    overrides += ["model.lora.rank=4", "optim=adamw", "optim.ema=0.9", "trainer.accelerator=cpu", "trainer.max_steps=5"]
    overrides += ["trainer.accumulate_grad_batches=2", "sample.steps=1", "logger=csv", "run=run"]
    overrides += ["validation.loss_every=3", "validation.clips_every=2", "validation.windows=4"]
    overrides += ["validation.sigmas=[0.5]", "eval.after_training=false"]
    write_tiny_latents(folder / "shards" / "latents", base, composed(*overrides))
    return overrides


@pytest.fixture(scope="module")
def watched(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("watched")
    return folder, run(folder, "iclora_train", *tiny)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs/run/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_figures_stand_in_the_rows_where_they_are_due(watched: tuple[Path, Result]) -> None:
    folder, result = watched
    assert (result.code, result.err) == (0, "")
    table = rows(folder)
    assert [row["step"] for row in table if row["control_gain"]] == ["0", "3", "5"]
    assert [row["step"] for row in table if row["swap_gap_0.5"]] == ["0", "3", "5"]
    assert [row["step"] for row in table if row["sampled_psnr"]] == ["2", "4", "5"]
    made = {path.name[:13] for path in (folder / "runs/run/samples").iterdir()}
    assert made == {"step-00000002", "step-00000004", "step-00000005"}
    assert "control gain" in result.out
    assert "validation clips: PSNR" in result.out


def test_looking_changes_nothing_of_the_run(watched: tuple[Path, Result], tiny: list[str], tmp_path: Path) -> None:
    unwatched = run(tmp_path, "iclora_train", *tiny, *OFF)
    assert (unwatched.code, unwatched.err) == (0, "")
    adapter = "runs/run/adapter.safetensors"
    assert (tmp_path / adapter).read_bytes() == (watched[0] / adapter).read_bytes()
    assert [row["loss"] for row in rows(tmp_path)] == [row["loss"] for row in rows(watched[0])[1:]]


def test_losses_neither_draw_from_the_random_state_nor_depend_on_it(tiny: list[str]) -> None:
    config = composed(*tiny)
    base = BaseModel.open(config.model.checkpoint)
    heldout = ValidationBatches.open(ShardSet.open(Path(config.data.root) / "latents"), config)
    transformer = base.transformer().train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = validation_losses(transformer, heldout, config, base.geometry)
    assert torch.equal(torch.get_rng_state(), before)
    assert transformer.training
    torch.manual_seed(2)
    assert validation_losses(transformer, heldout, config, base.geometry) == first
    assert [*first, *SAMPLED] == validation_columns(config)
    assert all(torch.isfinite(torch.tensor(list(first.values()))))
