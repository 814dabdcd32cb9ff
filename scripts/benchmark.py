"""Times training steps against a baseline: python -m scripts.benchmark [--shapes S M L] [--checkpoint FILE]

The baseline is a plain trainer on the same base and GPU: eager bf16, activation checkpointing of every block, AdaLN
computed for every token, peft's LoRA layers, PyTorch's attention, AdamW. It runs first; then this project runs in bf16
and with an fp8 base, each within the GPU memory of trainer.memory (auto: all of the GPU). --lightricks adds Lightricks'
transformer.

Prints one JSON line per measurement: median seconds of a step after the warm-up, and peak GiB. The last lines say how
many times as fast as the baseline each variant is. --profile adds where the GPU's time goes in a step. Without a
checkpoint the weights are random.

--devices 1 2 measures with one and with two GPUs of this machine, without the baseline: one process per GPU, gradients
averaged as in training, a clip of the same shape per GPU. A table of tokens/s ends the output. --share-gpu puts all
ranks on one GPU, to test the exchange of gradients where there is only one: give --memory in GiB, so that the ranks do
not each take all of it. Its times mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as in the commands; before torch is imported

import torch
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.core.device import default_device
from iclora_train.core.process_group import process_group
from iclora_train.core.ranks import global_rank, local_rank, world_size
from iclora_train.core.types import Tokens
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.kernels import attention_backends
from iclora_train.ltx2.kernels.flash_attention import FlashBackend
from iclora_train.ltx2.model import block, transformer
from scripts.benchmark_ranks import compare
from scripts.benchmark_step import SHAPES, Variant, batch_of, measure, module_of
from scripts.lightricks_step import LightricksBase
from scripts.synthetic.configs import SIZES, VERSIONS
from scripts.synthetic.random_base import RandomBase

BASELINE = Variant("baseline", eager=True)
LIGHTRICKS = Variant("lightricks", eager=True)


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
        patch.object(block, "pick", lambda rows, level: rows),
        patch.object(attention_backends, "BACKENDS", torch_backends),
    ):
        yield


def run(
    base: BaseModel, variant: Variant, shapes: list[str], args: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Seconds of a step for every shape that fits. With several ranks a shape that does not fit ends the run."""
    module, seconds = module_of(base, variant, args.rank, device), {}
    for name in shapes:
        shape = SHAPES[name]
        try:
            module.config.task.reference_downscale = shape.downscale
            row = measure(module, batch_of(base, shape, device), variant, args)
        except (torch.OutOfMemoryError, ConfigError) as error:
            if world_size() > 1:
                raise
            report({"variant": variant.name, "shape": name, "failed": str(error)[:160]})
            continue
        seconds[name] = row["seconds"]
        report({"variant": variant.name, "shape": name, **row})
    return seconds


def report(row: dict[str, object]) -> None:
    """Print a JSON line, by rank 0 only."""
    if global_rank() == 0:
        print(json.dumps(row), flush=True)


def variants_of(args: argparse.Namespace) -> list[Variant]:
    """The variants to run, in order."""
    variants = ([] if args.no_baseline or args.devices else [BASELINE]) + ([LIGHTRICKS] if args.lightricks else [])
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
    parser.add_argument("--shapes", nargs="+", default=["S", "M", "L"], choices=list(SHAPES))
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
    parser.add_argument("--devices", nargs="+", type=int, help="numbers of GPUs to compare, e.g. 1 2")
    parser.add_argument("--share-gpu", action="store_true", help="with --devices: all ranks on one GPU")
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)  # this process is a rank of --devices
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.devices and not args.as_rank:
        compare(args.devices, sys.argv[1:], args.share_gpu)
        return
    device = default_device()
    if device.type == "cuda":
        device = torch.device("cuda", 0 if args.share_gpu else local_rank())
    with process_group(device):
        run_all(args, device)


def run_all(args: argparse.Namespace, device: torch.device) -> None:
    """Measure all variants, then compare them with the baseline."""
    base = BaseModel.open(args.checkpoint) if args.checkpoint else RandomBase(args.version, args.size)
    seconds: dict[str, dict[str, float]] = {}
    for variant in variants_of(args):
        begin = time.perf_counter()
        with baseline() if variant is BASELINE else nullcontext():
            lightricks = variant is LIGHTRICKS
            opened = LightricksBase(args.lightricks, args.version, args.size) if lightricks else base
            seconds[variant.name] = run(opened, variant, args.shapes, args, device)
        report({"variant": variant.name, "total": round(time.perf_counter() - begin, 1)})
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
            report({"variant": name, f"times as fast as {reference}": ratios})


if __name__ == "__main__":
    main()
