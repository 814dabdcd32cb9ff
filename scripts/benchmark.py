"""Times training steps against a baseline: python -m scripts.benchmark [--shapes S M L] [--checkpoint FILE]

The baseline is a plain trainer on the same base and GPU: eager bf16, activation checkpointing of every block, AdaLN
computed for every token, peft's LoRA layers, PyTorch's attention, AdamW. It runs first; then this project runs in bf16
and with an fp8 base, each within the GPU memory of trainer.memory (auto: all of the GPU). --lightricks adds Lightricks'
transformer.

Prints one JSON line per measurement: median seconds of a step after the warm-up, and peak GiB. The last lines say how
many times as fast as the baseline each variant is. --profile adds where the GPU's time goes in a step. Without a
checkpoint the weights are random.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as in the commands; before torch is imported

import torch
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.config import Config, ConfigError, Flow, Lora, Model, Optim, Task
from iclora_train.core.device import default_device
from iclora_train.core.types import Tokens
from iclora_train.data.batch import Batch
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.kernels import attention_backends
from iclora_train.ltx2.kernels.flash_attention import FlashBackend
from iclora_train.ltx2.model import transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.training.dry_run import optimizer_step, synced_time
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import GIB
from iclora_train.training.memory_search import search_memory_plan
from scripts.lightricks_step import LightricksBase
from scripts.profile_step import executed_kernels, profile
from scripts.synthetic.configs import SIZES, VERSIONS
from scripts.synthetic.random_base import RandomBase


@dataclass(frozen=True)
class Shape:
    """A clip in pixels, and by which factor its reference is smaller."""

    width: int
    height: int
    frames: int
    downscale: int = 1


SHAPES = {"S": Shape(768, 448, 49), "M": Shape(960, 544, 89), "L": Shape(704, 1216, 121, 2)}


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


BASELINE = Variant("baseline", eager=True)
LIGHTRICKS = Variant("lightricks", eager=True)


def batch_of(base: BaseModel, shape: Shape, device: torch.device) -> Batch:
    """One clip of random latents with a reference and text features."""
    generator = torch.Generator().manual_seed(0)
    frames, height, width = base.geometry.latent_size(shape.frames, shape.height, shape.width)
    small = (frames, height // shape.downscale, width // shape.downscale)
    channels = base.geometry.channels
    features = transformer.TransformerConfig.from_metadata(base.config["transformer"]).text_width
    target = torch.randn(1, channels, frames, height, width, generator=generator).to(device)
    reference = torch.randn(1, channels, *small, generator=generator).to(device)
    text = torch.randn(1, 1024, features, generator=generator).to(device)
    fps = torch.tensor([24.0])
    return Batch(target, [reference], text, fps, keys=["random"])


@contextmanager
def baseline() -> Iterator[None]:
    """Inside the `with`, transformers compute like a plain trainer's, with the same results.

    Each token has its own AdaLN row instead of one per noise level, and attention is PyTorch's. (Eager execution,
    activation checkpointing and peft's layers are settings of `module_of`.)
    """
    forward = transformer.Transformer.forward

    def forward_with_rows_per_token(
        net: transformer.Transformer, tokens: Tokens, text: Tensor, num_outputs: int | None = None
    ) -> Tensor:
        per_token = replace(tokens, sigma=tokens.sigma.gather(1, tokens.level.long()))  # (B,N)
        return forward(net, per_token, text)[:, :num_outputs]

    torch_backends = tuple(b for b in attention_backends.BACKENDS if not isinstance(b, FlashBackend))
    with (
        patch.object(transformer.Transformer, "forward", forward_with_rows_per_token),
        patch.object(transformer, "pick", lambda rows, level: rows),  # (B,N,D), already one row per token
        patch.object(attention_backends, "BACKENDS", torch_backends),
    ):
        yield


def module_of(base: BaseModel, variant: Variant, rank: int, device: torch.device) -> ICLoRA:
    """The training module of a variant."""
    model = Model(
        name="benchmark", checkpoint="", precision=variant.precision, activation_checkpointing=True,
        compile=not variant.eager, activation_budget=variant.activation_budget, cuda_graphs=variant.cuda_graphs,
        weight_offload=variant.weight_offload, lora=Lora(rank=rank),
    )  # fmt: skip
    optim = Optim(optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-4})
    config = Config(task=Task(name="benchmark", maker="none"), model=model, flow=Flow(first_frame_p=0.0), optim=optim)
    module = ICLoRA(config, base, device)
    if variant.eager:
        for _, layer in lora.layers(module.transformer):
            layer.__class__ = lora.AdaptedLinear.__base__  # type: ignore[assignment] # peft's own forward
    return module


def measure(module: ICLoRA, batch: Batch, variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step after the first ones, seconds of the first one (with the search for a memory plan and
    compilation), and peak GiB."""
    device, optimizer, begin = batch.device, module.optimizer(), time.perf_counter()
    row: dict[str, Any] = {}
    if device.type == "cuda":
        if not variant.eager and variant.activation_budget is None:
            plan = search_memory_plan(module, batch, variant.memory, partial(print, file=sys.stderr, flush=True))
            row = asdict(plan)
            del row["gib"]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    optimizer_step(module, optimizer, batch, 0)
    first = synced_time(device) - begin
    seconds = median_step(lambda number: optimizer_step(module, optimizer, batch, number), args.steps, device)
    peak = torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else 0.0
    graphs = runner_of(module.transformer).cuda_graphs
    if graphs is not None:
        row["cuda_graphs"] = graphs.stopped or len(graphs.captured)
    if args.profile:
        step = partial(optimizer_step, module, optimizer, batch, 0)
        replayed = None if graphs is None or graphs.stopped else executed_kernels(step)
        if graphs is not None:
            graphs.stop("a profile does not show which operator launched a kernel of a graph")
        print(json.dumps(profile(step, seconds, replayed)), flush=True)
    return {"seconds": round(seconds, 4), "first": round(first, 1), "gib": round(peak, 1), **row}


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


