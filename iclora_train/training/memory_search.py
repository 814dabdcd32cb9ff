"""What a training step keeps of its activations, so that it fits the memory there is (`trainer.memory`).

Keeping everything is fastest. What does not fit on the GPU goes to the host as far as the bus carries it while the GPU
computes (`runtime.activation_offload`), and what does not fit there either is computed again in the backward pass. The
figures behind the choice are measured on the first blocks, on the largest clips, before step 0. Where everything is
kept and there is room still, fp8 weights are kept a second time as gradients' products want them
(`lora_linear.cache_transposed`).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from iclora_train.config import Config, ConfigError, require
from iclora_train.core.atomic_files import write_atomic
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

HOST = 0.7  # share of the free host memory that may be pinned
# Seconds of a forward pass over those of all operations of a step at `matmul_peak`; a third of the steps seen in bf16.
FORWARDS = 0.47
TIMED = 2  # steps of which the shortest counts
STATES = 12  # bytes of an adapter's parameter beside its value: gradient and AdamW's two moments, fp32
Say = Callable[[str], object]


def plan_memory(
    config: Config, module: ICLoRA, shards: ShardSet, folder: Path, say: Say, first: bool = True
) -> MemoryPlan | None:
    """The module set as trainer.memory says; what a run has chosen holds when it goes on on the same kind of GPU.

    say: is told what is tried meanwhile. first: of the processes of a run, the one that keeps what was chosen. None
    where there is nothing to choose: on a CPU, with blocks that are not compiled, or with model.activation_budget set.
    """
    memory, device = config.trainer.get("memory"), module.transformer.patchify_proj.weight.device
    open_to_choice = (
        device.type == "cuda"
        and runner_of(module.transformer).activation_budget is not None
        and config.model.activation_budget is None
    )
    if memory is None or not open_to_choice:
        require(
            memory in (None, "auto"),
            f"trainer.memory={memory} has no effect here: it needs a GPU, compiled blocks (model.compile) and "
            "model.activation_budget=null; leave it out",
        )
        return None
    place = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "memory": str(memory)}
    known = folder / "memory.json"
    if known.exists() and (found := json.loads(known.read_text())).pop("place") == place:
        plan = MemoryPlan(**found)
        limit_gpu_memory(memory, device)
        cache_transposed(module.transformer, plan.cached_transposed)
        apply(module, plan.activation_budget, plan.activation_offload)
        set_cuda_graphs(module.transformer, config.model.cuda_graphs)
        return plan
    devices = config.trainer.get("devices")
    together = devices if isinstance(devices, int) and devices > 0 else torch.cuda.device_count()
    plan = search_memory_plan(module, largest_batch(config, shards, device)[1], memory, say, together)
    if first:
        with write_atomic(known) as file:
            file.write(json.dumps({"place": place, **asdict(plan)}).encode())
    return plan


def limit_gpu_memory(memory: str | float, device: torch.device) -> float:
    """GiB of the GPU that trainer.memory means; from now on this process cannot take more."""
    free, total = torch.cuda.mem_get_info(device)
    wanted = memory_limit_gib(
        memory, (free + torch.cuda.memory_reserved(device)) / GIB
    )  # less what other processes hold
    torch.cuda.set_per_process_memory_fraction(wanted * GIB / total, device)
    return wanted


def search_memory_plan(module: ICLoRA, batch: Batch, memory: str | float, say: Say, together: int = 1) -> MemoryPlan:
    """Measure on `batch`, the largest there is, choose, try a step, and leave the module set that way.

    say: is told what is tried, which takes up to a minute each. together: processes that share the host's memory.
    ConfigError when the smallest step does not fit.
    """
    device, count = batch.device, len(blocks_of(module))
    cache_transposed(module.transformer, False)
    set_cuda_graphs(module.transformer, False)
    wanted = limit_gpu_memory(memory, device)
    room = MemoryLimits(
        count, wanted * (1 - MARGIN) * GIB, measure_bandwidth(device), HOST * free_host_memory() / together
    )
    near, second = _guess(module, batch), sum(part.weight.nbytes for part in fp8_linears(module.transformer))
    start, unmoved = largest_that_fits([near], room), replace(room, budget=room.budget - second, bandwidth=0.0)
    turned = (
        second > 0
        and plan_within(near, unmoved) is not None
        and not runner_of(module.transformer).weight_offload.blocks
    )
    found = _found(module, batch, room, start, turned, say)
    if turned and not (isinstance(found, MemoryPlan) and found.activation_budget == 1 and not found.activation_offload):
        found = _found(module, batch, room, start, False, say)
    if isinstance(found, MemoryPlan):
        set_cuda_graphs(module.transformer, module.config.model.cuda_graphs)
        return found
    least = f" (it takes {(found.rest + count * found.block) / GIB:.1f})" if found is not None else ""
    raise ConfigError(
        f"trainer.memory={memory}: a step on the largest clips does not fit into {wanted:.1f} GiB{least}; what would "
        "help: model.precision=fp8, model.weight_offload=<blocks>, a smaller data.tokens_per_batch or data.batch_size, "
        "fewer data.frames, task.reference_downscale=2"
    )


def _found(
    module: ICLoRA, batch: Batch, room: MemoryLimits, start: float, turned: bool, say: Say
) -> MemoryPlan | Candidate | None:
    """`find` on this module, with its fp8 weights kept twice or once."""
    cache_transposed(module.transformer, turned)

    def measured(kept: float) -> Candidate | None:
        say(
            f"trainer.memory: measuring model.activation_budget={kept:g} on the first blocks (compiling them if needed)"
        )
        level = measure(module, batch, kept)
        found = "too much" if level is None else f"a block keeps {level.block / GIB:.2f} GiB"
        say(f"trainer.memory: model.activation_budget={kept:g}: {found}")
        return level

    def seconds(plan: MemoryPlan) -> float | None:
        taken = time_step(module, batch, plan)
        say(f"trainer.memory: {plan}: " + ("too much" if taken is None else f"{taken:.2f} s a step"))
        return taken

    found = search(measured, seconds, room, start)
    return replace(found, cached_transposed=turned) if isinstance(found, MemoryPlan) else found


def apply(module: ICLoRA, kept: float, spill: float) -> None:
    """Train with these from now on."""
    compile_blocks(module.transformer, kept)
    runner_of(module.transformer).activation_offload = ActivationOffload(spill) if spill else None


def _guess(module: ICLoRA, batch: Batch) -> Candidate:
    """The level of 1 by its sizes."""
    net, lora, device = module.transformer.config, module.config.model.lora, batch.device
    work = batch_work(batch, net, lora.rank, tuple(lora.targets))
    seconds = FORWARDS * work.flops / net.num_layers / matmul_peak(device, torch.bfloat16)
    return estimate(2 * net.width * work.tokens, torch.cuda.memory_allocated(device) + _states(module), seconds)


def _states(module: ICLoRA) -> int:
    """Bytes that training the adapter adds to it."""
    return STATES * sum(parameter.numel() for parameter in module.adapter)


def time_step(module: ICLoRA, batch: Batch, plan: MemoryPlan) -> float | None:
    """Seconds of a whole step beside what the optimizer will keep, None if it does not fit; the module is then set as
    planned."""
    device = batch.device
    apply(module, plan.activation_budget, plan.activation_offload)
    gc.collect()
    torch.cuda.empty_cache()
    try:
        states = torch.empty(2 * 4 * sum(p.numel() for p in module.adapter), dtype=torch.uint8, device=device)
        taken = _step(module, batch, blocks_of(module))[2]
        del states
    except torch.OutOfMemoryError:
        return None
    finally:
        module.zero_grad()
    return taken


def measure(module: ICLoRA, batch: Batch, kept: float) -> Candidate | None:
    """What `kept` costs, from steps through few blocks; the adapter is as it was afterwards. None: far too much.

    Steps of 3 and 6 blocks (of 1 and all, where there are fewer) differ by what 3 blocks keep and take.
    """
    net, count = module.transformer, len(blocks_of(module))
    sizes = (3, 6) if count >= 6 else (1, count)
    apply(module, kept, 0.0)
    whole = net.transformer_blocks
    try:
        few, more = (_step(module, batch, nn.ModuleList(whole[:n])) for n in sizes)
    except torch.OutOfMemoryError:
        return None
    finally:
        net.transformer_blocks = whole
        for parameter in module.adapter:
            parameter.grad = None
    between = max(sizes[1] - sizes[0], 1)
    block = (more[0] - few[0]) // between
    rest = few[0] - sizes[0] * block + _states(module)
    return Candidate(kept, block, rest, (more[1] - few[1]) / between)


def blocks_of(module: ICLoRA) -> nn.ModuleList:
    """The transformer's blocks."""
    return module.transformer.transformer_blocks


