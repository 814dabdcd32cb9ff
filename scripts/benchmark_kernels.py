"""Times each Triton kernel alone, on an NVIDIA GPU: python -m scripts.benchmark_kernels [--precision fp8]

Sizes of LTX-2.3, one clip. One JSON line per kernel: `us` is its time in microseconds (median, cold cache), `copy_us`
the time that reading and writing each of its tensors once would take at the speed of a copy. The last lines, in bf16
only, compare two ways to compute the input gradient of a frozen linear with LoRA: one matmul with the stacked weight
(`stacked_us`), and a matmul followed by adding LoRA's term (`separate_us`). --set tries another tile: --set
fused_attention_out.BACK_TILE=16,4,3.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iclora_train.ltx2.kernels import (
    feed_forward_ops,
    fused_attention_out,
    fused_qkv,
    fused_query,
    lora_product,
    modulated_norm,
)
from iclora_train.ltx2.kernels.stacked_weight import padded, stacked_product

WIDTH, HEADS, LEVELS, EPS = 4096, 32, 2, 1e-6


class Linear(NamedTuple):
    """A frozen linear, or several fused into one.

    width: output channels as a multiple of WIDTH. adapters: number of LoRA A matrices. gate: channels of the head gate.
    """

    width: int
    adapters: int
    gate: int


LINEARS = {"q, k, v": Linear(3, 3, HEADS), "text query": Linear(1, 1, HEADS), "feed-forward": Linear(4, 1, 0)}


class Case(NamedTuple):
    """A kernel, the name of its operator, and its arguments."""

    name: str
    kernel: Callable[..., Any]
    args: tuple[Any, ...]

    def __call__(self) -> Any:
        return self.kernel(*self.args)


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

    def fp32(self, *shape: int) -> Tensor:
        return torch.ones(shape, device=self.device)

    def scale(self, *shape: int) -> Tensor | None:
        """A scale in fp8, None in bf16."""
        return self.fp32(*shape) if self.fp8 else None

    def level(self) -> Tensor:
        return torch.zeros(1, self.n, dtype=torch.long, device=self.device)


def cases(n: int, rank: int, fp8: bool, device: str) -> Iterator[Case]:
    """Every kernel of a training step, with arguments of the step's shapes."""
    t, spare = Tensors(n, fp8, device), 0 if fp8 else padded(rank)
    yield from _attention_cases(t, rank, spare)
    yield from _norm_cases(t, rank, spare)
    hidden, u = 4 * WIDTH, t.rows(rank)
    args = t.rows(hidden), t.scale(n), u, t.of(hidden, rank), t.of(hidden), t.of(rank, hidden), fp8
    yield Case("gelu_up", feed_forward_ops.gelu_up, args)
    grads = t.rows(hidden), t.scale(n), u, t.of(rank, hidden)
    yield Case("gelu_back", feed_forward_ops.gelu_back, (*grads, t.rows(hidden), t.of(hidden, rank), u, fp8, spare))


