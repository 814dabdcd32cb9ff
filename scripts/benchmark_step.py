"""One measurement of `scripts.benchmark`: steps of a variant on clips of one shape. All ranks of a run take part."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.config import Config, Flow, Lora, Model, Optim, Task
from iclora_train.core.device import synced_time
from iclora_train.core.process_group import gather
from iclora_train.core.ranks import global_rank, world_size
from iclora_train.data.batch import Batch
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.model.transformer import TransformerConfig
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.training.data_parallel import data_parallel
from iclora_train.training.dry_run import mean_loss, optimizer_step
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import GIB
from iclora_train.training.memory_search import search_memory_plan
from scripts.profile_step import executed_kernels, profile


@dataclass(frozen=True)
class Shape:
    """A clip in pixels, and by which factor its reference is smaller."""

    width: int
    height: int
    frames: int
    downscale: int = 1


SHAPES = {
    "S": Shape(768, 448, 49),
    "M": Shape(960, 544, 89),
    "L": Shape(704, 1216, 121, 2),
    "tiny": Shape(128, 64, 9),  # to try the program on a CPU
}


@dataclass(frozen=True)
class Variant:
    """How steps are computed.

    eager: no compiled blocks, activation checkpointing instead. The other settings are trainer.memory and those of
    `model`; activation_budget=None lets trainer.memory choose.
    """

    name: str
    precision: str = "bf16"
    eager: bool = False
    memory: str | float = "auto"
    activation_budget: float | None = None
    weight_offload: int = 0
    cuda_graphs: bool = True


class StepLoss(nn.Module):
    """The training loss as a forward pass, which DistributedDataParallel can wrap."""

    def __init__(self, module: ICLoRA) -> None:
        super().__init__()
        self.module = module
        frozen = module._ddp_params_and_buffers_to_ignore
        self._ddp_params_and_buffers_to_ignore = [f"module.{name}" for name in frozen]

    def forward(self, batch: Batch, number: int) -> Tensor:
        """The mean loss of a batch with the noise of step `number`."""
        return mean_loss(self.module, batch, number)


def batch_of(base: BaseModel, shape: Shape, device: torch.device) -> Batch:
    """One clip of random latents with a reference and text features. Each rank has another clip."""
    generator = torch.Generator().manual_seed(global_rank())
    frames, height, width = base.geometry.latent_size(shape.frames, shape.height, shape.width)
    small = (frames, height // shape.downscale, width // shape.downscale)
    channels = base.geometry.channels
    features = TransformerConfig.from_metadata(base.config["transformer"]).text_width
    target = torch.randn(1, channels, frames, height, width, generator=generator).to(device)
    reference = torch.randn(1, channels, *small, generator=generator).to(device)
    text = torch.randn(1, 1024, features, generator=generator).to(device)
    fps = torch.tensor([24.0])
    return Batch(target, [reference], text, fps, keys=["random"])


def module_of(base: BaseModel, variant: Variant, rank: int, device: torch.device) -> ICLoRA:
    """The training module of a variant."""
    model = Model(
        name="benchmark", checkpoint="", precision=variant.precision, activation_checkpointing=True,
        compile=False if variant.eager else None, activation_budget=variant.activation_budget,
        cuda_graphs=variant.cuda_graphs, weight_offload=variant.weight_offload, lora=Lora(rank=rank),
    )  # fmt: skip
    optim = Optim(optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-4})
    config = Config(task=Task(name="benchmark", maker="given"), model=model, flow=Flow(first_frame_p=0.0), optim=optim)
    module = ICLoRA(config, base, device)
    if variant.eager:
        for _, layer in lora.layers(module.transformer):
            layer.__class__ = lora.AdaptedLinear.__base__  # type: ignore[assignment] # peft's own forward
    return module


def measure(module: ICLoRA, batch: Batch, variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """A row: median seconds of a step after the first ones, seconds of the first one (with the search for a memory plan
    and compilation), tokens/s of all ranks together, peak GiB. With several ranks the slowest one's seconds, the GiB of
    each, and whether all adapters are equal at the end."""
    device, begin = batch.device, time.perf_counter()
    row: dict[str, Any] = {}
    if device.type == "cuda":
        if not variant.eager and variant.activation_budget is None:
            plan = search_memory_plan(module, batch, variant.memory, progress)
            row = asdict(plan)
            del row["gib"]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    step = step_of(module, batch)
    step(0)
    first = synced_time(device) - begin
    seconds = median_step(step, args.steps, device)
    peak = torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else 0.0
    graphs = runner_of(module.transformer).cuda_graphs
    if graphs is not None:
        row["cuda_graphs"] = graphs.stopped or len(graphs.captured)
    if args.profile:
        profile_step(module, partial(step, 0), seconds)
    del step
    gc.collect()  # the messages of DistributedDataParallel
    return {**_combined(module, batch, seconds, first, peak), **row}


def progress(message: str) -> None:
    """Print the search for a memory plan on stderr, by rank 0 only."""
    if global_rank() == 0:
        print(message, file=sys.stderr, flush=True)


def step_of(module: ICLoRA, batch: Batch) -> Callable[[int], object]:
    """An optimizer step of training on `batch`, as a function of its number. Gradients are averaged over all ranks."""
    optimizer = module.optimizer()
    if world_size() == 1:
        return lambda number: optimizer_step(module, optimizer, batch, number)
    parallel = data_parallel(StepLoss(module), batch.device)
    return lambda number: optimizer_step(module, optimizer, batch, number, lambda _, *inputs: parallel(*inputs))


def _combined(module: ICLoRA, batch: Batch, seconds: float, first: float, peak: float) -> dict[str, Any]:
    """The part of a row that all ranks measure."""
    checksum = torch.stack([parameter.detach().double().sum() for parameter in module.adapter]).tolist()
    ranks = gather((seconds, first, peak, checksum))
    slowest = max(rank[0] for rank in ranks)
    tokens = len(ranks) * sum(latent[:, 0].numel() for latent in batch.latents)
    row = {"devices": len(ranks), "seconds": round(slowest, 4), "tokens_per_s": round(tokens / slowest)}
    if len(ranks) == 1:
        return {**row, "first": round(first, 1), "gib": round(peak, 1)}
    return {
        **row,
        "first": [round(rank[1], 1) for rank in ranks],
        "gib": [round(rank[2], 1) for rank in ranks],
        "adapters_equal": all(rank[3] == checksum for rank in ranks),
    }


def profile_step(module: ICLoRA, step: Callable[[], object], seconds: float) -> None:
    """Print where the GPU's time goes in a step. Switches CUDA graphs off."""
    graphs = runner_of(module.transformer).cuda_graphs
    replayed = None if graphs is None or graphs.stopped else executed_kernels(step)
    if graphs is not None:
        graphs.stop("a profile does not show which operator launched a kernel of a graph")
    milliseconds = profile(step, seconds, replayed)
    if global_rank() == 0:
        print(json.dumps(milliseconds), flush=True)


def median_step(step: Callable[[int], object], steps: int, device: torch.device) -> float:
    """Median seconds of consecutive steps. As in training, the host does not wait for the GPU between them."""
    if device.type != "cuda":
        times = [synced_time(device), *((step(number), synced_time(device))[1] for number in range(steps))]
        return median(later - earlier for earlier, later in pairwise(times))
    step(0)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for number in range(steps):
        step(number)
        events[number + 1].record()
    torch.cuda.synchronize(device)
    return median(earlier.elapsed_time(later) / 1e3 for earlier, later in pairwise(events))
