"""Rank, local rank and world size of this process, under SLURM (srun), torchrun or Lightning's own launcher.

The values are available before torch.distributed is initialised. Launchers are detected in Lightning's order, so that
these ranks equal the Trainer's.
"""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only

from iclora_train.config import ConfigError


def _launcher() -> ClusterEnvironment | None:
    """The launcher that started this process as one of several. None: Lightning's launcher, or a single process."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if "SLURM_PROCID" in os.environ and SLURMEnvironment.detect():  # salloc sets SLURM_NTASKS without any rank
        try:
            return SLURMEnvironment()
        except RuntimeError as error:  # --ntasks without --ntasks-per-node
            raise ConfigError(str(error)) from error
    return None


def global_rank() -> int:
    """Number of this process among all processes of the run, from 0."""
    launcher = _launcher()
    return int(getattr(rank_zero_only, "rank", 0)) if launcher is None else launcher.global_rank()


def local_rank() -> int:
    """Number of this process among the processes of its machine, from 0: the index of its GPU."""
    launcher = _launcher()
    return int(os.environ.get("LOCAL_RANK", "0")) if launcher is None else launcher.local_rank()


def world_size() -> int:
    """The number of processes of the run. Lightning's launcher sets WORLD_SIZE in the processes that it starts."""
    launcher = _launcher()
    return int(os.environ.get("WORLD_SIZE", "1")) if launcher is None else launcher.world_size()
