"""Rank, local rank and world size of a process, by the launcher that started it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only

from iclora_train import train
from iclora_train.config import Config, ConfigError
from iclora_train.core.ranks import global_rank, local_rank, world_size

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", *SLURM)
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)


def launched(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> tuple[int, int, int]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return global_rank(), local_rank(), world_size()


def test_a_single_process_has_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched(monkeypatch, {}) == (0, 0, 1)


def test_srun_gives_each_process_its_rank_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched(monkeypatch, SLURM) == (6, 2, 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert train.process_device(Config(trainer={"accelerator": "gpu"})) == torch.device("cuda", 2)
    assert train.process_device(Config(trainer={"accelerator": "cpu"})) == torch.device("cpu")


def test_the_variables_of_lightnings_launcher_and_torchrun_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched(monkeypatch, {"LOCAL_RANK": "1", "WORLD_SIZE": "2"})[1:] == (1, 2)
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
    assert launched(monkeypatch, {**SLURM, **torchrun}) == (5, 1, 8)  # torchrun inside a SLURM job


def test_a_shell_of_salloc_is_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched(monkeypatch, {"SLURM_JOB_NAME": "job", "SLURM_NTASKS": "8"}) == (0, 0, 1)


def test_tasks_without_tasks_per_node_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {key: value for key, value in SLURM.items() if key != "SLURM_NTASKS_PER_NODE"}
    with pytest.raises(ConfigError, match="--ntasks-per-node=8"):
        launched(monkeypatch, variables)


def lightning_warnings(*, quiet: bool) -> list[str]:
    """The warnings of Lightning while a Trainer is built."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if quiet:
            train.quiet_lightning()
        Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return [str(warning.message) for warning in caught]


def test_srun_on_the_path_of_a_login_node_causes_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert any("srun" in message for message in lightning_warnings(quiet=False))
    assert lightning_warnings(quiet=True) == []
