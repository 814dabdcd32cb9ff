"""Runs a transformer's blocks in training: activation checkpointing, activation and weight offload, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iclora_train.ltx2.model.audio_video_block import AudioVideoBlock, JointInputs, SwitchedOff
from iclora_train.ltx2.model.transformer import BlockInputs, Perturbed, Transformer
from iclora_train.ltx2.runtime.activation_offload import ActivationOffload
from iclora_train.ltx2.runtime.cuda_graphs import CudaGraphs
from iclora_train.ltx2.runtime.weight_offload import WeightOffload

JointBlock = Callable[[AudioVideoBlock, Tensor, Tensor, JointInputs, SwitchedOff], tuple[Tensor, Tensor]]


class BlockRunner:
    """A `run_blocks` of `model.transformer.Transformer`. Except `weight_offload`, its settings have effect in training
    only."""

    def __init__(self, weight_offload: WeightOffload | None = None) -> None:
        self.weight_offload = weight_offload or WeightOffload()
        self.activation_checkpointing = False  # save only each block's input and recompute the rest in backward
        self.activation_budget: float | None = None  # set if the blocks are compiled (`compile.compile_blocks`)
        self.activation_offload: ActivationOffload | None = None
        self.cuda_graphs: CudaGraphs | None = None
        self.compiled_joint: JointBlock | None = None  # of an `AudioVideoBlock`; used where no gradient is needed

    def __call__(
        self, net: Transformer, x: Tensor, inputs: BlockInputs, num_outputs: int | None, perturbed: Sequence[int]
    ) -> Tensor:
        training = net.training and torch.is_grad_enabled()
        if self.activation_budget is not None and training:
            # The gradient of x is used if x has learned slots. It is always required, so that the first block compiles
            # to the graph of all blocks.
            x = x if x.requires_grad else x.detach().requires_grad_()
        graphs = self.cuda_graphs if training else None
        if graphs is not None and (inputs.bias is not None or perturbed):
            if not graphs.stopped:
                graphs.stop(
                    "attention weights differ from step to step" if inputs.bias is not None else "perturbed blocks"
                )
            graphs = None
        if graphs is None:
            for output in self._outputs(net, x, inputs, num_outputs, perturbed, training):
                x = output
            return x

        def run_on(tensors: Sequence[Tensor]) -> list[Tensor]:
            x, *others = tensors
            return list(self._outputs(net, x, inputs.with_tensors(others), num_outputs, (), training=True))

        tensors = (x, *inputs.tensors())
        return graphs.run(run_on, tensors, list(net.transformer_blocks), key=num_outputs)

    def _outputs(
        self,
        net: Transformer,
        x: Tensor,
        inputs: BlockInputs,
        num_outputs: int | None,
        perturbed: Sequence[int],
        training: bool,
    ) -> Iterator[Tensor]:
        """The output of each block."""
        last = len(net.transformer_blocks) - 1
        for i, block in enumerate(net.transformer_blocks):
            args = (inputs, num_outputs if i == last else None, i in perturbed)
            self.weight_offload.before_block(i)
            if training and self.activation_checkpointing:
                x = checkpoint(block, x, *args, use_reentrant=False)
            elif training and self.activation_offload is not None:
                shared = [*inputs.tensors(), *block.parameters(), *block.buffers()]
                with self.activation_offload.block(i, shared, i == last):
                    x = block(x, *args)
            else:
                x = block(x, *args)
            self.weight_offload.after_block(i, x)
            yield x

    def run_joint(
        self, net: Transformer, x: Tensor, sound: Tensor, inputs: JointInputs, perturbed: Perturbed
    ) -> tuple[Tensor, Tensor]:
        """A `run_joint_blocks`: with weight offload, and in training with activation checkpointing only.

        Training computes every block eagerly. Where an activation budget is set, which only compiled blocks keep to,
        every block is checkpointed.
        """
        checkpointing = self.activation_checkpointing or self.activation_budget is not None
        gradients = torch.is_grad_enabled()
        for i, block in enumerate(net.transformer_blocks):
            assert isinstance(block, AudioVideoBlock)
            off = perturbed.in_block(i)
            self.weight_offload.before_block(i)
            if self.compiled_joint is not None and not gradients:
                x, sound = self.compiled_joint(block, x, sound, inputs, off)
            elif checkpointing and gradients and net.training:
                x, sound = checkpoint(block.joint, x, sound, inputs, off, use_reentrant=False)
            else:
                x, sound = block.joint(x, sound, inputs, off)
            self.weight_offload.after_block(i, x)
            self.weight_offload.after_block(i, sound)
        return x, sound

    def install(self, net: Transformer) -> None:
        """Let this runner run the transformer's blocks."""
        net.run_blocks = self
        if net.config.audio is not None:
            net.run_joint_blocks = self.run_joint

    def free_training_memory(self) -> None:
        """Free GPU memory that only training steps use, before something else needs much memory."""
        if self.cuda_graphs is not None:
            self.cuda_graphs.drop()


def runner_of(net: Transformer) -> BlockRunner:
    """The transformer's block runner, created if it has none."""
    if not isinstance(net.run_blocks, BlockRunner):
        BlockRunner().install(net)
    assert isinstance(net.run_blocks, BlockRunner)
    return net.run_blocks
