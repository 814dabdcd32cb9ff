"""Kernels of our own, alone, on an NVIDIA GPU: python -m scripts.benchmark_kernels [--tokens 16720] [--precision fp8]

Of LTX-2.3, for one clip. One JSON line each: microseconds (median, nothing of it in the cache), and those that reading
and writing each of its tensors once would take at the speed of a copy. Last, in bf16, what goes back through a frozen
weight and an adapter: as one product, and as a product with the adapter's share added behind it. --set tries other
tiles: --set gated_out.BACK=16,4,3.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iclora_train.ltx2.kernels import feed_forward_ops
from iclora_train.ltx2.kernels import fused_attention_out as gated_out
from iclora_train.ltx2.kernels import fused_qkv as qkv
from iclora_train.ltx2.kernels import fused_query as query
from iclora_train.ltx2.kernels import lora_product as low_rank
from iclora_train.ltx2.kernels import modulated_norm as norm
from iclora_train.ltx2.kernels.stacked_weight import room_for, stacked_product

WIDTH, HEADS, LEVELS, EPS = 4096, 32, 2, 1e-6
PRODUCTS = {"q, k, v": (3, 3, HEADS), "a text's query": (1, 1, HEADS), "feed-forward": (4, 1, 0)}  # width, A, gate


class Case(NamedTuple):
    """A kernel, and what it is called with."""

    name: str
    kernel: Callable[..., Any]
    given: tuple[Any, ...]

    def __call__(self) -> Any:
        return self.kernel(*self.given)


class Tensors:
    """Random tensors of one clip of n tokens."""

    def __init__(self, n: int, fp8: bool, device: str) -> None:
        self.n, self.fp8, self.device = n, fp8, device

    def of(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)

    def rows(self, channels: int) -> Tensor:
        return self.of(self.n, channels)

    def clip(self, *shape: int) -> Tensor:
        return self.of(1, self.n, *shape)

    def exact(self, *shape: int) -> Tensor:
        return torch.ones(shape, device=self.device)

    def scale(self, *shape: int) -> Tensor | None:
        """What is there in fp8 only."""
        return self.exact(*shape) if self.fp8 else None

    def level(self) -> Tensor:
        return torch.zeros(1, self.n, dtype=torch.long, device=self.device)


def cases(n: int, rank: int, fp8: bool, device: str) -> Iterator[Case]:
    """Every kernel of a training step, with what it is given there."""
    t, spare = Tensors(n, fp8, device), 0 if fp8 else room_for(rank)
    yield from _around_attention(t, rank, spare)
    yield from _around_norms(t, rank, spare)
    wide, inner = 4 * WIDTH, t.rows(rank)
    first = t.rows(wide), t.scale(n), inner, t.of(wide, rank), t.of(wide), t.of(rank, wide), fp8
    yield Case("gelu_up", feed_forward_ops.gelu_up, first)
    second = t.rows(wide), t.scale(n), inner, t.of(rank, wide), t.rows(wide), t.of(wide, rank), inner, fp8, spare
    yield Case("gelu_back", feed_forward_ops.gelu_back, second)


def _around_attention(t: Tensors, rank: int, spare: int) -> Iterator[Case]:
    """From q, k and v to what attention is given, and back."""
    three, ranks, head = 3 * WIDTH, 3 * rank, WIDTH // HEADS
    thin, rope = (t.rows(ranks), t.of(three, ranks), 3), t.of(2, 1, t.n, HEADS, head // 2)
    scales = t.scale(t.n), t.scale(three), t.of(three)
    yield Case("add_low_rank", low_rank.add_low_rank, (t.rows(three), *scales, *thin))
    yield Case("norm_rotate", qkv.norm_rotate, (t.rows(2 * WIDTH), t.of(WIDTH), t.of(WIDTH), rope, EPS))
    five = [t.clip(HEADS, head) for _ in range(5)]
    norms = t.exact(2, t.n), t.of(WIDTH), t.of(WIDTH)
    yield Case("norm_rotate_back", qkv.norm_rotate_back, (*five, *norms, rope, t.scale(three), spare))
    yield Case("halves_back of q, k, v", low_rank.halves_back, (t.rows(three), *thin))
    gated = t.clip(HEADS, head), t.clip(HEADS)
    yield Case("gate_back", gated_out.gate_back, (t.rows(WIDTH), t.scale(t.n), t.rows(rank), t.of(rank, WIDTH), *gated))


def _around_norms(t: Tensors, rank: int, spare: int) -> Iterator[Case]:
    """A text's query, sums with the tokens, norms, and back."""
    inner, up, product, rows = t.rows(rank), t.of(WIDTH, rank), t.rows(WIDTH), t.of(1, LEVELS, WIDTH)
    yield Case("norm_alone", query.norm_alone, (product, t.of(WIDTH), EPS))
    back = t.clip(WIDTH), t.clip(WIDTH), t.exact(t.n), t.of(WIDTH), t.scale(), spare
    yield Case("norm_alone_back", query.norm_alone_back, back)
    yield Case("add_thin", low_rank.add_thin, (product, t.scale(t.n), None, inner, t.of(rank, WIDTH)))
    yield Case("halves_back", low_rank.halves_back, (product, inner, up, 1))
    onto = t.clip(WIDTH), rows, t.level()
    yield Case("add_gated", gated_out.add_gated, (product, t.scale(t.n), t.of(WIDTH), inner, up, *onto))
    grads = t.clip(WIDTH), t.clip(WIDTH), t.clip(WIDTH), t.exact(1, t.n, 1)
    yield Case("norm_back", norm.norm_back, (*grads, rows, t.level(), rows, t.scale()))


