"""Training steps, the common way beside ours: python -m scripts.benchmark [--shapes S M L] [--checkpoint FILE]

In one run on one base: the way of a plain trainer (AdaLN computed for every token, peft's layers, PyTorch's attention,
each block recomputed, AdamW, nothing compiled), then this project's, in bf16 and with an fp8 base, each with the memory
that trainer.memory allows (auto: all of the GPU). One JSON line per measurement: median seconds of a step after the
warm-up, GiB at the peak; last, how many times as fast as the plain way each is. --profile adds where the GPU's time
goes in a step. Without a checkpoint the weights are random.
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
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as the commands do, before torch is loaded

import torch
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.config import Config, ConfigError, Flow, Lora, Model, Optim, Task
from iclora_train.core.device import default_device
from iclora_train.core.types import Tokens
from iclora_train.data.batch import Batch
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.kernels import flash_attention as flash
from iclora_train.ltx2.kernels import modulated_norm as norm
from iclora_train.ltx2.kernels import modulation
from iclora_train.ltx2.model import transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.training.dry_run import optimizer_step, synced_time
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import GIB
from iclora_train.training.memory_search import search_memory_plan
from scripts.lightricks_step import TheirBase
from scripts.profile_step import profile, ran
from scripts.synthetic.configs import SIZES, VERSIONS
from scripts.synthetic.random_base import RandomBase


@dataclass(frozen=True)
class Shape:
    """A clip in pixels, and how many times smaller its reference is."""

    width: int
    height: int
    frames: int
    downscale: int = 1


SHAPES = {"S": Shape(768, 448, 49), "M": Shape(960, 544, 89), "L": Shape(704, 1216, 121, 2)}


@dataclass(frozen=True)
class Way:
    """How steps are computed: with blocks compiled and trainer.memory, or model.activation_budget,
    model.weight_offload and model.cuda_graphs; or the plain way."""

    name: str
    precision: str = "bf16"
    plain: bool = False
    memory: str | float = "auto"
    activation_budget: float | None = None
    weight_offload: int = 0
    cuda_graphs: bool = True


PLAIN = Way("plain", plain=True)
THEIRS = Way("lightricks", plain=True)


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
def plainly() -> Iterator[None]:
    """Inside the `with`, the transformer is shown one noise level a token, modulates each by a row of its own, and
    attends as PyTorch chooses."""
    forward = transformer.Transformer.forward

    def spread(net: Any, tokens: Tokens, text: Tensor, num_outputs: int | None = None) -> Tensor:
        own = replace(tokens, sigma=tokens.sigma.gather(1, tokens.level.long()))
        return forward(net, own, text)[:, :num_outputs]

    with (
        patch.object(transformer, "pick", lambda rows, level: rows),
        patch.object(modulation, "pick", lambda rows, level: rows),
        patch.object(norm, "pick", lambda rows, level: rows),
        patch.object(flash, "INSTALLED_VERSION", ""),
        patch.object(transformer.Transformer, "forward", spread),
    ):
        yield


def module_of(base: BaseModel, way: Way, rank: int, device: torch.device) -> ICLoRA:
    model = Model(
        name="benchmark", checkpoint="", precision=way.precision, activation_checkpointing=True, compile=not way.plain,
        activation_budget=way.activation_budget, weight_offload=way.weight_offload, cuda_graphs=way.cuda_graphs,
        lora=Lora(rank=rank),
    )  # fmt: skip
    optim = Optim(optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-4})
    config = Config(task=Task(name="benchmark", maker="none"), model=model, flow=Flow(first_frame_p=0.0), optim=optim)
    module = ICLoRA(config, base, device)
    if way.plain:
        for _, layer in lora.layers(module.transformer):
            layer.__class__ = lora.AdaptedLinear.__base__  # type: ignore[assignment] # peft's own arithmetic
    return module


def measure(module: ICLoRA, batch: Batch, way: Way, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of the steps after the first ones, the first one's (with what is chosen and compiled before it),
    and the peak of memory."""
    device, optimizer, begun = batch.device, module.optimizer(), time.perf_counter()
    row: dict[str, Any] = {}
    if device.type == "cuda":
        if not way.plain and way.activation_budget is None:
            plan = search_memory_plan(module, batch, way.memory, partial(print, file=sys.stderr, flush=True))
            row = {
                "activation_budget": plan.activation_budget,
                "activation_offload": plan.activation_offload,
                "cached_transposed": plan.cached_transposed,
            }
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    optimizer_step(module, optimizer, batch, 0)
    first = synced_time(device) - begun
    taken = running(lambda number: optimizer_step(module, optimizer, batch, number), args.steps, device)
    peak = torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else 0.0
    if runner_of(module.transformer).cuda_graphs is not None:
        row["cuda_graphs"] = runner_of(module.transformer).cuda_graphs.stopped or len(
            runner_of(module.transformer).cuda_graphs.captured
        )
    if args.profile:
        step, graphs = partial(optimizer_step, module, optimizer, batch, 0), runner_of(module.transformer).cuda_graphs
        replayed = None if graphs is None or graphs.stopped else ran(step)
        if graphs is not None:
            graphs.stop("a profile, which names no kernel's origin inside of a graph")
        print(json.dumps(profile(step, taken, replayed)), flush=True)
    return {"seconds": round(taken, 4), "first": round(first, 1), "gib": round(peak, 1), **row}


