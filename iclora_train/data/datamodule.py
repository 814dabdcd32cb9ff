"""LightningDataModule over latent shards."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from iclora_train.config import ConfigError
from iclora_train.config.endings import SIGNALS
from iclora_train.core.types import LatentPair
from iclora_train.data.batch import Batch, collate
from iclora_train.data.batch_sampler import BatchSampler, LatentDataset, plan_batches
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
    """An endless sequence of training batches of this rank. A Trainer begins with the batches of its `global_step`.

    The batches are already split over the ranks: give the Trainer use_distributed_sampler=False.
    """

    def __init__(
        self,
        shards: ShardSet | Path,
        batch_size: int,
        tokens_per_batch: int | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.shards = ShardSet.open(shards) if isinstance(shards, Path) else shards
        self.batch_size, self.tokens_per_batch = batch_size, tokens_per_batch
        self.seed, self.workers = seed, workers

    def train_dataloader(self) -> Prefetch:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return Prefetch(ExplainedErrors(self.loader(pinned=device.type == "cuda")), device)

    def loader(self, pinned: bool = False) -> DataLoader[LatentPair]:
        """Batches in fp16 on the host, read ahead by the workers; in pinned memory for asynchronous copies to a GPU."""
        # Workers are spawned, because forking a process with threads and CUDA is unsafe (Python 3.12 warns of it).
        return DataLoader(
            LatentDataset(self.shards),
            batch_sampler=self.sampler(),
            collate_fn=collate,
            num_workers=self.workers,
            multiprocessing_context="spawn" if self.workers else None,
            pin_memory=pinned,
        )

    def sampler(self) -> BatchSampler:
        """The batches of this rank from the Trainer's step on; without a Trainer those of a single process."""
        plan = partial(plan_batches, self.shards, "train", self.seed, self.batch_size, self.tokens_per_batch)
        trainer = self.trainer
        if trainer is None:
            return BatchSampler(plan())
        batches_per_step = trainer.world_size * trainer.accumulate_grad_batches
        return BatchSampler(plan(batches_per_step), trainer.global_step, trainer.global_rank, trainer.world_size)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy the batch to the device; its fps stays on the host (`Batch.to`)."""
        return batch.to(device)


class ExplainedErrors(Iterable[T]):
    """The items of a loader. ConfigError, with the remedy, where its workers lack shared memory or open files."""

    def __init__(self, loader: Iterable[T]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[T]:
        try:
            yield from started_with_signals_blocked(self.loader)
        except (RuntimeError, OSError) as error:
            for texts, explanation in LACKS.items():
                if any(text in str(error) for text in texts):
                    raise ConfigError(f"the processes of data.workers {explanation}") from error
            raise


def started_with_signals_blocked(loader: Iterable[T]) -> Iterator[T]:
    """An iterator of the loader, whose worker processes never get the signals that end a command.

    A terminal or a scheduler sends them to all processes of a job. The workers are needed until the checkpoint is
    written, and end with their parent.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *SIGNALS))  # processes inherit it
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
