"""Weight offload: frozen weights of some blocks stay in host memory and are copied to the GPU for their computation.

An offloaded weight keeps its tensor and its storage. While the weight is only on the host, the storage has size 0, as
in fully sharded data parallelism. References that autograd or a compiled block has saved therefore stay valid. Two
offloaded blocks are on the GPU at a time: the block that computes, and the next one, whose weights are copied in the
meantime. In the forward pass the next block is the following one, in the backward pass the preceding one, and at the
end of a pass the first block of the next pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclora_train.config import require
from iclora_train.core.copy_stream import CopyStream


class WeightOffload:
    """Offloads the linear weights of `count` of `num_blocks` blocks, evenly spread so that copies have time to finish.

    ConfigError if `count` is larger than `num_blocks`.
    """

    def __init__(self, num_blocks: int = 0, count: int = 0, device: torch.device | str = "cpu") -> None:
        require(
            0 <= count <= num_blocks,
            f"model.weight_offload={count} must lie in [0, {num_blocks}], the number of blocks",
        )
        self.blocks = [(2 * i + 1) * num_blocks // (2 * count) for i in range(count)]  # indices, ascending
        self.weights: dict[int, list[tuple[nn.Parameter, Tensor]]] = {block: [] for block in self.blocks}
        self.resident: dict[int, torch.cuda.Event | None] = {}  # blocks on the GPU -> event at the end of their copy
        self.copy_stream = CopyStream(torch.device(device))

    def move_to_host(self, name: str, weight: nn.Parameter) -> None:
        """Move a loaded weight to host memory if `name`, its name in the transformer, belongs to an offloaded block.

        Pinned memory is allocated in powers of two. LTX's weights have such sizes, so each gets its own allocation.
        """
        module, _, inside = name.partition(".")
        block = int(inside.partition(".")[0]) if module == "transformer_blocks" else -1
        if block in self.weights and name.endswith(".weight") and weight.ndim == 2:
            host = torch.empty_like(weight, device="cpu", pin_memory=self.copy_stream.stream is not None)
            host.copy_(weight)
            weight.data = torch.empty_like(weight)  # a separate storage, which can be resized
            weight.untyped_storage().resize_(0)
            self.weights[block].append((weight, host))

    def before_block(self, block: int) -> None:
        """Call this before a block's forward pass."""
        if block in self.weights:
            i, last = self.blocks.index(block), len(self.blocks) - 1
            after_last = max(last - 1, 0) if torch.is_grad_enabled() else 0  # backward pass, or the next forward pass
            self._make_resident(block, self.blocks[i + 1 if i < last else after_last])

    def after_block(self, block: int, out: Tensor) -> None:
        """Call this with a block's output. The weights return before the block's backward pass starts."""
        if block in self.weights and out.grad_fn is not None:
            i, last = self.blocks.index(block), len(self.blocks) - 1
            preceding = self.blocks[i - 1 if i else min(1, last)]
            out.grad_fn.register_prehook(lambda _: self._make_resident(block, preceding))

    def stop(self) -> None:
        """End offloading: the weights become ordinary tensors in host memory."""
        for weight, host in (pair for pairs in self.weights.values() for pair in pairs):
            weight.data = host
        self.blocks, self.weights, self.resident = [], {}, {}

    def _make_resident(self, block: int, upcoming: int) -> None:
        """Bring the weights of these two blocks to the GPU and free all others. Computation waits for `block`'s."""
        evicted = [number for number in self.resident if number not in (block, upcoming)]
        if evicted:
            self.copy_stream.wait_for_compute()  # the copy stream may reuse their memory only after their last use
        for number in evicted:
            del self.resident[number]
            for weight, _ in self.weights[number]:
                weight.untyped_storage().resize_(0)
        for number in (block, upcoming):
            if number not in self.resident:
                self._start_copy(number)
        self.copy_stream.make_compute_wait(self.resident[block])

    def _start_copy(self, block: int) -> None:
        with self.copy_stream.context():
            for weight, host in self.weights[block]:
                storage, source = weight.untyped_storage(), host.untyped_storage()
                storage.resize_(source.nbytes())
                storage.copy_(source, non_blocking=True)
        self.resident[block] = self.copy_stream.record()