def run(
    base: BaseModel, variant: Variant, shapes: list[str], args: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Seconds of a step for every shape that fits."""
    module, seconds = module_of(base, variant, args.rank, device), {}
    for name in shapes:
        shape = SHAPES[name]
        try:
            module.config.task.reference_downscale = shape.downscale
            row = measure(module, batch_of(base, shape, device), variant, args)
        except (torch.OutOfMemoryError, ConfigError) as error:
            print(json.dumps({"variant": variant.name, "shape": name, "failed": str(error)[:160]}), flush=True)
            continue
        seconds[name] = row["seconds"]
        print(json.dumps({"variant": variant.name, "shape": name, **row}), flush=True)
    return seconds


def variants_of(args: argparse.Namespace) -> list[Variant]:
    """The variants to run, in order."""
    variants = ([] if args.no_baseline else [BASELINE]) + ([LIGHTRICKS] if args.lightricks else [])
    shared = {"weight_offload": args.weight_offload, "cuda_graphs": not args.no_cuda_graphs}
    for precision in args.precision:
        for memory in args.memory:
            limit = memory if memory in ("auto", "low") else float(memory)
            variants.append(Variant(f"{precision} {memory}", precision, memory=limit, **shared))
        for budget in args.activation_budget:
            variants.append(Variant(f"{precision} budget {budget:g}", precision, activation_budget=budget, **shared))
    return variants


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="default: random weights")
    parser.add_argument("--version", default="2.3", choices=VERSIONS, help="of the random weights")
    parser.add_argument("--size", default="full", choices=SIZES, help="of the random weights")
    parser.add_argument("--profile", action="store_true", help="print milliseconds by kind of kernel")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument(
        "--activation-budget", nargs="*", type=float, default=[], help="model.activation_budget, more variants"
    )
    parser.add_argument("--memory", nargs="*", default=["auto"], help="trainer.memory: auto, low, or GiB")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp8"], choices=["bf16", "fp8", "fp32"])
    parser.add_argument("--weight-offload", type=int, default=0, help="model.weight_offload of all but the baseline")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="model.cuda_graphs=false of all but the baseline")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument(
        "--lightricks", type=Path, help="a checkout of Lightricks/LTX-2, whose transformer is timed too"
    )
    return parser.parse_args()


def main() -> None:
    args, device = parse_arguments(), default_device()
    base = BaseModel.open(args.checkpoint) if args.checkpoint else RandomBase(args.version, args.size)
    seconds: dict[str, dict[str, float]] = {}
    for variant in variants_of(args):
        begin = time.perf_counter()
        with baseline() if variant is BASELINE else nullcontext():
            lightricks = variant is LIGHTRICKS
            opened = LightricksBase(args.lightricks, args.version, args.size) if lightricks else base
            seconds[variant.name] = run(opened, variant, args.shapes, args, device)
        print(json.dumps({"variant": variant.name, "total": round(time.perf_counter() - begin, 1)}), flush=True)
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for reference in (BASELINE.name, LIGHTRICKS.name):
        for name, times in seconds.items() if reference in seconds else ():
            ratios = {
                shape: round(seconds[reference][shape] / times[shape], 2)
                for shape in times
                if shape in seconds[reference]
            }
            print(json.dumps({"variant": name, f"times as fast as {reference}": ratios}), flush=True)


if __name__ == "__main__":
    main()
