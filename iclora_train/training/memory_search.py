"""Finds a memory plan for a training step by measuring steps before step 0 (`trainer.memory`).

Saving all activations on the GPU is fastest. Activations that do not fit are moved to the host, as many as the bus can
carry while the GPU computes (`runtime.activation_offload`). The remaining ones are recomputed in the backward pass
(`runtime.compile`). The costs are measured on the first blocks with the largest clips. If everything fits and memory is
left, transposed copies of the fp8 weights are cached for the backward pass (`lora_linear.cache_transposed`).
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iclora_train.config import Config, ConfigError, require
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.records import as_type, read_json
from iclora_train.data.batch import Batch
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.kernels.lora_linear import cache_transposed, fp8_linears
from iclora_train.ltx2.runtime.activation_offload import ActivationOffload
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks, set_cuda_graphs
from iclora_train.training.dry_run import largest_batch, mean_loss
from iclora_train.training.host_memory import free_host_memory
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import (
    GIB,
    MARGIN,
    Candidate,
    MemoryLimits,
    MemoryPlan,
    estimate,
    largest_that_fits,
    memory_limit_gib,
    plan_within,
    search,
)
from iclora_train.training.throughput import batch_work, matmul_peak

HOST_SHARE = 0.7  # share of the free host memory that may be pinned
# Expected seconds of a forward pass, as a share of (FLOPs of a step / `matmul_peak`). In bf16 the measured forward pass
# is a third of the step.
FORWARD_SHARE = 0.47
TIMED_STEPS = 2  # the fastest of them counts
STATE_BYTES = 12  # per adapter parameter besides its value: fp32 gradient and AdamW's two moments
_OLD_KEYS = {"kept": "activation_budget", "spill": "activation_offload", "turned": "cache_transposed"}
Say = Callable[[str], object]


def plan_memory(
    config: Config, module: ICLoRA, shards: ShardSet, folder: Path, say: Say, first: bool = True
) -> MemoryPlan | None:
    """Set the module up for trainer.memory. A plan in the run folder (memory.json) is reused on the same kind of GPU.

    say: receives progress messages. first: whether this process writes memory.json. Returns None if there is nothing to
    plan: on a CPU, with blocks that are not compiled, or with model.activation_budget set.
    """
    memory, device = config.trainer.get("memory"), module.transformer.patchify_proj.weight.device
    compiled = runner_of(module.transformer).activation_budget is not None
    if memory is None or device.type != "cuda" or not compiled or config.model.activation_budget is not None:
        require(
            memory in (None, "auto"),
            f"trainer.memory={memory} has no effect here: it needs a GPU, compiled blocks (model.compile) and "
            "model.activation_budget=null; leave it out",
        )
        return None
    file = folder / "memory.json"
    place = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "memory": str(memory)}
    plan = read_plan(file, place)
    if plan is not None:
        limit_gpu_memory(memory, device)
        cache_transposed(module.transformer, plan.cache_transposed)
        apply_plan(module, plan)
        set_cuda_graphs(module.transformer, config.model.cuda_graphs)
        return plan
    devices = config.trainer.get("devices")
    processes = devices if isinstance(devices, int) and devices > 0 else torch.cuda.device_count()
    plan = search_memory_plan(module, largest_batch(config, shards, device)[1], memory, say, processes)
    if first:
        with write_atomic(file) as out:
            out.write(json.dumps({"place": place, **asdict(plan)}).encode())
    return plan


def read_plan(file: Path, place: dict[str, str]) -> MemoryPlan | None:
    """The plan that a run has written to `file`; None if the file does not exist, or holds a plan for another `place`.

    The keys of files of earlier versions are renamed (_OLD_KEYS). A damaged file gives None and a warning.
    """
    if not file.exists():
        return None
    try:
        values = read_json(file, dict[str, Any], "the plan is searched again")
        if values.pop("place", None) != place:
            return None
        return as_type({_OLD_KEYS.get(key, key): value for key, value in values.items()}, MemoryPlan)
    except ValueError as error:  # includes DamagedFileError
        print(f"warning: {file}: {error}", file=sys.stderr)
        return None


def limit_gpu_memory(memory: str | float, device: torch.device) -> float:
    """GiB of GPU memory for trainer.memory. From now on this process cannot allocate more."""
    free, total = torch.cuda.mem_get_info(device)  # `free` excludes the memory of other processes
    gib = memory_limit_gib(memory, (free + torch.cuda.memory_reserved(device)) / GIB)
    torch.cuda.set_per_process_memory_fraction(gib * GIB / total, device)
    return gib


def search_memory_plan(module: ICLoRA, batch: Batch, memory: str | float, say: Say, processes: int = 1) -> MemoryPlan:
    """Measure steps on `batch`, the largest one, choose the fastest plan that fits, and leave the module set to it.

    say: receives a message for each trial, which takes up to a minute. processes: how many share the host's memory.
    ConfigError if not even the smallest step fits.
    """
    device, num_blocks = batch.device, len(blocks_of(module))
    cache_transposed(module.transformer, False)
    set_cuda_graphs(module.transformer, False)
    gib = limit_gpu_memory(memory, device)
    limits = MemoryLimits(
        blocks=num_blocks,
        gpu_bytes=gib * (1 - MARGIN) * GIB,
        bandwidth=measure_bandwidth(device),
        host_bytes=HOST_SHARE * free_host_memory() / processes,
    )
    expected = _estimate(module, batch)
    start = largest_that_fits([expected], limits)
    fp8_bytes = sum(linear.weight.nbytes for linear in fp8_linears(module.transformer))
    without_offload = replace(limits, gpu_bytes=limits.gpu_bytes - fp8_bytes, bandwidth=0.0)
    transposed = (
        fp8_bytes > 0
        and plan_within(expected, without_offload) is not None
        and not runner_of(module.transformer).weight_offload.blocks
    )
    result = _search(module, batch, limits, start, transposed, say)
    if transposed and not _saves_everything(result):
        result = _search(module, batch, limits, start, False, say)
    if isinstance(result, MemoryPlan):
        set_cuda_graphs(module.transformer, module.config.model.cuda_graphs)
        return result
    smallest = (
        "" if result is None else f" (it takes {(result.other_bytes + num_blocks * result.block_bytes) / GIB:.1f})"
    )
    raise ConfigError(
        f"trainer.memory={memory}: a step on the largest clips does not fit into {gib:.1f} GiB{smallest}; these "
        "settings help: model.precision=fp8, model.weight_offload=<blocks>, a smaller data.tokens_per_batch or "
        "data.batch_size, fewer data.frames, task.reference_downscale=2"
    )


def _saves_everything(result: MemoryPlan | Candidate | None) -> bool:
    return isinstance(result, MemoryPlan) and result.activation_budget == 1 and not result.activation_offload


def _search(
    module: ICLoRA, batch: Batch, limits: MemoryLimits, start: float, transposed: bool, say: Say
) -> MemoryPlan | Candidate | None:
    """`search` on this module, with or without cached transposed fp8 weights."""
    cache_transposed(module.transformer, transposed)

    def measure(budget: float) -> Candidate | None:
        say(f"trainer.memory: measuring activation budget {budget:g} on the first blocks (compiling them if needed)")
        candidate = measure_candidate(module, batch, budget)
        cost = "out of memory" if candidate is None else f"{candidate.block_bytes / GIB:.2f} GiB per block"
        say(f"trainer.memory: activation budget {budget:g}: {cost}")
        return candidate

    def time(plan: MemoryPlan) -> float | None:
        seconds = time_step(module, batch, plan)
        say(f"trainer.memory: {plan}; " + ("out of memory" if seconds is None else f"{seconds:.2f} s per step"))
        return seconds

    result = search(measure, time, limits, start)
    return replace(result, cache_transposed=transposed) if isinstance(result, MemoryPlan) else result


def apply_plan(module: ICLoRA, plan: MemoryPlan) -> None:
    """Set the module to the plan's activation budget and activation offload."""
    compile_blocks(module.transformer, plan.activation_budget)
    share = plan.activation_offload
    runner_of(module.transformer).activation_offload = ActivationOffload(share) if share else None


