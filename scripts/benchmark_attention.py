"""What weights on references cost in self-attention: python -m scripts.benchmark_attention [--tokens 40000]

Half of the tokens are a reference. In one run: attention without weights, with one strength, with a half-frame mask and
with a weight of its own on every token, forwards and (--backward) backwards; beside FlexAttention with the bias as a
score function. Each way is first kept up for a while (--warm), as training does. One JSON line each: milliseconds
(median), times the cost without weights, memory beyond q, k and v.
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

from iclora_train.core.device import default_device
from iclora_train.ltx2.model.attention import attend
from iclora_train.ltx2.model.weighted_attention import AttentionBias
from iclora_train.training.dry_run import synced_time
from iclora_train.training.memory_plan import GIB

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def weights(kind: str, n: int, device: torch.device) -> Tensor:
    """Attention weights (1,N) of n/2 target and n/2 reference tokens."""
    half = torch.ones(n // 2, device=device)
    own = {
        "one strength": 0.3 * half,
        "half mask": (torch.arange(len(half), device=device) % 2).float(),
        "mask of any weights": torch.rand(len(half), generator=torch.Generator().manual_seed(0)).to(device),
    }[kind]
    return torch.cat([half, own])[None]


def ours(kind: str, n: int, device: torch.device) -> Way:
    group = (torch.arange(n, device=device) >= n // 2).long()
    bias = AttentionBias(weights(kind, n, device), group)
    return lambda q, k, v: attend(q, k, v, bias)


def flex(kind: str, n: int, device: torch.device) -> Way:
    """The same bias, is_target(i) log w(j) + log w(i) is_target(j), as FlexAttention's score function."""
    logs = weights(kind, n, device).clamp(min=1e-30).log()[0]
    target = (torch.arange(n, device=device) < n // 2).float()

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + target[i] * logs[j] + logs[i] * target[j]

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, score_mod=biased)


def measure(way: Way, qkv: list[Tensor], backward: bool) -> tuple[float, float]:
    """Milliseconds of a call, and GiB at its peak beyond what was there before."""
    device, start = qkv[0].device, 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
    begun = synced_time(device)
    out = way(*qkv)
    if backward:
        torch.autograd.grad(out, qkv, out.detach())
    spent = synced_time(device) - begun
    peak = torch.cuda.max_memory_allocated(device) - start if device.type == "cuda" else 0
    return 1e3 * spent, peak / GIB


def sustained(way: Way, qkv: list[Tensor], args: argparse.Namespace) -> list[tuple[float, float]]:
    """`measure`, again and again, after args.warm seconds of it: a GPU that has rested is faster for a while."""
    begun = time.perf_counter()
    measure(way, qkv, args.backward)
    while time.perf_counter() - begun < args.warm:
        measure(way, qkv, args.backward)
    return [measure(way, qkv, args.backward) for _ in range(args.rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=40000)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--width", type=int, default=128, help="of a head")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm", type=float, default=2.0, help="seconds of each way before it is timed")
    parser.add_argument("--backward", action="store_true")
    args = parser.parse_args()
    device = default_device()
    shape = (1, args.tokens, args.heads, args.width)
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    qkv = [torch.randn(shape, generator=generator).to(device, dtype).transpose(1, 2) for _ in range(3)]
    qkv = [tensor.requires_grad_(args.backward) for tensor in qkv]
    kinds = ("one strength", "half mask", "mask of any weights")
    ways: dict[str, Way] = {"no weights": attend}
    ways |= {kind: ours(kind, args.tokens, device) for kind in kinds}
    if device.type == "cuda":
        ways["mask of any weights, FlexAttention"] = flex(kinds[-1], args.tokens, device)
    taken = {name: sustained(way, qkv, args) for name, way in ways.items()}
    spent = {name: median(ms for ms, _ in of) for name, of in taken.items()}
    for name, ms in spent.items():
        times, gib = ms / spent["no weights"], max(peak for _, peak in taken[name])
        row = {"way": name, "ms": round(ms, 2), "times no weights": round(times, 3), "gib": round(gib, 2)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
