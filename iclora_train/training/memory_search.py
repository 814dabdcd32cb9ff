"""Finds a memory plan for a training step by measuring steps before step 0 (`trainer.memory`).

Saving all activations on the GPU is fastest. Activations that do not fit are moved to the host, as many as the bus can
carry while the GPU computes (`runtime.activation_offload`). The remaining ones are recomputed in the backward pass
(`runtime.compile`). The costs are measured on the first blocks with the largest clips. If everything fits and memory is
left, transposed copies of the fp8 weights are cached for the backward pass (`lora_linear.cache_transposed`).

All ranks search together: they try the same plans at the same time, and decide by the least favourable value of any
rank, so that all of them get the same plan.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from iclora_train.config import Config, ConfigError, require
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.process_group import from_first, gather, local_world_size
from iclora_train.core.ranks import global_rank, world_size
from iclora_train.core.records import as_type, read_json
from iclora_train.data.batch import Batch
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.kernels.lora_linear import cache_transposed, fp8_linears
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import set_cuda_graphs
from iclora_train.training.dry_run import largest_batch
from iclora_train.training.host_memory import free_host_memory
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_measure import (
    apply_plan,
    blocks_of,
    estimate_from_sizes,
    limit_gpu_memory,
    measure_bandwidth,
    measure_candidate,
    time_step,
)
from iclora_train.training.memory_plan import (
    GIB,
    MARGIN,
    Candidate,
    MemoryLimits,
    MemoryPlan,
    largest_cost,
    largest_that_fits,
    longest_time,
    plan_within,
    search,
)

HOST_SHARE = 0.7  # share of the free host memory that may be pinned
_OLD_KEYS = {"kept": "activation_budget", "spill": "activation_offload", "turned": "cache_transposed"}
Say = Callable[[str], object]


def plan_memory(config: Config, module: ICLoRA, shards: ShardSet, folder: Path, say: Say) -> MemoryPlan | None:
    """Set the module up for trainer.memory. All ranks call this together, and get the same plan. A plan in the run
    folder (memory.json) is reused on the same kind of GPU and number of ranks per node.

    say: receives progress messages. Returns None if there is nothing to plan: on a CPU, with blocks that are not
    compiled, with model.audio=on, or with model.activation_budget set.
    """
    memory, device = config.trainer.get("memory"), module.transformer.patchify_proj.weight.device
    compiled = runner_of(module.transformer).activation_budget is not None and module.audio is None
    if memory is None or device.type != "cuda" or not compiled or config.model.activation_budget is not None:
        require(
            memory in (None, "auto"),
            f"trainer.memory={memory} has no effect here: it needs a GPU, compiled blocks (model.compile) and "
            "model.activation_budget=null; leave it out",
        )
        return None
    file = folder / "memory.json"
    gpus = gather(torch.cuda.get_device_name(device))
    if len(set(gpus)) > 1:
        say(f"note: the ranks have different GPUs ({', '.join(sorted(set(gpus)))}): all get the plan of the smallest")
    place = plan_place(gpus, max(gather(local_world_size())), str(memory))
    plan = from_first(read_plan(file, place) if global_rank() == 0 else None)
    if plan is not None:
        limit_gpu_memory(memory, device)
        cache_transposed(module.transformer, plan.cache_transposed)
        apply_plan(module, plan)
        set_cuda_graphs(module.transformer, config.model.cuda_graphs)
        return plan
    plan = search_memory_plan(module, largest_batch(config, shards, device)[1], memory, say)
    if global_rank() == 0:
        with write_atomic(file) as out:
            out.write(json.dumps({"place": place, **asdict(plan)}).encode())
    return plan


def plan_place(gpus: list[str], ranks_per_node: int, memory: str) -> dict[str, str]:
    """What a plan depends on besides the run. gpus: the GPU of each rank. Ranks of a node share the host's memory; a
    single rank is not mentioned, so that its plans of earlier versions stay valid."""
    place = {"device": ", ".join(sorted(set(gpus))), "torch": torch.__version__, "memory": memory}
    return place if len(gpus) == 1 else {**place, "ranks_per_node": str(ranks_per_node)}


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


def search_memory_plan(module: ICLoRA, batch: Batch, memory: str | float, say: Say) -> MemoryPlan:
    """Measure steps on `batch`, the largest one, choose the fastest plan that fits on all ranks, and leave the module
    set to it. All ranks call this together.

    say: receives a message for each trial, which takes up to a minute. ConfigError if not even the smallest step fits.
    """
    device, num_blocks = batch.device, len(blocks_of(module))
    cache_transposed(module.transformer, False)
    set_cuda_graphs(module.transformer, False)
    gib = min(gather(limit_gpu_memory(memory, device)))
    host_bytes = min(gather(HOST_SHARE * free_host_memory() / local_world_size()))
    limits = MemoryLimits(
        blocks=num_blocks,
        gpu_bytes=gib * (1 - MARGIN) * GIB,
        bandwidth=min(gather(measure_bandwidth(device))),
        host_bytes=host_bytes,
    )
    expected = largest_cost(gather(estimate_from_sizes(module, batch)))
    assert expected is not None
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
        candidate = largest_cost(gather(measure_candidate(module, batch, budget)))
        cost = "out of memory" if candidate is None else f"{candidate.block_bytes / GIB:.2f} GiB per block"
        say(f"trainer.memory: activation budget {budget:g}: {cost}")
        return candidate

    def time(plan: MemoryPlan) -> float | None:
        seconds = longest_time(gather(time_step(module, batch, plan)))
        if seconds is not None and world_size() > 1:  # the plan is compiled on all ranks: they step at the same time
            seconds = longest_time(gather(time_step(module, batch, plan)))
        say(f"trainer.memory: {plan}; " + ("out of memory" if seconds is None else f"{seconds:.2f} s per step"))
        return seconds

    result = search(measure, time, limits, start)
    return replace(result, cache_transposed=transposed) if isinstance(result, MemoryPlan) else result
