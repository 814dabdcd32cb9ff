"""Rank, local rank and world size of a process, by the launcher that started it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from iclora_train import train
from iclora_train.config import Config, ConfigError
from iclora_train.core.ranks import (
    LAUNCHER_VARIABLES,
    Placement,
    placement,
    require_single_process,
    single_process_environment,
    tasks_per_node,
)
from iclora_train.training.devices import process_device, require_devices

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "train",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}
TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in (*TORCHRUN, *LAUNCHER_VARIABLES, "LOCAL_WORLD_SIZE", "GROUP_RANK"):
            monkeypatch.delenv(name)


def launched(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Placement:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return placement()


def test_a_single_process_has_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched(monkeypatch, {}) == Placement(rank=0, local_rank=0, world_size=1, local_world_size=1)


def test_srun_gives_each_process_its_rank_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    place = launched(monkeypatch, SLURM)
    assert (place.rank, place.local_rank, place.world_size, place.node_rank) == (6, 2, 8, 1)
    assert (place.main_address, place.local_world_size) == ("node3", 4)
    gpu, cpu = Config(trainer={"accelerator": "gpu", "devices": 1}), Config(trainer={"accelerator": "cpu"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert process_device(gpu) == torch.device("cuda", 2)
    assert process_device(cpu) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # --gpus-per-task=1 shows each task one GPU
    assert process_device(gpu) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="local rank 2 has no GPU: 2 are visible"):
        process_device(gpu)


def test_a_list_of_gpus_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for devices in ([5], "5,"):
        assert process_device(Config(trainer={"devices": devices})) == torch.device("cuda", 5)
    launched(monkeypatch, TORCHRUN)
    assert process_device(Config(trainer={"devices": [3, 6]})) == torch.device("cuda", 6)
    with pytest.raises(ConfigError, match="no GPU for local rank 1"):
        process_device(Config(trainer={"devices": [3]}))


def test_a_number_of_devices_that_the_launcher_has_not_started_is_refused() -> None:
    for devices in (1, 8, "8", "auto", list(range(8))):
        require_devices(Config(trainer={"devices": devices}), world_size=16, on_this_node=8)
    with pytest.raises(ConfigError, match=r"trainer\.devices=4, but the launcher has started 8"):
        require_devices(Config(trainer={"devices": 4}), world_size=16, on_this_node=8)


def test_two_steps_of_a_job_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first = launched(monkeypatch, SLURM).main_port
    assert launched(monkeypatch, {"SLURM_PROCID": "0"}).main_port == first
    assert launched(monkeypatch, {"SLURM_STEP_ID": "1"}).main_port != first
    assert launched(monkeypatch, {"MASTER_PORT": "23456"}).main_port == 23456


def test_a_step_of_fewer_tasks_than_its_job_counts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun -n 3` without --ntasks-per-node in a job of 8 tasks: one node gets two tasks, the other one."""
    step = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
    place = launched(monkeypatch, {**SLURM, **step})
    assert (place.rank, place.world_size, place.local_world_size) == (2, 3, 1)
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]


def test_the_variables_of_torchrun_count_inside_a_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    place = launched(monkeypatch, {**SLURM, **TORCHRUN, "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"})
    assert (place.rank, place.local_rank, place.world_size, place.node_rank) == (5, 1, 8, 1)
    assert (place.main_address, place.main_port, place.local_world_size) == ("host", 29500, 4)


def test_salloc_and_the_script_of_sbatch_are_single_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have SLURM_NTASKS, and the script has SLURM_PROCID=0, but srun has started neither."""
    script = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert launched(monkeypatch, {**script, "SLURM_PROCID": "0"}).world_size == 1


def test_a_child_of_a_rank_is_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, {**SLURM, **TORCHRUN})
    assert launched(monkeypatch, single_process_environment()).world_size == 1


def test_preparation_started_by_several_tasks_is_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, SLURM)
    with pytest.raises(SystemExit):  # rank 6 is silent
        require_single_process("data_prep", "data.workers=8 uses 8 processes")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(ConfigError, match=r"has started 8: start one; data\.workers=8"):
        require_single_process("data_prep", "data.workers=8 uses 8 processes")


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
