"""torch.compile for the transformer's blocks. All blocks share one compilation for each shape of tokens.

Compiled code is cached on disk, so a shape that was compiled before starts within seconds in a later run of the same
version.
"""

from __future__ import annotations

import contextlib
import os
import tempfile

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.lora_linear import lora_ranks
from iclora_train.ltx2.model.audio_video_block import AudioVideoBlock, JointInputs, SwitchedOff
from iclora_train.ltx2.model.transformer import Block, Transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.cuda_graphs import CudaGraphs
from iclora_train.ltx2.runtime.fused_block import FusedBlock

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
# Up to this many reads and operations, inductor recomputes an intermediate result within a kernel instead of writing it
# to memory, in fp32, between two passes over a row.
MAX_READS, MAX_OPERATIONS = 16, 200
MAX_COMPILATIONS = 64  # of a block in one process: clip sizes, each with and without attention weights and gradients


def _cache_folder() -> str:
    """The folder of compiled code: below the home folder or, if that is missing or cannot be written, TMPDIR."""
    folder = os.path.expanduser("~/.cache/iclora_train/compiled")
    if not folder.startswith("~"):
        with contextlib.suppress(OSError):
            os.makedirs(folder, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return os.path.join(tempfile.gettempdir(), f"iclora_train-{os.getuid()}", "compiled")


def compile_blocks(transformer: Transformer, activation_budget: float = 1.0, backend: str = "inductor") -> None:
    """Compile every block, with its adapters. Attach adapters before.

    Sets options of the compiler for the whole process and, unless it is set, TORCHINDUCTOR_CACHE_DIR. Another budget
    than before discards the compiled code of the process; the same budget compiles nothing anew.
    activation_budget: share of a block's activation memory that is saved for the backward pass; the rest is recomputed
    (the partitioner's knapsack, `torch._functorch.config.activation_memory_budget`). 0 saves only the block's input.
    Above 0 attention outputs are always saved. From 0.8 on no matmul is recomputed, at 1 no norm either.
    """
    import torch._dynamo  # noqa: PLC0415 (slow)
    import torch._functorch.config  # noqa: PLC0415
    import torch._inductor.config  # noqa: PLC0415

    from iclora_train.ltx2.runtime.combo_kernels import enable_combo_kernels  # noqa: PLC0415
    from iclora_train.ltx2.runtime.save_policy import SavePolicy  # noqa: PLC0415

    os.environ.setdefault(_CACHE, _cache_folder())
    torch._dynamo.config.recompile_limit = MAX_COMPILATIONS * len(_rank_layouts(transformer))
    torch._dynamo.config.optimize_ddp = False  # else the buckets of DistributedDataParallel split a block's graph
    torch._functorch.config.activation_memory_budget = activation_budget
    torch._inductor.config.joint_custom_pre_pass = SavePolicy()
    torch._inductor.config.realize_reads_threshold = MAX_READS
    torch._inductor.config.realize_opcount_threshold = MAX_OPERATIONS
    enable_combo_kernels()
    runner = runner_of(transformer)
    if runner.activation_budget == activation_budget:
        return
    if runner.activation_budget is not None:
        torch._dynamo.reset()  # else the blocks would reuse code compiled for another budget
    runner.activation_budget = activation_budget
    fuse_blocks(transformer)
    for block in transformer.transformer_blocks:
        block.compile(dynamic=False, backend=backend)
    if transformer.config.audio is not None:
        runner.compiled_joint = torch.compile(fused_joint, dynamic=False, backend=backend)


def fused_joint(
    block: AudioVideoBlock, x: Tensor, sound: Tensor, inputs: JointInputs, off: SwitchedOff
) -> tuple[Tensor, Tensor]:
    """Both streams of a block in its fused form, without gradients."""
    assert isinstance(block.fused, FusedBlock)
    return block.fused.joint(block, x, sound, inputs, off)


def _rank_layouts(transformer: Transformer) -> set[tuple[int, ...]]:
    """The LoRA ranks of the linears of a block, once for each kind of block: every kind is compiled by itself."""
    linears = ([m for m in block.modules() if hasattr(m, "lora_factors")] for block in transformer.transformer_blocks)
    return {tuple(lora_ranks(layers)) for layers in linears}


def fuse_blocks(transformer: Transformer) -> None:
    """Give every block its fused form, if it has none.

    Linears of the same input are fused into one, with two exceptions. Weight offload moves every weight by itself. In
    fp32 on a CPU, fused blocks compute the same as plain blocks bit for bit; one matmul for q, k and v would sum their
    input gradients in another order than three.
    """
    weight = transformer.patchify_proj.weight
    exact = weight.device.type == "cpu" and weight.dtype == torch.float32
    fuse_linears = not exact and not runner_of(transformer).weight_offload.blocks
    for block in transformer.transformer_blocks:
        assert isinstance(block, Block)
        if block.fused is None:
            block.fused = FusedBlock(block, fuse=fuse_linears)


def set_cuda_graphs(transformer: Transformer, enabled: bool) -> None:
    """Switch CUDA graphs in training on or off. They stay off unless the blocks are compiled, on a GPU, and without
    offload of weights or activations."""
    runner = runner_of(transformer)
    compiled_on_gpu = runner.activation_budget is not None and transformer.patchify_proj.weight.is_cuda
    offloads = runner.activation_offload is not None or runner.weight_offload.blocks
    runner.cuda_graphs = CudaGraphs() if enabled and compiled_on_gpu and not offloads else None
