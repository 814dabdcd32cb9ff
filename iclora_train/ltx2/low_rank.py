"""Linears that are one product, with their adapters: on a GPU the adapters' share is computed where it is added.

The share of q, k and v is as large as they are, and made from a few numbers a token: so it is never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iclora_train.ltx2.fp8_linear import by_column, multiplies_fp8, raw_product, round_rows, rounded_product
from iclora_train.ltx2.kernels import RANKS, takes

ROWS, CHANNELS, WARPS = 64, 128, 8  # of a program's tile


def has_kernel(x: Tensor, scale: Tensor | None, ranks: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether `adapted_product` can be had: for adapters of one rank on linears of one size, in bf16 on a GPU."""
    alike = len(set(ranks)) == len(set(sizes)) == 1 and ranks[0] in RANKS and sizes[0] % CHANNELS == 0
    return alike and takes(x) and (scale is None or multiplies_fp8(x))


def adapted_product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    turned: Tensor | None,
    bias: Tensor | None,
    u: Tensor,
    up: Tensor,
    layers: int,
) -> Tensor:
    """x (...,in) -> (...,out): x (scale weight)^T + bias + u up^T, for weight (out,in) of `layers` linears, fp8 where
    there is a scale (out,), u (...,rank of all), up (out, rank of all) with a block for each linear."""
    found: Tensor = _AdaptedProduct.apply(x, weight, scale, turned, bias, u, up, layers)
    return found


class _AdaptedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, turned: Tensor | None, bias: Tensor | None,
        u: Tensor, up: Tensor, layers: int,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(weight, scale, turned, u, up)
        rows = x.reshape(-1, x.shape[-1])
        if scale is None:
            product, own = rows @ weight.t(), None
        else:
            values, own = round_rows(rows)
            product, own = raw_product(values, weight.t()), own.flatten()
        out = add_low_rank(product, own, scale, bias, u.reshape(-1, u.shape[-1]), up, layers)
        return out.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, turned, u, up = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        fp8 = scale is not None
        back = rounded_product(grad, by_column(weight, turned), scale, None) if fp8 else grad @ weight
        of_u = (rows @ up).unflatten(0, grad.shape[:-1])
        return back, None, None, None, None, of_u, rows.t() @ u.reshape(-1, u.shape[-1]), None


@torch.library.custom_op("iclora_train::add_low_rank", mutates_args=())
def add_low_rank(
    product: Tensor,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    bias: Tensor | None,
    u: Tensor,
    up: Tensor,
    layers: int,
) -> Tensor:
    """product (N,F) row_scale (N,) column_scale (F,) + bias (F,) + u (N,r layers) up^T; up (F, r layers) in blocks.

    The scales are fp32, there or not there together.
    """
    import triton  # noqa: PLC0415 (not where there is no GPU)

    from iclora_train.ltx2.low_rank_kernel import added  # noqa: PLC0415

    (n, width), out = product.shape, torch.empty_like(product)
    added[(triton.cdiv(n, ROWS), width // CHANNELS)](
        product, row_scale, column_scale, bias, u, up, out, n, u.stride(0),
        width, width // layers, u.shape[1] // layers, layers, ROWS, CHANNELS, row_scale is not None, bias is not None,
        num_warps=WARPS,
    )  # fmt: skip
    return out


@add_low_rank.register_fake
def _(product: Tensor, *rest: Tensor | int | None) -> Tensor:
    return torch.empty_like(product)
