"""The next batch goes to the device while the one before it is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.cuda import Event, Stream

from iclora_train.batches import Batch, on_tensors


class Prefetch:
    """Batches of a loader on a device, in fp32, each sent before the one that precedes it is given.

    On CUDA they are sent on a stream of their own, from pinned memory, so that copies and computation overlap: the host
    waits for nothing, and the stream of the computation only for the batch that it is about to use.
    """

    def __init__(self, loader: Iterable[Batch], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[Batch]:
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        coming = (_send(batch, self.device, stream) for batch in self.loader)
        sent = next(coming, None)
        while sent is not None:
            following = next(coming, None)
            yield _arrived(*sent)
            sent = following


def _send(batch: Batch, device: torch.device, stream: Stream | None) -> tuple[Batch, Event | None]:
    """The batch on its way to the device, and what tells that it is there."""
    with nullcontext() if stream is None else torch.cuda.stream(stream):
        moved = on_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True).float())
        return moved, None if stream is None else stream.record_event()


def _arrived(batch: Batch, there: Event | None) -> Batch:
    """The batch, safe to use on the current stream. Its memory is not taken for a later batch before that stream is
    done with it."""
    if there is None:
        return batch
    current = torch.cuda.current_stream(batch["target"].device)
    current.wait_event(there)

    def used_here(tensor: Tensor) -> Tensor:
        tensor.record_stream(current)
        return tensor

    return on_tensors(batch, used_here)
