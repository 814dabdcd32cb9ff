"""Validation during a run: its metrics are in the rows where they are due, and it does not change the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.training.validation import ValidationBatches, validation_columns, validation_losses
from iclora_train.training.validation_metrics import CLIP_COLUMNS
from tests.command import Result, read_csv, run
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents

OFF = ["validation.loss_every=0", "validation.clips_every=0"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a short run with all kinds of validation, on a tiny base and its latents."""
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
def validated(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("validated")
    return folder, run(folder, "iclora_train", *tiny)


def rows(folder: Path) -> list[dict[str, str]]:
    return read_csv(folder / "runs/run/metrics.csv")


def test_metrics_are_in_the_rows_where_they_are_due(validated: tuple[Path, Result]) -> None:
    folder, result = validated
    assert (result.code, result.err) == (0, "")
    table = rows(folder)
    assert [row["step"] for row in table if row["control_gain"]] == ["0", "3", "5"]
    assert [row["step"] for row in table if row["swap_gap_0.5"]] == ["0", "3", "5"]
    assert [row["step"] for row in table if row["sampled_psnr"]] == ["2", "4", "5"]
    steps = {path.name[:13] for path in (folder / "runs/run/samples").iterdir()}
    assert steps == {"step-00000002", "step-00000004", "step-00000005"}
    assert "control gain" in result.out
    assert "validation clips: PSNR" in result.out


def test_validation_does_not_change_the_run(validated: tuple[Path, Result], tiny: list[str], tmp_path: Path) -> None:
    plain = run(tmp_path, "iclora_train", *tiny, *OFF)
    assert (plain.code, plain.err) == (0, "")
    adapter = "runs/run/adapter.safetensors"
    assert (tmp_path / adapter).read_bytes() == (validated[0] / adapter).read_bytes()
    assert [row["loss"] for row in rows(tmp_path)] == [row["loss"] for row in rows(validated[0])[1:]]


def test_validation_losses_do_not_use_the_global_random_state(tiny: list[str]) -> None:
    config = composed(*tiny)
    base = BaseModel.open(config.model.checkpoint)
    batches = ValidationBatches.open(ShardSet.open(Path(config.data.root) / "latents"), config)
    transformer = base.transformer().train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = validation_losses(transformer, batches, config, base.geometry)
    assert torch.equal(torch.get_rng_state(), before)
    assert transformer.training
    torch.manual_seed(2)
    assert validation_losses(transformer, batches, config, base.geometry) == first
    assert [*first, *CLIP_COLUMNS] == validation_columns(config)
    assert all(torch.isfinite(torch.tensor(list(first.values()))))
