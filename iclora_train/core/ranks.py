"""Where this process stands among the processes of a run: rank, local rank, node, world size, address of rank 0.

Everything that depends on ranks asks here: device, screen, locks, data preparation, W&B, memory plan. The values come
from the launcher's environment variables, so they are known before torch.distributed starts:

    torchrun, `trainer.devices=N`, other launchers of PyTorch   RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
    srun                                                        the variables of the job step
    LSF (jsrun), MPI (mpirun, with mpi4py)                      Lightning's cluster environments

A process that was started by none of them is a single process.
"""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass
from functools import cache

from iclora_train.config import require

TORCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SINGLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
LAUNCHER_VARIABLES = ("LSB_DJOB_RANKFILE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # LSF, Open MPI, MPICH
# Rank 0 listens on one of them, outside the range from which systems take the ports of connections.
PORTS = range(15000, 25000)


@dataclass(frozen=True)
class Placement:
    """The place of a process in its run.

    local_world_size: processes on this node; None if the launcher does not tell (`process_group` counts them).
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    node_rank: int = 0
    main_address: str = "localhost"
    main_port: int = 0
    local_world_size: int | None = 1


def placement() -> Placement:
    """The place of this process."""
    if all(name in os.environ for name in TORCH_VARIABLES):
        return _torch_placement()
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:  # a task of srun, not the script of sbatch
        return _slurm_placement()
    if any(name in os.environ for name in LAUNCHER_VARIABLES):
        return _placement_of_lightning()
    return Placement()


def global_rank() -> int:
    """Number of this process among all processes of the run, from 0."""
    return placement().rank


def local_rank() -> int:
    """Number of this process among the processes of its node, from 0."""
    return placement().local_rank


def node_rank() -> int:
    """Number of this process's node, from 0."""
    return placement().node_rank


def world_size() -> int:
    """The number of processes of the run, on all nodes."""
    return placement().world_size


def ranks_on_node() -> int:
    """The number of processes of the run on this node; 1 if the launcher does not tell."""
    return placement().local_world_size or 1


def require_single_process(command: str, remedy: str) -> None:
    """End a command that several ranks have started but that runs in one process: rank 0 raises ConfigError."""
    if global_rank() > 0:
        raise SystemExit(2)
    count = world_size()
    require(count == 1, f"{command} runs in one process, and the launcher has started {count}: start one; {remedy}")


def single_process_environment() -> dict[str, str]:
    """Environment variables for a child process that is not a rank of this run, e.g. the evaluation after training."""
    return {**os.environ, **SINGLE}


def _torch_placement() -> Placement:
    number = {name: int(os.environ[name]) for name in TORCH_VARIABLES if name != "MASTER_ADDR"}
    local = os.environ.get("LOCAL_WORLD_SIZE")
    return Placement(
        rank=number["RANK"],
        local_rank=number["LOCAL_RANK"],
        world_size=number["WORLD_SIZE"],
        node_rank=int(os.environ.get("GROUP_RANK", os.environ.get("NODE_RANK", "0"))),
        main_address=os.environ["MASTER_ADDR"],
        main_port=number["MASTER_PORT"],
        local_world_size=None if local is None else int(local),
    )


def _slurm_placement() -> Placement:
    """The place of a task of `srun`, with or without --ntasks-per-node (which Lightning's SLURMEnvironment requires).

    The variables of the job step count: an allocation may hold more tasks and nodes than this `srun` uses. Each step
    has a port of its own, so that two steps of a job, or two jobs, can run on one node.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment  # noqa: PLC0415 (slow)

    variables = os.environ
    world_size = int(variables.get("SLURM_STEP_NUM_TASKS", variables.get("SLURM_NTASKS", "1")))
    nodes = variables.get("SLURM_STEP_NODELIST", variables.get("SLURM_NODELIST", "localhost"))
    node = int(variables.get("SLURM_NODEID", "0"))
    tasks = tasks_per_node(variables.get("SLURM_STEP_TASKS_PER_NODE", variables.get("SLURM_TASKS_PER_NODE", "")))
    step = f"{variables.get('SLURM_JOB_ID')}.{variables['SLURM_STEP_ID']}"
    return Placement(
        rank=int(variables["SLURM_PROCID"]),
        local_rank=int(variables.get("SLURM_LOCALID", "0")),
        world_size=world_size,
        node_rank=node,
        main_address=variables.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes),
        main_port=int(variables.get("MASTER_PORT") or PORTS[zlib.crc32(step.encode()) % len(PORTS)]),
        local_world_size=tasks[node] if node < len(tasks) else None,
    )


def tasks_per_node(text: str) -> list[int]:
    """The number of tasks of each node, from SLURM's short form: `2(x3),1` is 2, 2, 2, 1."""
    numbers = []
    for tasks, repeats in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        numbers += [int(tasks)] * int(repeats or 1)
    return numbers


@cache  # with MPI, asking for the address is a collective operation
def _placement_of_lightning() -> Placement:
    """The place of a process of LSF or MPI; a single process if neither is in use."""
    from lightning.fabric.plugins.environments.lsf import LSFEnvironment  # noqa: PLC0415 (slow)
    from lightning.fabric.plugins.environments.mpi import MPIEnvironment  # noqa: PLC0415

    environment = LSFEnvironment() if LSFEnvironment.detect() else MPIEnvironment() if MPIEnvironment.detect() else None
    if environment is None:
        return Placement()
    local = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    return Placement(
        rank=environment.global_rank(),
        local_rank=environment.local_rank(),
        world_size=environment.world_size(),
        node_rank=environment.node_rank(),
        main_address=environment.main_address,
        main_port=environment.main_port,
        local_world_size=None if local is None else int(local),
    )
