"""Measures on this rank what a training step costs: GPU memory, seconds, and the bandwidth to the host.

Only `measure_bandwidth` waits for the other ranks. A rank that runs out of memory in a step returns None, so that all
ranks can compare their results afterwards (`memory_search`).
"""

from __future__ import annotations

import gc

import torch
from torch import nn

from iclora_train.core.process_group import gather
from iclora_train.data.batch import Batch
from iclora_train.ltx2.runtime.activation_offload import ActivationOffload
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.training.dry_run import bucket_bytes, mean_loss
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import GIB, Candidate, MemoryPlan, estimate, memory_limit_gib
from iclora_train.training.throughput import batch_work, matmul_peak

# Expected seconds of a forward pass, as a share of (FLOPs of a step / `matmul_peak`). In bf16 the measured forward pass
# is a third of the step.
FORWARD_SHARE = 0.47
TIMED_STEPS = 2  # the fastest of them counts
COPIES = 20  # a tenth of a second on a fast bus
STATE_BYTES = 12  # per adapter parameter besides its value: fp32 gradient and AdamW's two moments


def limit_gpu_memory(memory: str | float, device: torch.device) -> float:
    """GiB of GPU memory for trainer.memory. From now on this process cannot allocate more."""
    free, total = torch.cuda.mem_get_info(device)  # `free` excludes the memory of other processes
    gib = memory_limit_gib(memory, (free + torch.cuda.memory_reserved(device)) / GIB)
    torch.cuda.set_per_process_memory_fraction(gib * GIB / total, device)
    return gib


def apply_plan(module: ICLoRA, plan: MemoryPlan) -> None:
    """Set the module to the plan's activation budget and activation offload."""
    compile_blocks(module.transformer, plan.activation_budget)
    share = plan.activation_offload
    runner_of(module.transformer).activation_offload = ActivationOffload(share) if share else None


def estimate_from_sizes(module: ICLoRA, batch: Batch) -> Candidate:
    """The candidate of budget 1, estimated from sizes."""
    net, device = module.transformer.config, batch.device
    work = batch_work(batch, net, module.ranks)
    seconds = FORWARD_SHARE * work.flops / net.num_layers / matmul_peak(device, torch.bfloat16)
    used = torch.cuda.memory_allocated(device) + _state_bytes(module)
    return estimate(2 * net.width * work.tokens, used, seconds)


def _state_bytes(module: ICLoRA) -> int:
    """Bytes of the adapter's gradients and optimizer states."""
    return STATE_BYTES * sum(parameter.numel() for parameter in module.adapter)


def time_step(module: ICLoRA, batch: Batch, plan: MemoryPlan) -> float | None:
    """Seconds of a whole step while the memory of the optimizer's states and of DistributedDataParallel is allocated;
    None if the step does not fit.

    The module stays set to the plan.
    """
    apply_plan(module, plan)
    gc.collect()
    torch.cuda.empty_cache()
    moments = 2 * 4 * sum(p.numel() for p in module.adapter)  # bytes
    try:
        placeholder = torch.empty(moments + bucket_bytes(module), dtype=torch.uint8, device=batch.device)
        seconds = _step(module, batch, blocks_of(module))[2]
        del placeholder
    except torch.OutOfMemoryError:
        return None
    finally:
        module.zero_grad()
    return seconds


def measure_candidate(module: ICLoRA, batch: Batch, budget: float) -> Candidate | None:
    """The cost of an activation budget, from steps through few blocks. None if these already run out of memory.

    Steps of 3 and of 6 blocks (1 and all, if there are fewer than 6) differ by the bytes and seconds of 3 blocks. The
    adapter is not changed.
    """
    net, num_blocks = module.transformer, len(blocks_of(module))
    sizes = (3, 6) if num_blocks >= 6 else (1, num_blocks)
    apply_plan(module, MemoryPlan(budget, activation_offload=0.0, gib=0.0))
    all_blocks = net.transformer_blocks
    try:
        few, more = (_step(module, batch, nn.ModuleList(all_blocks[:n])) for n in sizes)
    except torch.OutOfMemoryError:
        return None
    finally:
        net.transformer_blocks = all_blocks
        for parameter in module.adapter:
            parameter.grad = None
    difference = max(sizes[1] - sizes[0], 1)  # blocks
    block_bytes = (more[0] - few[0]) // difference
    other_bytes = few[0] - sizes[0] * block_bytes + _state_bytes(module)
    return Candidate(budget, block_bytes, other_bytes, (more[1] - few[1]) / difference)


def blocks_of(module: ICLoRA) -> nn.ModuleList:
    """The transformer's blocks."""
    return module.transformer.transformer_blocks


def _step(module: ICLoRA, batch: Batch, blocks: nn.ModuleList) -> tuple[int, float, float]:
    """Peak bytes of a step through these blocks, seconds of its forward pass, and of the whole step.

    The times are the shortest of TIMED_STEPS, after one step that compiles.
    """
    device, net = batch.device, module.transformer
    net.transformer_blocks = blocks
    times: list[tuple[float, float]] = []
    for _ in range(1 + TIMED_STEPS):
        torch.cuda.reset_peak_memory_stats(device)
        begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        begin.record()
        loss = mean_loss(module, batch, 0)
        middle.record()
        loss.backward()
        end.record()
        module.zero_grad()
        torch.cuda.synchronize(device)
        times.append((begin.elapsed_time(middle) / 1e3, begin.elapsed_time(end) / 1e3))
    forward, whole = (min(seconds) for seconds in zip(*times[1:], strict=True))
    return torch.cuda.max_memory_allocated(device), forward, whole


def measure_bandwidth(device: torch.device, size: int = 2**28) -> float:
    """Bytes per second from the GPU to pinned memory, while all ranks copy at the same time, as in a step: the ranks of
    a node may share a bus."""
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    host.copy_(source)
    gather(None)  # all ranks have allocated their memory and begin to copy
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(COPIES):
        host.copy_(source, non_blocking=True)
    end.record()
    end.synchronize()
    return COPIES * size / (begin.elapsed_time(end) / 1e3)
