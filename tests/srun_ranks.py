"""Start the ranks of a run as srun starts them: one process each, with SLURM's variables for a job step."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from iclora_train.core.local_ranks import free_port
from tests.command import Result, start


def slurm_variables(rank: int, count: int, port: int, per_node: int = 0) -> dict[str, str]:
    """The variables of task `rank` of `srun -n count` without --ntasks-per-node. per_node: tasks per node; 0: all."""
    per_node = per_node or count
    return {
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NAME": "train",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{count // per_node})",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % per_node),
        "SLURM_NODEID": str(rank // per_node),
        "MASTER_PORT": str(port),
    }


def start_ranks(folder: Path, arguments: Sequence[Sequence[str]], per_node: int = 0) -> list[BaseProcess]:
    """Start a training process in `folder` for each entry of `arguments`. Rank k writes out-k.txt and err-k.txt."""
    port = free_port()
    return [
        start(
            folder,
            "iclora_train",
            *words,
            variables=slurm_variables(rank, len(arguments), port, per_node),
            suffix=f"-{rank}",
        )
        for rank, words in enumerate(arguments)
    ]


def results(folder: Path, ranks: Sequence[BaseProcess], seconds: float = 120) -> list[Result]:
    """How the ranks ended, once all have."""
    deadline = time.monotonic() + seconds
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
    running = [i for i, rank in enumerate(ranks) if rank.exitcode is None]
    for i in running:
        ranks[i].kill()
    texts = [[(folder / f"{name}-{i}.txt").read_text() for name in ("out", "err")] for i in range(len(ranks))]
    assert not running, f"ranks {running} still run after {seconds} s: {texts}"
    return [Result(int(rank.exitcode or 0), *text) for rank, text in zip(ranks, texts, strict=True)]


def wait_for_step(folder: Path, step: int, ranks: Sequence[BaseProcess], seconds: float = 120) -> None:
    """Wait until runs/run/metrics.csv in `folder` has the row of a step."""
    table, deadline = folder / "runs/run/metrics.csv", time.monotonic() + seconds
    while not (table.exists() and len(table.read_text().splitlines()) > step + 1):
        assert all(rank.is_alive() for rank in ranks), "a rank has ended"
        assert time.monotonic() < deadline, f"step {step} is not reached after {seconds} s"
        time.sleep(0.05)


def end(process: BaseProcess, number: int) -> None:
    """Send a signal to a process."""
    assert process.pid is not None
    os.kill(process.pid, number)
