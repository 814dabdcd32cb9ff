"""Run folders that were damaged, copied by half, or written by other versions."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from iclora_train.config import ConfigError, Flow, Validation
from iclora_train.core.ranks import SINGLE
from iclora_train.core.scores import judged_adapter, read_comparable_scores, read_scores
from iclora_train.data.batch_sampler import BATCHES_PER_STEP
from iclora_train.training.checkpointing import (
    AtomicCheckpointIO,
    batches_per_step,
    newest_checkpoint,
    resume_or_refuse,
    settings_digests,
)
from iclora_train.training.loggers import CsvLogger
from iclora_train.training.memory_search import read_plan
from tests.damage import check_reader, damaged_bytes, damaged_json
from tests.tiny import composed

FILES = Path(__file__).parent / "version_0_1" / "runs" / "run"
DIGEST = "a" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of version 0.1 that was killed after step 4."""
    return Path(shutil.copytree(FILES, tmp_path / "run"))


def record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def settings_of(folder: Path, batches_per_step: int = 1) -> dict[str, Any]:
    """The settings of the run as this version compares them."""
    settings = record_of(folder)
    return {**settings, "trainer": {"max_steps": settings["trainer"]["max_steps"]}, BATCHES_PER_STEP: batches_per_step}


def change_record(folder: Path, **sections: object) -> None:
    (folder / "run.json").write_text(json.dumps(record_of(folder) | sections))


def test_a_damaged_record_of_the_settings(folder: Path) -> None:
    settings, record = settings_of(folder), folder / "run.json"
    variants = chain(damaged_bytes(record.read_bytes()), damaged_json(record_of(folder), items=1))
    errors = check_reader(folder / "run.json", lambda: resume_or_refuse(folder, settings, DIGEST), variants, False)
    assert errors > 100


def test_a_setting_that_is_newer_than_the_run_counts_as_its_default(folder: Path) -> None:
    settings = settings_of(folder)
    older = json.loads(json.dumps(settings))
    del older["flow"]["uniform_p"], older["validation"]["windows"]
    (folder / "run.json").write_text(json.dumps(older))
    settings["flow"]["uniform_p"], settings["validation"]["windows"] = Flow().uniform_p, Validation().windows
    resume_or_refuse(folder, settings, DIGEST)
    settings["flow"]["uniform_p"] = 0.5
    with pytest.raises(ConfigError, match=r"flow\.uniform_p: .* -> 0\.5"):
        resume_or_refuse(folder, settings, DIGEST)


def test_shards_that_were_made_again_from_other_clips_are_refused(folder: Path) -> None:
    settings = settings_of(folder)
    resume_or_refuse(folder, settings, DIGEST)  # version 0.1 did not record the shards
    change_record(folder, shards=DIGEST)
    resume_or_refuse(folder, settings, DIGEST)
    with pytest.raises(ConfigError, match=r"was trained on other shards than data\.root holds now.*run=<name>"):
        resume_or_refuse(folder, settings, "b" * 64)


@pytest.mark.parametrize(
    ("ranks", "accumulated", "hint"),
    [
        (2, 4, ""),
        (4, 2, ""),
        (2, 2, "8 -> 4; 2 rank(s) have 8 batches per step with trainer.accumulate_grad_batches=4)"),
        (16, 1, "8 -> 16; 8 batches per step cannot be divided among 16 ranks)"),
    ],
)
def test_the_batches_of_a_step_must_stay_as_many_on_any_number_of_ranks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, accumulated: int, hint: str
) -> None:
    (folder / "run.json").write_text(json.dumps(settings_of(folder, batches_per_step=8)))
    for name, value in {**SINGLE, "WORLD_SIZE": str(ranks)}.items():
        monkeypatch.setenv(name, value)
    batches = batches_per_step(composed(f"trainer.accumulate_grad_batches={accumulated}", "conf=deblur"))
    settings = settings_of(folder) | {BATCHES_PER_STEP: batches}
    if not hint:
        resume_or_refuse(folder, settings, DIGEST)
        return
    with pytest.raises(ConfigError) as refused:
        resume_or_refuse(folder, settings, DIGEST)
    assert f"trainer.devices x trainer.num_nodes x trainer.accumulate_grad_batches: {hint}" in str(refused.value)


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", None])
def test_a_number_of_batches_that_is_not_one_is_refused(value: object) -> None:
    config = composed("conf=deblur")
    config.trainer["accumulate_grad_batches"] = value
    with pytest.raises(ConfigError, match=r"trainer\.accumulate_grad_batches=.* must be a whole number of at least 1"):
        batches_per_step(config)


def test_a_run_of_an_earlier_version_with_several_batches_per_step_is_refused(folder: Path) -> None:
    """That version put clips into another order. How many devices `auto` meant was not recorded."""
    settings = settings_of(folder)
    for devices in (1, "auto", -1, [0]):
        change_record(folder, trainer={"max_steps": 6, "devices": devices, "accumulate_grad_batches": 1})
        resume_or_refuse(folder, settings, DIGEST)
    for devices, accumulated in ((2, 1), (1, 2), ([0, 1], 1)):
        change_record(folder, trainer={"max_steps": 6, "devices": devices, "accumulate_grad_batches": accumulated})
        with pytest.raises(
            ConfigError, match=r"an earlier version.* in another order: finish it with the version that"
        ):
            resume_or_refuse(folder, settings | {BATCHES_PER_STEP: 2}, DIGEST)


