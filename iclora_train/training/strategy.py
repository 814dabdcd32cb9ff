"""How Lightning runs the ranks: one device per process, and gradients of the adapter averaged over all ranks."""

from __future__ import annotations

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from iclora_train.core.ranks import Placement
from iclora_train.training.data_parallel import data_parallel


class RankStrategy(DDPStrategy):
    """DistributedDataParallel with one device per process, whatever the number of GPUs that this process sees.

    Lightning's own strategy takes the GPU with the number of the local rank, which does not exist where SLURM shows
    each task one GPU (`--gpus-per-task=1`).
    """

    @property
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        return self.parallel_devices[0]

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        return data_parallel(model, self.root_device)


def strategy_of(place: Placement) -> Strategy | str:
    """The strategy of the Trainer."""
    return RankStrategy() if place.world_size > 1 else "auto"


class PlacedProcess(ClusterEnvironment):
    """Tells Lightning the place of this process, so that it neither starts processes nor handles signals of SLURM."""

    def __init__(self, place: Placement) -> None:
        super().__init__()
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.place.main_address

    @property
    def main_port(self) -> int:
        return self.place.main_port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.place.world_size

    def set_world_size(self, size: int) -> None:
        """The launcher has decided it."""

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        """The launcher has decided it."""

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node_rank
