"""LightningDataModule over latent shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from iclora_train.config import ConfigError
from iclora_train.core.types import LatentPair
from iclora_train.data.batch import Batch, collate
from iclora_train.data.batch_sampler import BatchPlan, LatentDataset, plan_batches
from iclora_train.data.prefetch import Prefetch
from iclora_train.data.shards import ShardSet

# What PyTorch says when workers cannot hand over their batches: /dev/shm is full or the limit on open files is reached.
LACKS = {
    (
        "shared memory",
        "Bus error",
    ): "have too little shared memory (/dev/shm): set data.workers=0, or give the container "
    "more (docker run --shm-size=8g, or --ipc=host)",
    ("Too many open files", "ancdata"): "reach the limit on open files: set data.workers=0, or raise the limit with "
    "`ulimit -n 4096`",
}
T = TypeVar("T")


class LatentDataModule(LightningDataModule):
    """An endless sequence of training batches, starting at batch `start_batch` of this rank.

    `position` counts the batches that training has used, without batches that are only read ahead. `state_dict` saves
    it. The batch plan is already split over the ranks: give the Trainer use_distributed_sampler=False.
    """

    def __init__(
        self,
        folder: Path,
        batch_size: int,
        tokens_per_batch: int | None = None,
        seed: int = 0,
        workers: int = 0,
        start_batch: int = 0,
    ) -> None:
        super().__init__()
        self.shards = ShardSet.open(folder)
        self.batch_size, self.tokens_per_batch = batch_size, tokens_per_batch
        self.seed, self.workers = seed, workers
        self.position = start_batch

    def plan(self, rank: int, world_size: int) -> BatchPlan:
        """The batch plan of the train split for a rank."""
        sizes = self.batch_size, self.tokens_per_batch
        return plan_batches(self.shards, "train", self.seed, *sizes, rank=rank, world_size=world_size)

    def train_dataloader(self) -> Prefetch:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return Prefetch(ExplainedErrors(self.loader(pinned=device.type == "cuda")), device)

    def loader(self, pinned: bool = False) -> DataLoader[LatentPair]:
        """Batches in fp16 on the host, read ahead by the workers; in pinned memory for asynchronous copies to a GPU."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        # Workers are spawned, because forking a process with threads and CUDA is unsafe (Python 3.12 warns of it).
        return DataLoader(
            LatentDataset(self.shards),
            batch_sampler=self.plan(rank, world_size).batches_from(self.position),
            collate_fn=collate,
            num_workers=self.workers,
            multiprocessing_context="spawn" if self.workers else None,
            pin_memory=pinned,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy the batch to the device; its fps stays on the host (`Batch.to`)."""
        return batch.to(device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count a training batch. Lightning calls this once for every batch it uses."""
        if self.trainer is not None and self.trainer.training:
            self.position += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.position = state_dict["position"]


class ExplainedErrors(Iterable[T]):
    """The items of a loader. ConfigError, with the remedy, where its workers lack shared memory or open files."""

    def __init__(self, loader: Iterable[T]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[T]:
        try:
            yield from self.loader
        except (RuntimeError, OSError) as error:
            for texts, explanation in LACKS.items():
                if any(text in str(error) for text in texts):
                    raise ConfigError(f"the processes of data.workers {explanation}") from error
            raise
