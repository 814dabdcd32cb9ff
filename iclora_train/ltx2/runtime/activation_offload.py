"""Activations in host memory: part of what a block keeps for its backward pass leaves the GPU until it is needed.

Copies run on a stream of their own beside the computation: out while the following blocks compute, and back, one block
ahead, while the backward pass of the block behind it computes. What fits through the bus in that time costs nothing,
and need not be computed a second time.
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

LEAST = 2**22  # bytes of a tensor worth a copy
SLAB = 2**30  # bytes of pinned memory that are asked for at once: PyTorch rounds each request up to a power of two
ALIGNED = 512  # bytes
ON_THE_WAY = 2**30  # bytes that may wait to be copied, where a forward pass ends, before the computation waits for them


@dataclass
class Kept:
    """A tensor that a block saved: on the host, and back on its device from `fetch` to its use."""

    host: Tensor  # as it is on its device, in `memory`
    memory: Tensor
    device: torch.device
    back: Tensor | None = None
    here: torch.cuda.Event | None = None  # it has been copied back


def dense(tensor: Tensor) -> bool:
    """Whether the elements lie side by side, in whatever order. Others, such as q in the product that makes q, k and v,
    are no single copy: for them the host would wait, and put every element in its place itself."""
    reach = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == reach


class ActivationOffload:
    """share: of the bytes that blocks keep; 0 moves nothing. Pinned memory stays for later steps of whatever shapes."""

    def __init__(self, share: float, least: int = LEAST, slab: int = SLAB) -> None:
        self.share, self.least, self.slab = share, least, slab
        self.copy_stream: CopyStream | None = None  # made when it is known where the activations are
        self.blocks: dict[int, list[Kept]] = {}
        self.leaving: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        self.free: list[Tensor] = []  # pinned memory that nothing is in
        self.left: Tensor | None = None  # of the last slab, what was never given out
        self.seen = self.moved = 0  # bytes of the last step
        self.waiting = 0  # bytes in `leaving`
        self.most = 0  # bytes that stayed where a forward pass ended, of all so far

    @contextmanager
    def block(self, number: int, exempt: Iterable[Tensor], last: bool = False) -> Iterator[None]:
        """Inside the `with` block `number` (from 0, in order) computes. exempt: what is in use elsewhere: stays.

        The last block's all stays, as it is needed next; what the one before moved comes back meanwhile.
        """
        if number == 0:
            self.seen = self.moved = 0
        own: list[Kept] = []
        if last:
            self.most = max(self.most, self.seen - self.moved)
        else:
            self.blocks[number] = own
        staying = {tensor.untyped_storage()._cdata for tensor in exempt}

        def pack(tensor: Tensor) -> Tensor | tuple[int, Kept | Tensor]:
            if last:
                return number, tensor
            size = tensor.nbytes
            if tensor.untyped_storage()._cdata in staying:
                return tensor
            self.seen += size  # of all blocks so far: one large tensor more or less is made up for by the next block
            over = self.moved + size / 2 > self.share * self.seen
            moves = not over and size >= self.least and dense(tensor)
            if moves:
                self.moved += size
                own.append(self._send(tensor.detach()))
            if self.copy_stream is not None:
                self._let_go(ON_THE_WAY + max(0, self.most - (self.seen - self.moved)))
            return (number, own[-1]) if moves else tensor

        with saved_tensors_hooks(pack, self._unpack):
            yield

    def _send(self, tensor: Tensor) -> Kept:
        """Start copying a tensor to the host."""
        memory = self._memory(tensor.nbytes, tensor.is_cuda)
        host = memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
        self.copy_stream = self.copy_stream or CopyStream(tensor.device)
        self.copy_stream.wait_for_compute()
        with self.copy_stream.context():
            host.copy_(tensor, non_blocking=True)
        gone = self.copy_stream.record()
        if gone is not None:
            self.leaving.append((tensor, gone))
            self.waiting += tensor.nbytes
        return Kept(host, memory, tensor.device)

    def _memory(self, size: int, pinned: bool) -> Tensor:
        """Host memory of at least `size` bytes: the smallest that is free, else a new piece of a slab."""
        fitting = [i for i, memory in enumerate(self.free) if memory.numel() >= size]
        if fitting:
            return self.free.pop(min(fitting, key=lambda i: self.free[i].numel()))
        size += -size % ALIGNED
        if self.left is None or self.left.numel() < size:
            if self.left is not None and self.left.numel() >= self.least:
                self.free.append(self.left)
            self.left = torch.empty(max(self.slab, 1 << (size - 1).bit_length()), dtype=torch.uint8, pin_memory=pinned)
        piece, self.left = self.left[:size], self.left[size:]
        return piece

    def _let_go(self, allowed: int) -> None:
        """Give up what has been copied; with more than allowed on the way, the computation waits for the oldest.

        Memory that is given up can be written again by the computation: so that waits for the copy first.
        """
        assert self.copy_stream is not None
        while self.leaving and (self.waiting > allowed or self.leaving[0][1].query()):
            tensor, gone = self.leaving.popleft()
            self.copy_stream.make_compute_wait(gone)
            self.waiting -= tensor.nbytes

    def _unpack(self, packed: Tensor | tuple[int, Kept | Tensor]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        number, kept = packed
        if isinstance(kept, Tensor):
            if number - 1 in self.blocks:
                self._fetch(number - 1, ON_THE_WAY)
            return kept
        if kept.back is None:
            self._fetch(number)
        back, kept.back = kept.back, None
        assert back is not None
        assert self.copy_stream is not None
        self.copy_stream.make_compute_wait(kept.here)
        if number - 1 in self.blocks:
            self._fetch(number - 1)
        self.free.append(kept.memory)
        return back

    def _fetch(self, number: int, allowed: int = 0) -> None:
        """Start copying back what a block moved; once per step. allowed: as in `_let_go`."""
        moved = self.blocks.pop(number, ())
        if not moved:
            return
        assert self.copy_stream is not None
        self._let_go(allowed)
        for kept in moved:
            size, stride, dtype = kept.host.shape, kept.host.stride(), kept.host.dtype
            kept.back = torch.empty_strided(size, stride, dtype=dtype, device=kept.device)
            self.copy_stream.wait_for_compute()
            with self.copy_stream.context():
                kept.back.copy_(kept.host, non_blocking=True)
            kept.here = self.copy_stream.record()
