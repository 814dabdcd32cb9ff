"""The cost of attention weights in self-attention: python -m scripts.benchmark_attention [--tokens 40000]

Half of the tokens are a reference. Compares, in one run: attention without weights, with one strength for all reference
tokens, with a mask of half of them, and with a different weight for every token; and FlexAttention with the same bias
as a score function. Forward only, or with --backward both passes. Each variant first runs for a while (--warm), so that
the GPU is as warm as in training. One JSON line per variant: milliseconds (median), multiples of the time without
weights, and memory beyond q, k and v.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from iclora_train.core.device import default_device, synced_time
from iclora_train.ltx2.model.attention import attend
from iclora_train.ltx2.model.weighted_attention import AttentionBias
from iclora_train.training.memory_plan import GIB

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def weights(kind: str, n: int, device: torch.device) -> Tensor:
    """Attention weights (1,N) of n/2 target and n/2 reference tokens."""
    half = torch.ones(n // 2, device=device)
    reference = {
        "one strength": 0.3 * half,
        "half mask": (torch.arange(len(half), device=device) % 2).float(),
        "mask of any weights": torch.rand(len(half), generator=torch.Generator().manual_seed(0)).to(device),
    }[kind]
    return torch.cat([half, reference])[None]


def weighted(kind: str, n: int, device: torch.device) -> Attention:
    """Our weighted attention."""
    group = (torch.arange(n, device=device) >= n // 2).long()
    bias = AttentionBias(weights(kind, n, device), group)
    return lambda q, k, v: attend(q, k, v, bias)


def flex(kind: str, n: int, device: torch.device) -> Attention:
    """The same bias, is_target(i) log w(j) + log w(i) is_target(j), as FlexAttention's score function."""
    logs = weights(kind, n, device).clamp(min=1e-30).log()[0]
    target = (torch.arange(n, device=device) < n // 2).float()

    def add_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + target[i] * logs[j] + logs[i] * target[j]

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, score_mod=add_bias)


def measure(attention: Attention, qkv: list[Tensor], backward: bool) -> tuple[float, float]:
    """Milliseconds of a call, and its peak memory in GiB beyond the memory in use before it."""
    device, allocated = qkv[0].device, 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
    start_time = synced_time(device)
    out = attention(*qkv)
    if backward:
        torch.autograd.grad(out, qkv, out.detach())
    seconds = synced_time(device) - start_time
    peak = torch.cuda.max_memory_allocated(device) - allocated if device.type == "cuda" else 0
    return 1e3 * seconds, peak / GIB


def sustained(attention: Attention, qkv: list[Tensor], args: argparse.Namespace) -> list[tuple[float, float]]:
    """args.rounds calls of `measure` after args.warm seconds of calls: a cold GPU is faster for a while."""
    start = time.perf_counter()
    measure(attention, qkv, args.backward)
    while time.perf_counter() - start < args.warm:
        measure(attention, qkv, args.backward)
    return [measure(attention, qkv, args.backward) for _ in range(args.rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=40000)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--width", type=int, default=128, help="channels of a head")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm", type=float, default=2.0, help="seconds that each variant runs before it is timed")
    parser.add_argument("--backward", action="store_true")
    args = parser.parse_args()
    device = default_device()
    shape = (1, args.tokens, args.heads, args.width)
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    qkv = [torch.randn(shape, generator=generator).to(device, dtype).transpose(1, 2) for _ in range(3)]
    qkv = [tensor.requires_grad_(args.backward) for tensor in qkv]
    kinds = ("one strength", "half mask", "mask of any weights")
    variants: dict[str, Attention] = {"no weights": attend}
    variants |= {kind: weighted(kind, args.tokens, device) for kind in kinds}
    if device.type == "cuda":
        variants["mask of any weights, FlexAttention"] = flex(kinds[-1], args.tokens, device)
    measured = {name: sustained(attention, qkv, args) for name, attention in variants.items()}
    medians = {name: median(ms for ms, _ in rounds) for name, rounds in measured.items()}
    for name, ms in medians.items():
        ratio, gib = ms / medians["no weights"], max(peak for _, peak in measured[name])
        row = {"variant": name, "ms": round(ms, 2), "times no weights": round(ratio, 3), "gib": round(gib, 2)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