def _attention_cases(t: Tensors, rank: int, spare: int) -> Iterator[Case]:
    """The kernels between the fused linear of q, k, v and attention, and their backward."""
    three, ranks, head_dim = 3 * WIDTH, 3 * rank, WIDTH // HEADS
    lora, rope = (t.rows(ranks), t.of(three, ranks), 3), t.of(2, 1, t.n, HEADS, head_dim // 2)
    scales = t.scale(t.n), t.scale(three), t.of(three)
    yield Case("add_low_rank", lora_product.add_low_rank, (t.rows(three), *scales, *lora))
    yield Case("norm_rotate", fused_qkv.norm_rotate, (t.rows(2 * WIDTH), t.of(WIDTH), t.of(WIDTH), rope, EPS))
    grads_and_qk = [t.clip(HEADS, head_dim) for _ in range(5)]
    norms = t.fp32(2, t.n), t.of(WIDTH), t.of(WIDTH)
    yield Case("norm_rotate_back", fused_qkv.norm_rotate_back, (*grads_and_qk, *norms, rope, t.scale(three), spare))
    yield Case("halves_back of q, k, v", lora_product.lora_b_backward_parts, (t.rows(three), *lora))
    product = t.rows(WIDTH), t.scale(t.n), t.rows(rank), t.of(rank, WIDTH)
    yield Case("gate_back", fused_attention_out.gate_back, (*product, t.clip(HEADS, head_dim), t.clip(HEADS)))


def _norm_cases(t: Tensors, rank: int, spare: int) -> Iterator[Case]:
    """The kernels of the text query, of gated residuals and of modulated norms, and their backward."""
    u, lora_b, product, adaln = t.rows(rank), t.of(WIDTH, rank), t.rows(WIDTH), t.of(1, LEVELS, WIDTH)
    yield Case("norm_alone", fused_query.query_norm, (product, t.of(WIDTH), EPS))
    args = t.clip(WIDTH), t.clip(WIDTH), t.fp32(t.n), t.of(WIDTH), t.scale(), spare
    yield Case("norm_alone_back", fused_query.query_norm_back, args)
    yield Case("add_thin", lora_product.add_lora_term, (product, t.scale(t.n), None, u, t.of(rank, WIDTH)))
    yield Case("halves_back", lora_product.lora_b_backward_parts, (product, u, lora_b, 1))
    residual = t.clip(WIDTH), adaln, t.level()
    yield Case("add_gated", fused_attention_out.add_gated, (product, t.scale(t.n), t.of(WIDTH), u, lora_b, *residual))
    grads = t.clip(WIDTH), t.clip(WIDTH), t.clip(WIDTH), t.fp32(1, t.n, 1)
    yield Case("norm_back", modulated_norm.norm_back, (*grads, adaln, t.level(), adaln, t.scale()))


def bytes_moved(case: Case) -> int:
    """Bytes of a kernel's arguments and results."""
    result = case()
    results = result if isinstance(result, tuple | list) else [result]
    return sum(value.nbytes for value in (*case.args, *results) if isinstance(value, Tensor))


def input_grad_cases(n: int, rank: int, device: str) -> Iterator[tuple[Case, Case]]:
    """The input gradient of a frozen linear with LoRA: with the stacked weight, and as two steps."""
    t = Tensors(n, False, device)
    for name, (width, adapters, gate) in LINEARS.items():
        out, ranks = width * WIDTH, adapters * rank + gate
        stacked, grad_u, lora_a = t.of(out + padded(ranks), WIDTH), t.rows(ranks), t.of(ranks, WIDTH)
        grad = t.rows(len(stacked))
        one_matmul = Case(name, stacked_product, (grad, stacked, grad_u, lora_a))
        yield one_matmul, Case(name, lora_product.input_grad, (t.rows(out), None, stacked[:out], grad_u, lora_a, None))


def microseconds(work: Callable[[], Any]) -> float:
    from triton.testing import do_bench  # noqa: PLC0415 (absent without a GPU)

    return 1e3 * float(do_bench(work, return_mode="median"))


def run(n: int, rank: int, precision: str) -> None:
    source, copy = (torch.empty(n, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    speed = 4 * n * WIDTH / microseconds(lambda: copy.copy_(source))  # bytes per microsecond, read and written
    for case in cases(n, rank, precision == "fp8", "cuda"):
        row = {"kernel": case.name, "tokens": n, "precision": precision}
        times = {"us": round(microseconds(case), 1), "copy_us": round(bytes_moved(case) / speed, 1)}
        print(json.dumps({**row, **times}), flush=True)
    for stacked, separate in input_grad_cases(n, rank, "cuda") if precision == "bf16" else ():
        times = {"stacked_us": round(microseconds(stacked), 1), "separate_us": round(microseconds(separate), 1)}
        print(json.dumps({"input gradient of": stacked.name, "tokens": n, **times}), flush=True)


def set_tile(setting: str) -> None:
    """MODULE.NAME=numbers: another tile for the kernels of iclora_train.ltx2.kernels.MODULE."""
    name, _, numbers = setting.partition("=")
    module_name, _, attribute = name.rpartition(".")
    module = importlib.import_module(f"iclora_train.ltx2.kernels.{module_name}")
    kind, values = type(getattr(module, attribute)), [int(number) for number in numbers.split(",")]
    setattr(module, attribute, values[0] if kind is int else tuple(values) if kind is tuple else kind(*values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4704, 16720], help="S 4704, M 12240, L 16720")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp8"], choices=["bf16", "fp8"])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--set", nargs="+", default=[], metavar="MODULE.NAME=NUMBERS")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("the Triton kernels need an NVIDIA GPU, and none was found")
    for setting in args.set:
        set_tile(setting)
    for precision in args.precision:
        for n in args.tokens:
            run(n, args.rank, precision)


if __name__ == "__main__":
    main()