def test_a_checkpoint_of_version_0_1_is_accepted_without_its_run_json(folder: Path) -> None:
    """Deleting a damaged run.json is the remedy that the error names."""
    checkpoint = AtomicCheckpointIO().load_checkpoint(folder / "checkpoints" / "step-00000004.ckpt", weights_only=True)
    settings = settings_of(folder)
    assert checkpoint["settings"] in settings_digests(settings, folder)
    (folder / "run.json").unlink()
    assert checkpoint["settings"] in settings_digests(settings, folder)
    assert checkpoint["settings"] not in settings_digests(settings | {BATCHES_PER_STEP: 2}, folder)


def test_a_damaged_checkpoint(folder: Path) -> None:
    path = folder / "checkpoints" / "step-00000004.ckpt"

    def load() -> list[str]:
        checkpoint = newest_checkpoint(path.parent)
        assert checkpoint is not None
        return sorted(AtomicCheckpointIO().load_checkpoint(checkpoint, weights_only=True))

    variants = [case for case in damaged_bytes(path.read_bytes(), flips=25) if case[0] != "twice"]
    check_reader(path, load, iter(variants), detects=True)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], "text", {"settings": Path("x")}])
def test_a_checkpoint_of_something_else_is_one_line_without_torchs_advice_to_unpickle_it(
    folder: Path, content: Any
) -> None:
    path = folder / "checkpoints" / "step-00000009.ckpt"
    torch.save(content, path)
    with pytest.raises(ConfigError, match=r"step-00000009\.ckpt cannot be loaded .*delete the file") as caught:
        AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def resumed(path: Path, step: int = 4) -> str:
    logger = CsvLogger(path, ["step", "loss"])
    logger.start(step)
    logger.close()
    return path.read_text()


def test_the_row_of_an_interrupted_validation_is_written_once(tmp_path: Path) -> None:
    """A run that resumes from the same checkpoint twice writes its row twice."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n3,0.5\n")
    for _ in range(2):
        logger = CsvLogger(path, ["step", "loss"])
        logger.start(4)
        logger.write([{"step": 4, "loss": 0.25}])
        logger.close()
    assert path.read_text() == "step,loss\n3,0.5\n4,0.25\n"


def test_a_table_of_metrics_loses_nothing_but_its_damaged_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.4\n3,0.")
    assert resumed(path) == "step,loss\n1,0.5\n2,0.4\n"
    assert "the last line of" in capsys.readouterr().err
    damaged = b"step,loss\n1,0.5\n2,0.#\n3,0.3\n\0\0\0\0\n"
    path.write_bytes(damaged)
    assert resumed(path) == "step,loss\n1,0.5\n3,0.3\n"
    assert "2 damaged lines of" in capsys.readouterr().err
    assert (tmp_path / "metrics.damaged1.csv").read_bytes() == damaged
    path.write_bytes(b"\0" * 50)
    assert resumed(path) == "step,loss\n"
    assert "begun again" in capsys.readouterr().err
    assert (tmp_path / "metrics.damaged2.csv").read_bytes() == b"\0" * 50
    path.write_bytes(b"\xef\xbb\xbfstep,loss\r\n1,0.5\r\n")  # saved by a spreadsheet
    assert resumed(path) == "step,loss\n1,0.5\n"
    assert capsys.readouterr().err == ""


def test_tables_of_any_content(folder: Path) -> None:
    path = folder / "metrics.csv"
    for _, data in damaged_bytes(path.read_bytes(), flips=60):
        path.write_bytes(data)
        assert resumed(path).startswith("step,loss")


def test_a_damaged_memory_plan_is_searched_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, place = tmp_path / "memory.json", {"device": "x", "torch": "y", "memory": "auto"}
    value = {"place": place, "activation_budget": 0.5, "activation_offload": 0.0, "gib": 3.0, "cache_transposed": True}
    path.write_text(json.dumps(value))
    variants = chain(damaged_bytes(path.read_bytes()), damaged_json(value))
    check_reader(path, lambda: read_plan(path, place), variants, detects=False)
    assert "memory.json" in capsys.readouterr().err


def test_damaged_scores(tmp_path: Path) -> None:
    estimate = {"mean": 1.0, "low": 0.5, "high": 1.5}
    windows = {"adapter+reference": {"psnr": [1.0, None]}}
    provenance = {"protocol": {}, "settings": {"sample": {}}, "shards": {"pairs": "a", "latents": "b"}}
    value = {
        **{"schema": 2, "task": "t", "primary": "psnr", "adapter": {"sha256": DIGEST}, "seeds": [0], "base": {}},
        "clips": [{"key": "a", "source": "a"}, {"key": "b", "source": "b"}],
        "cells": {"adapter+reference": {"psnr": estimate}},
        "strength": [{"s": 1.0, "metrics": {"psnr": estimate}}],
        "metrics": {"psnr": {"title": "PSNR", "unit": "dB", "better": "high"}},
        "windows": windows,
        "provenance": provenance | dict.fromkeys(("precision", "device", "versions"), "x"),
    }
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(value))
    for read in (judged_adapter, read_scores, read_comparable_scores):
        variants = chain(damaged_bytes(path.read_bytes()), damaged_json(value))
        assert check_reader(path, lambda read=read: read(path), variants, detects=False) > 50