def _step(module: ICLoRA, batch: Batch, blocks: nn.ModuleList) -> tuple[int, float, float]:
    """Peak bytes of a step through these blocks, seconds of its forward pass, and of all of it: the shortest, after one
    step that compiles."""
    device, net = batch.device, module.transformer
    net.transformer_blocks = blocks
    found: list[tuple[float, float]] = []
    for _ in range(1 + TIMED):
        torch.cuda.reset_peak_memory_stats(device)
        begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        begin.record()
        loss = mean_loss(module, batch, 0)
        middle.record()
        loss.backward()
        end.record()
        module.zero_grad()
        torch.cuda.synchronize(device)
        found.append((begin.elapsed_time(middle) / 1e3, begin.elapsed_time(end) / 1e3))
    forwards, whole = (min(seconds) for seconds in zip(*found[1:], strict=True))
    return torch.cuda.max_memory_allocated(device), forwards, whole


def measure_bandwidth(device: torch.device, size: int = 2**28) -> float:
    """Bytes per second from the GPU to pinned memory."""
    host, there = (
        torch.empty(size, dtype=torch.uint8, pin_memory=True),
        torch.empty(size, dtype=torch.uint8, device=device),
    )
    host.copy_(there)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    host.copy_(there, non_blocking=True)
    end.record()
    end.synchronize()
    return size / (begin.elapsed_time(end) / 1e3)
