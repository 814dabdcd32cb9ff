"""How a transformer's blocks are run in training: what each keeps for its backward pass, and where weights lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iclora_train.ltx2.model.transformer import Inputs, Transformer
from iclora_train.ltx2.runtime.activation_offload import Spill
from iclora_train.ltx2.runtime.cuda_graphs import Graphs
from iclora_train.ltx2.runtime.weight_offload import Offload


class BlockRunner:
    """Takes the place of `model.transformer.one_by_one`."""

    def __init__(self, offload: Offload | None = None) -> None:
        self.offload = offload or Offload()  # blocks whose weights lie in host memory
        self.recompute = False  # keep each block's input only and compute the rest again when it is needed
        self.kept: float | None = None  # the blocks are compiled, and keep that much (`compile.compile_blocks`)
        self.spill: Spill | None = None  # keep a share of what blocks save on the host
        self.graphs: Graphs | None = None  # run all blocks by two CUDA graphs

    def __call__(
        self, net: Transformer, x: Tensor, inputs: Inputs, count: int | None, perturbed: Sequence[int]
    ) -> Tensor:
        learning = net.training and torch.is_grad_enabled()
        if self.kept is not None and learning:
            x = x.detach().requires_grad_()  # its gradient is not needed, but spares the first block a graph of its own

        def blocks(given: tuple[Tensor | None, ...], count: int | None) -> Tensor:
            x, *others = given
            assert x is not None
            return self._each(net, x, Inputs(*others, inputs.bias), count, perturbed, learning)  # type: ignore[call-arg, arg-type]

        given = (x, *inputs[:-1])
        if not learning or self.graphs is None:
            return blocks(given, count)
        if inputs.bias is None and not perturbed:
            return self.graphs.run(blocks, given, count, net.transformer_blocks)
        self.graphs.stop("attention weights, of which each step has others")
        return blocks(given, count)

    def _each(
        self, net: Transformer, x: Tensor, inputs: Inputs, count: int | None, perturbed: Sequence[int], learning: bool
    ) -> Tensor:
        last = len(net.transformer_blocks) - 1
        for i, block in enumerate(net.transformer_blocks):
            self.offload.before(i)
            given: tuple[Any, ...] = (x, inputs, count if i == last else None, i in perturbed)
            if learning and self.recompute:
                x = checkpoint(block, *given, use_reentrant=False)
            elif learning and self.spill is not None:
                shared = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
                with self.spill.block(i, [*shared, *block.parameters(), *block.buffers()], i == last):
                    x = block(*given)
            else:
                x = block(*given)
            self.offload.after(i, x)
        return x

    def free(self) -> None:
        """Give back what only steps of training use of the GPU's memory, before something else needs much."""
        if self.graphs is not None:
            self.graphs.drop()


def runner_of(net: Transformer) -> BlockRunner:
    """The runner of a transformer's blocks, made where it had none."""
    if not isinstance(net.run_blocks, BlockRunner):
        net.run_blocks = BlockRunner()
    return net.run_blocks
