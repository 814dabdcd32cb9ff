"""How many threads a rank may use: the ranks of a node share its cores."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

OMP, COMPILER = "OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"


def share_cores(ranks_per_node: int) -> None:
    """Let this rank use its share of the node's cores: threads of PyTorch's operators on the CPU, and processes that
    compile. Without it each rank starts as many as the node has cores. A number that the user has set is kept, and a
    single rank changes nothing.

    Call it before the first compilation, and before other processes are started, which inherit the variables.
    """
    if ranks_per_node == 1:
        return
    cores = cores_of_rank(ranks_per_node, len(os.sched_getaffinity(0)), os.environ)
    if OMP not in os.environ:
        torch.set_num_threads(cores)
    for name in (OMP, COMPILER):
        os.environ.setdefault(name, str(cores))


def cores_of_rank(ranks_per_node: int, available: int, variables: Mapping[str, str]) -> int:
    """Cores for one of the ranks of a node. available: cores on which this process may run.

    SLURM may already have bound each task to its cores. It has if SLURM_CPUS_PER_TASK times the ranks is at most the
    job's cores on the node. If one task has started all ranks (torchrun), the product is larger.
    """
    per_task, on_node = (int(variables.get(f"SLURM_CPUS_{name}", "0")) for name in ("PER_TASK", "ON_NODE"))
    if 0 < per_task * ranks_per_node <= on_node:
        return min(per_task, available)
    return max(available // ranks_per_node, 1)
