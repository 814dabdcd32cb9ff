"""The ranks of a node share its cores."""

from __future__ import annotations

import os

import pytest
import torch

from iclora_train.core import threads
from iclora_train.core.threads import COMPILER, OMP, cores_of_rank, share_cores


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({}, 16),  # trainer.devices=8 or torchrun on a machine of 128 cores
        ({"SLURM_CPUS_PER_TASK": "12", "SLURM_CPUS_ON_NODE": "96"}, 12),  # eight tasks of srun
        ({"SLURM_CPUS_PER_TASK": "128", "SLURM_CPUS_ON_NODE": "128"}, 16),  # torchrun in one task of srun
        ({"SLURM_CPUS_ON_NODE": "128"}, 16),
    ],
)
def test_a_rank_gets_its_share_of_the_cores(variables: dict[str, str], cores: int) -> None:
    assert cores_of_rank(8, 128, variables) == cores


def test_a_task_that_is_bound_to_its_cores_uses_all_of_them() -> None:
    assert cores_of_rank(8, 12, {"SLURM_CPUS_PER_TASK": "12", "SLURM_CPUS_ON_NODE": "96"}) == 12
    assert cores_of_rank(8, 2, {}) == 1


def test_the_number_of_threads_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks on a machine of eight cores."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setenv(COMPILER, "")  # restored after the test
    for user, expected in (({}, ("2", "2")), ({OMP: "5"}, ("5", "2")), ({COMPILER: "7"}, ("2", "7"))):
        for name in (OMP, COMPILER):
            monkeypatch.delenv(name, raising=False)
        for name, value in user.items():
            monkeypatch.setenv(name, value)
        torch.set_num_threads(3)
        share_cores(4)
        assert (os.environ[OMP], os.environ[COMPILER]) == expected
        assert torch.get_num_threads() == (3 if OMP in user else 2)
    torch.set_num_threads(before)


def test_a_single_rank_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMPILER, raising=False)
    threads_before = torch.get_num_threads()
    share_cores(1)
    assert COMPILER not in os.environ
    assert torch.get_num_threads() == threads_before
