"""Frozen weights that lie in host memory and visit the device when their block computes.

A weight keeps its tensor and its storage, which has no bytes while it is away (as in fully sharded data parallelism):
so what autograd or a compiled block has saved stays valid. Two blocks are here at a time, the one that computes and the
one that is needed next, whose weights are copied meanwhile: forwards that is the next one, backwards the one before,
and where a pass ends the first of the pass that follows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclora_train.config import require
from iclora_train.core.copy_stream import CopyStream


class WeightOffload:
    """The linears' weights of `count` of a transformer's blocks, which are spread evenly so that copies have time.

    ConfigError when there are not so many blocks.
    """

    def __init__(self, blocks: int = 0, count: int = 0, device: torch.device | str = "cpu") -> None:
        require(0 <= count <= blocks, f"model.weight_offload={count} must lie in [0, {blocks}], the number of blocks")
        self.blocks = [(2 * i + 1) * blocks // (2 * count) for i in range(count)]
        self.weights: dict[int, list[tuple[nn.Parameter, Tensor]]] = {block: [] for block in self.blocks}
        self.resident: dict[
            int, torch.cuda.Event | None
        ] = {}  # blocks on the device, or on their way: when they arrive
        self.copy_stream = CopyStream(torch.device(device))

    def move_to_host(self, name: str, weight: nn.Parameter) -> None:
        """Move a weight that was just loaded to the host, if `name`, in the transformer, is one of these blocks'.

        Pinned memory comes in powers of two, as do weights of LTX's sizes: so each has a piece of its own.
        """
        part, _, inside = name.partition(".")
        block = int(inside.partition(".")[0]) if part == "transformer_blocks" else -1
        if block in self.weights and name.endswith(".weight") and weight.ndim == 2:
            host = torch.empty_like(weight, device="cpu", pin_memory=self.copy_stream.stream is not None)
            host.copy_(weight)
            weight.data = torch.empty_like(weight)  # in a storage of its own, which can be resized
            weight.untyped_storage().resize_(0)
            self.weights[block].append((weight, host))

    def before_block(self, block: int) -> None:
        """Call it before a block computes forwards."""
        if block in self.weights:
            place, last = self.blocks.index(block), len(self.blocks) - 1
            turn = max(last - 1, 0) if torch.is_grad_enabled() else 0  # backwards, or forwards once more
            self._visit(block, self.blocks[place + 1 if place < last else turn])

    def after_block(self, block: int, x: Tensor) -> None:
        """Call it with what the block gives: the weights come back before its gradient goes into the block."""
        if block in self.weights and x.grad_fn is not None:
            place, last = self.blocks.index(block), len(self.blocks) - 1
            before = self.blocks[place - 1 if place else min(1, last)]
            x.grad_fn.register_prehook(lambda _: self._visit(block, before))

    def stop(self) -> None:
        """From now on the weights are ordinary tensors in host memory, and nothing visits the device any more."""
        for weight, host in (pair for pairs in self.weights.values() for pair in pairs):
            weight.data = host
        self.blocks, self.weights, self.resident = [], {}, {}

    def _visit(self, block: int, coming: int) -> None:
        """Have the weights of these two blocks here and of no other; computing waits for the first's."""
        leaving = [other for other in self.resident if other not in (block, coming)]
        if leaving:
            self.copy_stream.wait_for_compute()  # their memory must not be reused before the compute stream has read it
        for other in leaving:
            del self.resident[other]
            for weight, _ in self.weights[other]:
                weight.untyped_storage().resize_(0)
        for wanted in (block, coming):
            if wanted not in self.resident:
                self._fetch(wanted)
        self.copy_stream.make_compute_wait(self.resident[block])

    def _fetch(self, block: int) -> None:
        with self.copy_stream.context():
            for weight, host in self.weights[block]:
                storage, source = weight.untyped_storage(), host.untyped_storage()
                storage.resize_(source.nbytes())
                storage.copy_(source, non_blocking=True)
        self.resident[block] = self.copy_stream.record()