def _estimate(module: ICLoRA, batch: Batch) -> Candidate:
    """The candidate of budget 1, estimated from sizes."""
    net, lora, device = module.transformer.config, module.config.model.lora, batch.device
    work = batch_work(batch, net, lora.rank, tuple(lora.targets))
    seconds = FORWARD_SHARE * work.flops / net.num_layers / matmul_peak(device, torch.bfloat16)
    used = torch.cuda.memory_allocated(device) + _state_bytes(module)
    return estimate(2 * net.width * work.tokens, used, seconds)


def _state_bytes(module: ICLoRA) -> int:
    """Bytes of the adapter's gradients and optimizer states."""
    return STATE_BYTES * sum(parameter.numel() for parameter in module.adapter)


def time_step(module: ICLoRA, batch: Batch, plan: MemoryPlan) -> float | None:
    """Seconds of a whole step while the memory of the optimizer's states is allocated; None if the step does not fit.

    The module stays set to the plan.
    """
    apply_plan(module, plan)
    gc.collect()
    torch.cuda.empty_cache()
    moments = 2 * 4 * sum(p.numel() for p in module.adapter)  # bytes
    try:
        placeholder = torch.empty(moments, dtype=torch.uint8, device=batch.device)
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
    """Bytes per second from the GPU to pinned memory."""
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    host.copy_(source)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    host.copy_(source, non_blocking=True)
    end.record()
    end.synchronize()
    return size / (begin.elapsed_time(end) / 1e3)
