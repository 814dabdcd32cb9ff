"""Copy the next batch to the device while the current one is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.cuda import Event

from iclora_train.core.copy_stream import CopyStream
from iclora_train.data.batch import Batch


class Prefetch:
    """The batches of a loader on a device, in fp32. Each batch is copied while the one before it is in use.

    On CUDA the copies run on a separate stream, from pinned memory, and overlap with computation. The host never waits.
    The compute stream waits only for the batch that it is about to use.
    """

    def __init__(self, loader: Iterable[Batch], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[Batch]:
        copy_stream = CopyStream(self.device)
        sends = (_send(batch, self.device, copy_stream) for batch in self.loader)
        current = next(sends, None)
        while current is not None:
            following = next(sends, None)
            yield _receive(*current, copy_stream)
            current = following


def _send(batch: Batch, device: torch.device, copy_stream: CopyStream) -> tuple[Batch, Event | None]:
    """Start the copy of a batch to the device. Returns the device batch and the event of the finished copy."""
    with copy_stream.context():
        sent = batch.map_tensors(lambda tensor: tensor.to(device, non_blocking=True).float())
    return sent, copy_stream.record()


def _receive(batch: Batch, copied: Event | None, copy_stream: CopyStream) -> Batch:
    """Make the compute stream wait for the copy.

    `record_stream` keeps the batch's memory from being reused for a later batch before the compute stream is done.
    """
    if copied is None:
        return batch
    copy_stream.make_compute_wait(copied)
    compute_stream = torch.cuda.current_stream(batch.device)

    def use(tensor: Tensor) -> Tensor:
        tensor.record_stream(compute_stream)
        return tensor

    return batch.map_tensors(use)
