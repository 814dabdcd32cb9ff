"""How a transformer's blocks are run in training: what each keeps for its backward pass, and where weights lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iclora_train.ltx2.model.transformer import BlockInputs, Transformer
from iclora_train.ltx2.runtime.activation_offload import ActivationOffload
from iclora_train.ltx2.runtime.cuda_graphs import CudaGraphs
from iclora_train.ltx2.runtime.weight_offload import WeightOffload


class BlockRunner:
    """Takes the place of `model.transformer.run_blocks_sequentially`."""

    def __init__(self, weight_offload: WeightOffload | None = None) -> None:
        self.weight_offload = weight_offload or WeightOffload()  # blocks whose weights lie in host memory
        self.activation_checkpointing = (
            False  # keep each block's input only and compute the rest again when it is needed
        )
        self.activation_budget: float | None = (
            None  # the blocks are compiled, and keep that much (`compile.compile_blocks`)
        )
        self.activation_offload: ActivationOffload | None = None  # keep a share of what blocks save on the host
        self.cuda_graphs: CudaGraphs | None = None  # run all blocks by two CUDA graphs

    def __call__(
        self, net: Transformer, x: Tensor, inputs: BlockInputs, num_outputs: int | None, perturbed: Sequence[int]
    ) -> Tensor:
        learning = net.training and torch.is_grad_enabled()
        if self.activation_budget is not None and learning:
            x = x.detach().requires_grad_()  # its gradient is not needed, but spares the first block a graph of its own

        def blocks(given: tuple[Tensor | None, ...], num_outputs: int | None) -> Tensor:
            x, *others = given
            assert x is not None
            return self._each(net, x, BlockInputs(*others, inputs.bias), num_outputs, perturbed, learning)  # type: ignore[call-arg, arg-type]

        given = (x, *inputs[:-1])
        if not learning or self.cuda_graphs is None:
            return blocks(given, num_outputs)
        if inputs.bias is None and not perturbed:
            return self.cuda_graphs.run(blocks, given, num_outputs, net.transformer_blocks)
        self.cuda_graphs.stop("attention weights, of which each step has others")
        return blocks(given, num_outputs)

    def _each(
        self,
        net: Transformer,
        x: Tensor,
        inputs: BlockInputs,
        num_outputs: int | None,
        perturbed: Sequence[int],
        learning: bool,
    ) -> Tensor:
        last = len(net.transformer_blocks) - 1
        for i, block in enumerate(net.transformer_blocks):
            self.weight_offload.before_block(i)
            given: tuple[Any, ...] = (x, inputs, num_outputs if i == last else None, i in perturbed)
            if learning and self.activation_checkpointing:
                x = checkpoint(block, *given, use_reentrant=False)
            elif learning and self.activation_offload is not None:
                shared = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
                with self.activation_offload.block(i, [*shared, *block.parameters(), *block.buffers()], i == last):
                    x = block(*given)
            else:
                x = block(*given)
            self.weight_offload.after_block(i, x)
        return x

    def free_training_memory(self) -> None:
        """Give back what only steps of training use of the GPU's memory, before something else needs much."""
        if self.cuda_graphs is not None:
            self.cuda_graphs.drop()


def runner_of(net: Transformer) -> BlockRunner:
    """The runner of a transformer's blocks, made where it had none."""
    if not isinstance(net.run_blocks, BlockRunner):
        net.run_blocks = BlockRunner()
    return net.run_blocks
