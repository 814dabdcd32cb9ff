"""Activation offload: a share of the tensors that blocks save for backward is moved to pinned host memory.

The copies run on a separate stream. Tensors leave the GPU while the following blocks compute. In the backward pass they
return one block ahead, while the backward pass of the following block runs. Copies that the bus can carry in that time
cost nothing, and their tensors need not be recomputed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from iclora_train.core.copy_stream import CopyStream

MIN_BYTES = 2**22  # smaller tensors are not worth a copy
SLAB_BYTES = 2**30  # pinned memory of one allocation; PyTorch rounds each request up to a power of two
ALIGNMENT = 512  # bytes
MAX_IN_FLIGHT = 2**30  # bytes whose copy may be pending at the end of a forward pass before the computation waits


@dataclass
class SavedTensor:
    """A tensor that a block saved: on the host, and back on the GPU between `_start_return` and its use."""

    host: Tensor  # a view of `buffer` with the tensor's shape, strides and dtype
    buffer: Tensor  # pinned bytes
    device: torch.device
    returned: Tensor | None = None
    event: torch.cuda.Event | None = None  # the end of the copy to `returned`


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements are contiguous in memory, in any order of dimensions.

    Other tensors, such as q as a slice of the fused q, k, v output, cannot be copied at once: the host would wait for
    them and place each element itself.
    """
    extent = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == extent


class ActivationOffload:
    """Moves `share` of the bytes that blocks save to the host; 0 moves nothing.

    Pinned memory is reused in later steps, also for other shapes.
    """

    def __init__(self, share: float, min_bytes: int = MIN_BYTES, slab_bytes: int = SLAB_BYTES) -> None:
        self.share, self.min_bytes, self.slab_bytes = share, min_bytes, slab_bytes
        self.copy_stream: CopyStream | None = None  # created with the first tensor, whose device it needs
        self.blocks: dict[int, list[SavedTensor]] = {}  # block -> its tensors on the host
        self.in_flight: deque[tuple[Tensor, torch.cuda.Event]] = deque()  # tensors whose copy to the host is pending
        self.in_flight_bytes = 0
        self.free: list[Tensor] = []  # unused pinned buffers
        self.slab: Tensor | None = None  # the unused rest of the last slab
        self.saved_bytes = self.moved_bytes = 0  # of the current step
        self.peak_kept_bytes = 0  # bytes that stayed on the GPU at the end of a forward pass, maximum of all steps

    @contextmanager
    def block(self, number: int, exempt: Iterable[Tensor], last: bool = False) -> Iterator[None]:
        """Inside the `with`, block `number` computes (from 0, in order). Tensors of `exempt` stay on the GPU, because
        they are in use elsewhere.

        All tensors of the last block stay too, because its backward pass comes next. When it begins, the tensors of the
        block before start to return.
        """
        if number == 0:
            self.saved_bytes = self.moved_bytes = 0
        moved: list[SavedTensor] = []
        if last:
            self.peak_kept_bytes = max(self.peak_kept_bytes, self.saved_bytes - self.moved_bytes)
        else:
            self.blocks[number] = moved
        exempt_storages = {tensor.untyped_storage()._cdata for tensor in exempt}

        def pack(tensor: Tensor) -> Tensor | tuple[int, SavedTensor | Tensor]:
            if last:
                return number, tensor
            if tensor.untyped_storage()._cdata in exempt_storages:
                return tensor
            # The share is of all blocks so far, so that a block makes up for the rounding of the blocks before it.
            self.saved_bytes += tensor.nbytes
            over = self.moved_bytes + tensor.nbytes / 2 > self.share * self.saved_bytes
            moves = not over and tensor.nbytes >= self.min_bytes and is_dense(tensor)
            if moves:
                self.moved_bytes += tensor.nbytes
                moved.append(self._send(tensor.detach()))
            if self.copy_stream is not None:
                on_gpu = self.saved_bytes - self.moved_bytes
                self._release_sent(MAX_IN_FLIGHT + max(0, self.peak_kept_bytes - on_gpu))
            return (number, moved[-1]) if moves else tensor

        with saved_tensors_hooks(pack, self._unpack):
            yield

    def _send(self, tensor: Tensor) -> SavedTensor:
        """Start to copy a tensor to the host."""
        buffer = self._pinned_buffer(tensor.nbytes, tensor.is_cuda)
        host = buffer.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
        self.copy_stream = self.copy_stream or CopyStream(tensor.device)
        self.copy_stream.wait_for_compute()
        with self.copy_stream.context():
            host.copy_(tensor, non_blocking=True)
        event = self.copy_stream.record()
        if event is not None:
            self.in_flight.append((tensor, event))
            self.in_flight_bytes += tensor.nbytes
        return SavedTensor(host, buffer, tensor.device)

    def _pinned_buffer(self, size: int, pinned: bool) -> Tensor:
        """Host memory of at least `size` bytes: the smallest free buffer that fits, else a new piece of a slab."""
        fitting = [i for i, buffer in enumerate(self.free) if buffer.numel() >= size]
        if fitting:
            return self.free.pop(min(fitting, key=lambda i: self.free[i].numel()))
        size += -size % ALIGNMENT
        if self.slab is None or self.slab.numel() < size:
            if self.slab is not None and self.slab.numel() >= self.min_bytes:
                self.free.append(self.slab)
            slab_bytes = max(self.slab_bytes, 1 << (size - 1).bit_length())
            self.slab = torch.empty(slab_bytes, dtype=torch.uint8, pin_memory=pinned)
        buffer, self.slab = self.slab[:size], self.slab[size:]
        return buffer

    def _release_sent(self, max_bytes: int) -> None:
        """Release the GPU memory of tensors that have been copied, and of the oldest ones until at most `max_bytes` are
        pending.

        Later kernels may overwrite released memory, so the compute stream always waits for the copy first.
        """
        assert self.copy_stream is not None
        while self.in_flight and (self.in_flight_bytes > max_bytes or self.in_flight[0][1].query()):
            tensor, event = self.in_flight.popleft()
            self.copy_stream.make_compute_wait(event)
            self.in_flight_bytes -= tensor.nbytes

    def _unpack(self, packed: Tensor | tuple[int, SavedTensor | Tensor]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        number, saved = packed
        if isinstance(saved, Tensor):
            if number - 1 in self.blocks:
                self._start_return(number - 1, MAX_IN_FLIGHT)
            return saved
        if saved.returned is None:
            self._start_return(number)
        returned, saved.returned = saved.returned, None
        assert returned is not None
        assert self.copy_stream is not None
        self.copy_stream.make_compute_wait(saved.event)
        if number - 1 in self.blocks:
            self._start_return(number - 1)
        self.free.append(saved.buffer)
        return returned

    def _start_return(self, number: int, max_bytes: int = 0) -> None:
        """Start to copy a block's tensors back to the GPU, once per step. max_bytes: see `_release_sent`."""
        moved = self.blocks.pop(number, ())
        if not moved:
            return
        assert self.copy_stream is not None
        self._release_sent(max_bytes)
        for saved in moved:
            size, stride, dtype = saved.host.shape, saved.host.stride(), saved.host.dtype
            saved.returned = torch.empty_strided(size, stride, dtype=dtype, device=saved.device)
            self.copy_stream.wait_for_compute()
            with self.copy_stream.context():
                saved.returned.copy_(saved.host, non_blocking=True)
            saved.event = self.copy_stream.record()
