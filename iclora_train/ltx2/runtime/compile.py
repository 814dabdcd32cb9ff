"""torch.compile for the transformer's blocks: all blocks share one compilation for each shape of tokens.

What is compiled is kept on disk, so a shape that was met before starts within seconds in a later run of this version.
"""

from __future__ import annotations

import os
from pathlib import Path

from iclora_train.ltx2.model.transformer import Block, Transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.cuda_graphs import CudaGraphs
from iclora_train.ltx2.runtime.fused_block import FusedBlock

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
# Inputs and operations of an intermediate result that the compiler computes again inside a kernel rather than keep in
# memory, in fp32, between two passes over a row.
READS, OPERATIONS = 16, 200
SHAPES = 64  # compilations of a block that one process keeps: sizes of clips, with and without weights or gradients


def compile_blocks(transformer: Transformer, activation_budget: float = 1.0, backend: str = "inductor") -> None:
    """From now on every block runs compiled, adapters included; attach those before.

    activation_budget: share of a block's activation memory that is saved for backward; the rest is computed again
    (the partitioner's knapsack, `torch._functorch.config.activation_memory_budget`); 0 keeps the block's input alone,
    from there on what attention gives is always kept; from .8 on no product is computed again, at 1 no norm
    either.
    """
    import torch._dynamo  # noqa: PLC0415 (slow)
    import torch._functorch.config  # noqa: PLC0415
    import torch._inductor.config  # noqa: PLC0415

    from iclora_train.ltx2.runtime.combo_kernels import enable_combo_kernels  # noqa: PLC0415
    from iclora_train.ltx2.runtime.save_policy import SavePolicy  # noqa: PLC0415

    os.environ.setdefault(_CACHE, str(Path("~/.cache/iclora_train/compiled").expanduser()))
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.optimize_ddp = False  # else DistributedDataParallel's buckets cut a block into several
    torch._functorch.config.activation_memory_budget = activation_budget
    torch._inductor.config.joint_custom_pre_pass = SavePolicy()
    torch._inductor.config.realize_reads_threshold = READS
    torch._inductor.config.realize_opcount_threshold = OPERATIONS
    enable_combo_kernels()
    runner = runner_of(transformer)
    if runner.activation_budget == activation_budget:
        return
    if runner.activation_budget is not None:
        torch._dynamo.reset()  # else the blocks would run what was compiled for another budget
    runner.activation_budget = activation_budget
    for block in transformer.transformer_blocks:
        assert isinstance(block, Block)
        if block.fused is None:
            block.fused = FusedBlock(block, join=not runner.weight_offload.blocks)
        block.compile(dynamic=False, backend=backend)


def set_cuda_graphs(transformer: Transformer, wanted: bool) -> None:
    """From now on training runs the blocks by CUDA graphs, if wanted, and where that can be: compiled, on a GPU, with
    all that they need there."""
    runner = runner_of(transformer)
    there = runner.activation_budget is not None and transformer.patchify_proj.weight.is_cuda
    moved = runner.activation_offload is not None or runner.weight_offload.blocks
    runner.cuda_graphs = CudaGraphs() if wanted and there and not moved else None