def moved(case: Case) -> int:
    """Bytes of what a kernel is given and gives."""
    found = case()
    results = found if isinstance(found, tuple | list) else [found]
    return sum(value.nbytes for value in (*case.given, *results) if isinstance(value, Tensor))


def products(n: int, rank: int, device: str) -> Iterator[tuple[Case, Case]]:
    """What goes back through a weight and an adapter: as one product, and apart."""
    t = Tensors(n, False, device)
    for name, (times, adapters, gate) in PRODUCTS.items():
        out, ranks = times * WIDTH, adapters * rank + gate
        room, thin, down = t.of(out + room_for(ranks), WIDTH), t.rows(ranks), t.of(ranks, WIDTH)
        wide = t.rows(len(room))
        one = Case(name, stacked_product, (wide, room, thin, down))
        yield one, Case(name, low_rank.back_through, (t.rows(out), None, room[:out], thin, down, None))


def microseconds(work: Callable[[], Any]) -> float:
    from triton.testing import do_bench  # noqa: PLC0415 (not where there is no GPU)

    return 1e3 * float(do_bench(work, return_mode="median"))


def run(n: int, rank: int, precision: str) -> None:
    there, here = (torch.empty(n, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    speed = 4 * n * WIDTH / microseconds(lambda: here.copy_(there))  # bytes a microsecond
    for case in cases(n, rank, precision == "fp8", "cuda"):
        row = {"kernel": case.name, "tokens": n, "precision": precision}
        took = {"us": round(microseconds(case), 1), "moving": round(moved(case) / speed, 1)}
        print(json.dumps({**row, **took}), flush=True)
    for one, apart in products(n, rank, "cuda") if precision == "bf16" else ():
        took = {"one": round(microseconds(one), 1), "apart": round(microseconds(apart), 1)}
        print(json.dumps({"back through": one.name, "tokens": n, **took}), flush=True)


def set_tile(setting: str) -> None:
    """MODULE.NAME=numbers: another tile for kernels of iclora_train.ltx2.kernels.MODULE."""
    name, _, numbers = setting.partition("=")
    module, _, attribute = name.rpartition(".")
    chosen = importlib.import_module(f"iclora_train.ltx2.kernels.{module}")
    kind, values = type(getattr(chosen, attribute)), [int(number) for number in numbers.split(",")]
    setattr(chosen, attribute, values[0] if kind is int else tuple(values) if kind is tuple else kind(*values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4704, 16720], help="S 4704, M 12240, L 16720")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp8"], choices=["bf16", "fp8"])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--set", nargs="+", default=[], metavar="MODULE.NAME=NUMBERS")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("kernels of our own need an NVIDIA GPU, and there is none here")
    for setting in args.set:
        set_tile(setting)
    for precision in args.precision:
        for n in args.tokens:
            run(n, args.rank, precision)


if __name__ == "__main__":
    main()