def running(step: Callable[[int], object], steps: int, device: torch.device) -> float:
    """Median seconds of a step while one follows the other, as in training: nobody waits for the device."""
    if device.type != "cuda":
        marks = [synced_time(device), *((step(number), synced_time(device))[1] for number in range(steps))]
        return median(later - earlier for earlier, later in pairwise(marks))
    step(0)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for number in range(steps):
        step(number)
        events[number + 1].record()
    torch.cuda.synchronize(device)
    return median(earlier.elapsed_time(later) / 1e3 for earlier, later in pairwise(events))


def run(
    base: BaseModel, way: Way, shapes: list[str], args: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Seconds of a step of every shape that fits."""
    module, found = module_of(base, way, args.rank, device), {}
    for name in shapes:
        shape = SHAPES[name]
        try:
            module.config.task.reference_downscale = shape.downscale
            row = measure(module, batch_of(base, shape, device), way, args)
        except (torch.OutOfMemoryError, ConfigError) as error:
            print(json.dumps({"way": way.name, "shape": name, "failed": str(error)[:160]}), flush=True)
            continue
        found[name] = row["seconds"]
        print(json.dumps({"way": way.name, "shape": name, **row}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="else random weights")
    parser.add_argument("--version", default="2.3", choices=VERSIONS, help="of the random weights")
    parser.add_argument("--size", default="full", choices=SIZES, help="of the random weights")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument(
        "--activation-budget",
        nargs="*",
        type=float,
        default=[],
        help="of model.activation_budget, to try beside what is chosen",
    )
    parser.add_argument("--memory", nargs="*", default=["auto"], help="of trainer.memory: auto, low, or GiB")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp8"], choices=["bf16", "fp8", "fp32"])
    parser.add_argument("--weight-offload", type=int, default=0, help="blocks in host memory, of our ways")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="model.cuda_graphs=false, of our ways")
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument(
        "--lightricks", type=Path, help="a checkout of Lightricks/LTX-2: its transformer is measured too"
    )
    args = parser.parse_args()
    device = default_device()
    base = BaseModel.open(args.checkpoint) if args.checkpoint else RandomBase(args.version, args.size)
    ways = ([] if args.no_plain else [PLAIN]) + ([THEIRS] if args.lightricks else [])
    alike = {"weight_offload": args.weight_offload, "cuda_graphs": not args.no_cuda_graphs}
    for precision in args.precision:
        for memory in args.memory:
            limit = memory if memory in ("auto", "low") else float(memory)
            ways.append(Way(f"ours {precision} {memory}", precision, memory=limit, **alike))
        ways += [
            Way(f"ours {precision} budget {budget:g}", precision, activation_budget=budget, **alike)
            for budget in args.activation_budget
        ]
    seconds: dict[str, dict[str, float]] = {}
    for way in ways:
        begun = time.perf_counter()
        with plainly() if way is PLAIN else nullcontext():
            own = TheirBase(args.lightricks, args.version, args.size) if way is THEIRS else base
            seconds[way.name] = run(own, way, args.shapes, args, device)
        print(json.dumps({"way": way.name, "in all": round(time.perf_counter() - begun, 1)}), flush=True)
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for common in (PLAIN, THEIRS):
        for name, found in seconds.items() if (theirs := seconds.get(common.name)) else ():
            ratios = {shape: round(theirs[shape] / found[shape], 2) for shape in found if shape in theirs}
            print(json.dumps({"way": name, f"times as fast as {common.name}": ratios}), flush=True)


if __name__ == "__main__":
    main()
