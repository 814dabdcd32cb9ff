"""The next batch goes to the device while the one before it is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.cuda import Event

from iclora_train.core.copy_stream import CopyStream
from iclora_train.data.batch import Batch


class Prefetch:
    """Batches of a loader on a device, in fp32, each sent before the one that precedes it is given.

    On CUDA they are sent on a stream of their own, from pinned memory, so that copies and computation overlap: the host
    waits for nothing, and the stream of the computation only for the batch that it is about to use.
    """

    def __init__(self, loader: Iterable[Batch], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[Batch]:
        copy_stream = CopyStream(self.device)
        coming = (_send(batch, self.device, copy_stream) for batch in self.loader)
        sent = next(coming, None)
        while sent is not None:
            following = next(coming, None)
            yield _arrived(*sent, copy_stream)
            sent = following


def _send(batch: Batch, device: torch.device, copy_stream: CopyStream) -> tuple[Batch, Event | None]:
    """The batch on its way to the device, and what tells that it is there."""
    with copy_stream.context():
        moved = batch.map_tensors(lambda tensor: tensor.to(device, non_blocking=True).float())
    return moved, copy_stream.record()


def _arrived(batch: Batch, there: Event | None, copy_stream: CopyStream) -> Batch:
    """The batch, safe to use on the current stream. Its memory is not taken for a later batch before that stream is
    done with it."""
    if there is None:
        return batch
    copy_stream.make_compute_wait(there)
    current = torch.cuda.current_stream(batch.device)

    def used_here(tensor: Tensor) -> Tensor:
        tensor.record_stream(current)
        return tensor

    return batch.map_tensors(used_here)
