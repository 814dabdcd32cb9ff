"""Linears that are one product, with their adapters: on a GPU the adapters' share is computed where it is added.

The share of q, k and v is as large as they are, and made from a few numbers a token: so it is never written. The last
linear's results are kept apart: others than v, which attention keeps as it is, are normalised first. Backwards a
gradient is read once for B and for what goes back through B, and what goes back through A is added to the frozen
product's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.dispatch import RANKS, takes
from iclora_train.ltx2.kernels.fp8_linear import by_column, multiplies_fp8, raw_product, round_rows, rounded_product
from iclora_train.ltx2.kernels.stacked_weight import stacked_product

ROWS, CHANNELS, WARPS = 64, 128, 8  # of a program's tile
THIN = (64, 8)  # the same of `add_thin`: rows and warps
BOTH = (64, 8, 3)  # of `halves_back`: rows, warps, tiles on their way
CHANNELS_BY_RANK = 8192  # what a program of it sums up
PARTS = 16  # of the rows, that are summed up apart


def has_kernel(x: Tensor, scale: Tensor | None, ranks: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether `adapted_product` can be had: for adapters of one rank on linears of one size, in bf16 on a GPU."""
    alike = len(set(ranks)) == len(set(sizes)) == 1 and ranks[0] in RANKS and sizes[0] % CHANNELS == 0
    return alike and takes(x) and (scale is None or multiplies_fp8(x))


class Weight(NamedTuple):
    """Of a linear: weight (out,in), where it is fp8 its scale () and maybe the weight as (in,out) in memory; bias; and
    where there is room beneath the weight (`stacked`), both (longer,in). Linears that are one have a scale of each
    output (out,), one for all of a linear."""

    weight: Tensor
    scale: Tensor | None
    weight_t: Tensor | None
    bias: Tensor | None
    room: Tensor | None


def adapted_product(x: Tensor, given: Weight, u: Tensor, up: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """x (...,in) -> (...,out): x (scale weight)^T + bias + u up^T, the last of `layers` linears apart from the others.

    u (...,rank of all), up (out, rank of all) with a block for each linear."""
    found: tuple[Tensor, Tensor] = _AdaptedProduct.apply(x, *given, u, up, layers)
    return found


class _AdaptedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, turned: Tensor | None, bias: Tensor | None,
        _room: Tensor | None, u: Tensor, up: Tensor, layers: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.layers = layers
        ctx.save_for_backward(weight, scale, turned, u, up)
        product, own = opened(x.flatten(0, -2), weight.t(), scale is not None)
        first, last = add_low_rank(product, own, scale, bias, u.flatten(0, -2), up, layers)
        return first.unflatten(0, x.shape[:-1]), last.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, of_first: Tensor, of_last: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, turned, u, up = ctx.saved_tensors
        grad = torch.cat([of_first, of_last], -1)
        fp8 = scale is not None
        back = rounded_product(grad, by_column(weight, turned), scale, None) if fp8 else grad @ weight
        of_u, of_up = low_rank_back(grad, u, up, ctx.layers)
        return back, None, None, None, None, None, of_u, of_up, None


def opened(rows: Tensor, weight: Tensor, fp8: bool) -> tuple[Tensor, Tensor | None]:
    """Rows (N,k) times weight (k,n); in fp8 without scales, and with the rows' own (N,)."""
    if not fp8:
        return rows @ weight, None
    values, own = round_rows(rows)
    return raw_product(values, weight), own.flatten()


def factored(rows: Tensor, weight: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rows (N,k) times weight (k,n), and in fp8 what each row has then still to be multiplied with (N,), the weight's
    scale () included."""
    product, own = opened(rows, weight, scale is not None)
    return product, None if scale is None or own is None else own * scale


def low_rank_back(grad: Tensor, u: Tensor, up: Tensor, layers: int = 1) -> tuple[Tensor, Tensor]:
    """Gradients of u (...,r) and up (out,r), which has a block for each layer, given that of u up^T (...,out)."""
    shares, parts = halves_back(grad.flatten(0, -2), u.flatten(0, -2), up, layers)
    blocks = parts.sum(0).to(up.dtype)
    return shares.sum(0).to(u.dtype).view(u.shape), blocks if layers == 1 else torch.block_diag(*blocks.chunk(layers))


@torch.library.custom_op("iclora_train::halves_back", mutates_args=())
def halves_back(grad: Tensor, u: Tensor, up: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """grad (N,F) times up (F, r layers), and the blocks (F,r) of grad^T u (N, r layers): grad is read once for both.

    Both in fp32 and in parts, to be summed over the first dimension.
    """
    import triton  # noqa: PLC0415 (not where there is no GPU)

    from iclora_train.ltx2.kernels.lora_product_triton import both  # noqa: PLC0415

    (n, width), rank, (tile, warps, stages) = grad.shape, up.shape[1] // layers, BOTH
    each, shares, parts = width // layers, *_shared(u, up, layers)
    channels = each // len(shares)
    both[(width // channels, PARTS)](
        grad, u, up, shares, parts, n, triton.cdiv(n, tile * PARTS), grad.stride(0), u.stride(0),
        width, each, rank, layers, tile, channels, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return shares, parts


@halves_back.register_fake
def _(grad: Tensor, u: Tensor, up: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    return _shared(u, up, layers)


def _shared(u: Tensor, up: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Room for what the programs of `halves_back` find: for each that has a part of a layer's channels, for each that
    has a part of the rows."""
    (width, ranks), channels = up.shape, CHANNELS
    while width // layers % (2 * channels) == 0 and 2 * channels * ranks // layers <= CHANNELS_BY_RANK:
        channels *= 2
    shares = u.new_empty(width // layers // channels, len(u), ranks, dtype=torch.float32)
    return shares, u.new_empty(PARTS, width, ranks // layers, dtype=torch.float32)


@torch.library.custom_op("iclora_train::add_low_rank", mutates_args=())
def add_low_rank(
    product: Tensor,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    bias: Tensor | None,
    u: Tensor,
    up: Tensor,
    layers: int,
) -> tuple[Tensor, Tensor]:
    """product (N,F) row_scale (N,) column_scale (F,) + bias (F,) + u (N,r layers) up^T; up (F, r layers) in blocks.

    The scales are fp32, there or not there together. The columns of the last of the layers are a tensor of their own.
    """
    import triton  # noqa: PLC0415 (not where there is no GPU)

    from iclora_train.ltx2.kernels.lora_product_triton import added  # noqa: PLC0415

    n, width = product.shape
    first, last = _parted(product, layers)
    added[(triton.cdiv(n, ROWS), width // CHANNELS)](
        product, row_scale, column_scale, bias, u, up, first, last, n, u.stride(0),
        width, width // layers, u.shape[1] // layers, layers, ROWS, CHANNELS, row_scale is not None, bias is not None,
        num_warps=WARPS,
    )  # fmt: skip
    return first, last


@add_low_rank.register_fake
def _(product: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _parted(product, rest[-1])


def thin_back(
    grad: Tensor, of_gate: Tensor, rows: Tensor, u: Tensor, up: Tensor, layers: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """What comes back through rows (N,k) -> u and a gate (N,r + heads), by `down` (r + heads,k), and u up^T (N,out):
    that of u and the gate side by side, and the gradients of down and up; given those of u up^T and of the gate."""
    of_u, of_up = low_rank_back(grad, u, up, layers)
    t = torch.cat([of_u, of_gate], -1)
    return t, t.t() @ rows, of_up


def multiplied(values: Tensor, factor: Tensor | None, weight: Tensor) -> Tensor:
    """values (N,k) times weight (k,n), both in fp8 where there is a factor of each row (N,), without those."""
    return values @ weight if factor is None else raw_product(values, weight)


def back_through(
    values: Tensor, factor: Tensor | None, weight: Tensor, t: Tensor, down: Tensor, room: Tensor | None
) -> Tensor:
    """Gradient of what a frozen linear and a `down` (r,in) read: values (N,out) times its weight (out,in), both in fp8
    where there is a factor of each row (N,), and t (N,r) down. With room beneath the weight (`stacked`) for as many
    rows as there are columns spare in values (N,longer), one product does it."""
    if room is not None and factor is None and values.shape[1] == len(room):
        return stacked_product(values, room, t, down)
    return add_thin(multiplied(values, factor, weight), factor, None, t, down)


@torch.library.custom_op("iclora_train::add_thin", mutates_args=())
def add_thin(product: Tensor, factor: Tensor | None, bias: Tensor | None, u: Tensor, up: Tensor) -> Tensor:
    """product (N,F) factor (N,) + bias (F,) + u (N,r) up (r,F), the factor fp32."""
    import triton  # noqa: PLC0415

    from iclora_train.ltx2.kernels.lora_product_triton import thinly  # noqa: PLC0415

    (n, width), (rank, _), (tile, warps) = product.shape, up.shape, THIN
    found = torch.empty_like(product)
    thinly[(triton.cdiv(n, tile), width // CHANNELS)](
        product, factor, bias, u, up, found, n, u.stride(0), *up.stride(),
        width, rank, max(16, triton.next_power_of_2(rank)), tile, CHANNELS, factor is not None, bias is not None,
        num_warps=warps,
    )  # fmt: skip
    return found


@add_thin.register_fake
def _(product: Tensor, factor: Tensor | None, bias: Tensor | None, u: Tensor, up: Tensor) -> Tensor:
    return torch.empty_like(product)


def _parted(product: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    n, width = product.shape
    each = width // layers
    return product.new_empty(n, width - each), product.new_empty(n, each)
