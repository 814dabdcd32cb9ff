"""Linears with LoRA, fused: the low-rank term u B^T is added inside a kernel and never written to memory.

u = x A^T has few channels per token, but u B^T is as large as the output. Forward adds u B^T to the output of the
frozen matmul in that matmul's epilogue kernel. Backward reads dY once for both dB and dU = dY B, and adds dU A to the
input gradient dX of the frozen matmul. In fp8 the same kernels apply the scales.

The output of the last fused linear (v) is a separate tensor: attention saves v unchanged, while q and k are normalised
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.dispatch import LORA_RANKS, supports_triton
from iclora_train.ltx2.kernels.fp8_linear import (
    column_major,
    quantize_rows,
    quantized_matmul,
    supports_fp8_matmul,
    unscaled_matmul,
)
from iclora_train.ltx2.kernels.stacked_weight import stacked_product

ROWS, CHANNELS, WARPS = 64, 128, 8  # a tile's rows and channels, and a program's warps
TERM_TILE = (64, 8)  # of `add_lora_term`: rows, warps
B_BACKWARD_TILE = (64, 8, 3)  # of `lora_b_backward_parts`: rows, warps, pipeline stages
MAX_CHANNELS_TIMES_RANK = 8192  # fp32 numbers that a program of `lora_b_backward_parts` accumulates
PARTS = 16  # groups of rows; each has its own partial sum of dB


class Operands(NamedTuple):
    """The tensors of a frozen linear, or of several fused ones.

    weight (out,in). If it is in fp8: its scale, () or for fused linears one per output (out,), and weight_t (in,out) if
    the transposed copy is cached. stacked: the buffer with spare rows that holds the weight (`stacked_weight`).
    """

    weight: Tensor
    scale: Tensor | None
    weight_t: Tensor | None
    bias: Tensor | None
    stacked: Tensor | None


def supports_lora_kernels(x: Tensor, scale: Tensor | None, ranks: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether the kernels of this file take x: bf16 on a GPU, linears of one size, all with LoRA of one rank."""
    uniform = len(set(ranks)) == len(set(sizes)) == 1 and ranks[0] in LORA_RANKS and sizes[0] % CHANNELS == 0
    return uniform and supports_triton(x) and (scale is None or supports_fp8_matmul(x))


def lora_product(x: Tensor, operands: Operands, u: Tensor, lora_b: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """x (...,in) -> x (scale weight)^T + bias + u lora_b^T, for `layers` fused linears.

    u (..., r layers), lora_b (out, r layers) block-diagonal. Returns two tensors: the outputs of all linears but the
    last, side by side, and the output of the last linear.
    """
    outputs: tuple[Tensor, Tensor] = _LoraProduct.apply(x, *operands, u, lora_b, layers)
    return outputs


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, weight_t: Tensor | None, bias: Tensor | None,
        _stacked: Tensor | None, u: Tensor, lora_b: Tensor, layers: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.layers = layers
        ctx.save_for_backward(weight, scale, weight_t, u, lora_b)
        product, row_scale = base_matmul(x.flatten(0, -2), weight.t(), scale is not None)
        first, last = add_low_rank(product, row_scale, scale, bias, u.flatten(0, -2), lora_b, layers)
        return first.unflatten(0, x.shape[:-1]), last.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad_first: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, weight_t, u, lora_b = ctx.saved_tensors
        grad = torch.cat([grad_first, grad_last], -1)
        fp8 = scale is not None
        grad_x = quantized_matmul(grad, column_major(weight, weight_t), scale, None) if fp8 else grad @ weight
        grad_u, grad_b = lora_b_backward(grad, u, lora_b, ctx.layers)
        return grad_x, None, None, None, None, None, grad_u, grad_b, None


def base_matmul(rows: Tensor, weight: Tensor, fp8: bool) -> tuple[Tensor, Tensor | None]:
    """rows (N,k) @ weight (k,n). In fp8 no scale is applied, and the scales of the quantized rows (N,) are returned."""
    if not fp8:
        return rows @ weight, None
    values, row_scale = quantize_rows(rows)
    return unscaled_matmul(values, weight), row_scale.flatten()


def base_matmul_with_scale(rows: Tensor, weight: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`base_matmul` for a weight with one scale (): in fp8 the returned scales (N,) include it."""
    product, row_scale = base_matmul(rows, weight, scale is not None)
    return product, None if scale is None or row_scale is None else row_scale * scale


def matmul(values: Tensor, row_scale: Tensor | None, weight: Tensor) -> Tensor:
    """values (N,k) @ weight (k,n). Both are in fp8 if row_scale (N,) is not None; it is not applied."""
    return values @ weight if row_scale is None else unscaled_matmul(values, weight)


def lora_b_backward(grad: Tensor, u: Tensor, lora_b: Tensor, layers: int = 1) -> tuple[Tensor, Tensor]:
    """Backward of u lora_b^T (...,out): gradients of u (..., r layers) and block-diagonal lora_b (out, r layers)."""
    grad_u, grad_b = lora_b_backward_parts(grad.flatten(0, -2), u.flatten(0, -2), lora_b, layers)
    blocks = grad_b.sum(0).to(lora_b.dtype)
    return grad_u.sum(0).to(u.dtype).view(u.shape), blocks if layers == 1 else torch.block_diag(*blocks.chunk(layers))


@torch.library.custom_op("iclora_train::halves_back", mutates_args=())
def lora_b_backward_parts(grad: Tensor, u: Tensor, lora_b: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """grad (N,F) @ lora_b (F, r layers), and the blocks (F,r) of grad^T @ u (N, r layers); grad is read once for both.

    Both are fp32 partial sums, to be summed over the first dimension.
    """
    import triton  # noqa: PLC0415 (absent without a GPU)

    from iclora_train.ltx2.kernels.lora_product_triton import b_backward  # noqa: PLC0415

    (n, width), rank, (tile, warps, stages) = grad.shape, lora_b.shape[1] // layers, B_BACKWARD_TILE
    layer_width, grad_u, grad_b = width // layers, *_empty_partials(u, lora_b, layers)
    channels = layer_width // len(grad_u)
    b_backward[(width // channels, PARTS)](
        grad, u, lora_b, grad_u, grad_b, n, triton.cdiv(n, tile * PARTS), grad.stride(0), u.stride(0),
        width, layer_width, rank, layers, tile, channels, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return grad_u, grad_b


@lora_b_backward_parts.register_fake
def _(grad: Tensor, u: Tensor, lora_b: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    return _empty_partials(u, lora_b, layers)


def _empty_partials(u: Tensor, lora_b: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Outputs of `lora_b_backward_parts`: grad_u, one part per group of a layer's channels; grad_b, one part per group
    of rows."""
    (width, ranks), channels = lora_b.shape, CHANNELS
    while width // layers % (2 * channels) == 0 and 2 * channels * ranks // layers <= MAX_CHANNELS_TIMES_RANK:
        channels *= 2
    grad_u = u.new_empty(width // layers // channels, len(u), ranks, dtype=torch.float32)
    return grad_u, u.new_empty(PARTS, width, ranks // layers, dtype=torch.float32)


@torch.library.custom_op("iclora_train::add_low_rank", mutates_args=())
def add_low_rank(
    product: Tensor,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    bias: Tensor | None,
    u: Tensor,
    lora_b: Tensor,
    layers: int,
) -> tuple[Tensor, Tensor]:
    """product (N,F) row_scale (N,) column_scale (F,) + bias (F,) + u (N, r layers) @ lora_b^T.

    lora_b (F, r layers) is block-diagonal, with one block per fused linear. The scales are fp32; both are
    given or neither. Returns two tensors: the columns of all layers but the last, and the columns of the last layer.
    """
    import triton  # noqa: PLC0415 (absent without a GPU)

    from iclora_train.ltx2.kernels.lora_product_triton import add_lora  # noqa: PLC0415

    n, width = product.shape
    first, last = _empty_outputs(product, layers)
    add_lora[(triton.cdiv(n, ROWS), width // CHANNELS)](
        product, row_scale, column_scale, bias, u, lora_b, first, last, n, u.stride(0),
        width, width // layers, u.shape[1] // layers, layers, ROWS, CHANNELS, row_scale is not None, bias is not None,
        num_warps=WARPS,
    )  # fmt: skip
    return first, last


@add_low_rank.register_fake
def _(product: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(product, rest[-1])


def _empty_outputs(product: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    n, width = product.shape
    layer_width = width // layers
    return product.new_empty(n, width - layer_width), product.new_empty(n, layer_width)


def lora_backward(
    grad: Tensor, grad_gate: Tensor, x: Tensor, u: Tensor, lora_b: Tensor, layers: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of [u, gate] = x down^T and y = u lora_b^T, given the gradients of y (N,out) and of gate (N,heads).

    x (N,k), down (r + heads,k). Returns the gradients of [u, gate] (N, r + heads), of down and of lora_b.
    """
    grad_u, grad_b = lora_b_backward(grad, u, lora_b, layers)
    grad_down_out = torch.cat([grad_u, grad_gate], -1)
    return grad_down_out, grad_down_out.t() @ x, grad_b


def input_grad(
    values: Tensor, row_scale: Tensor | None, weight: Tensor, grad_u: Tensor, lora_a: Tensor, stacked: Tensor | None
) -> Tensor:
    """The gradient of x (N,in), the input of a frozen linear and of LoRA's A: values @ weight * row_scale + grad_u @ A.

    values (N,out) is the gradient of the linear's output, weight (out,in); both are in fp8 if row_scale (N,) is not
    None. grad_u (N,r), lora_a (r,in). If values (N,longer) has spare columns for the spare rows of `stacked`, one
    matmul computes both terms (`stacked_weight`).
    """
    if stacked is not None and row_scale is None and values.shape[1] == len(stacked):
        return stacked_product(values, stacked, grad_u, lora_a)
    return add_lora_term(matmul(values, row_scale, weight), row_scale, None, grad_u, lora_a)


@torch.library.custom_op("iclora_train::add_thin", mutates_args=())
def add_lora_term(product: Tensor, row_scale: Tensor | None, bias: Tensor | None, u: Tensor, factor: Tensor) -> Tensor:
    """product (N,F) row_scale (N,) + bias (F,) + u (N,r) @ factor (r,F); row_scale is fp32."""
    import triton  # noqa: PLC0415

    from iclora_train.ltx2.kernels.lora_product_triton import add_term  # noqa: PLC0415

    (n, width), (rank, _), (tile, warps) = product.shape, factor.shape, TERM_TILE
    out = torch.empty_like(product)
    add_term[(triton.cdiv(n, tile), width // CHANNELS)](
        product, row_scale, bias, u, factor, out, n, u.stride(0), *factor.stride(),
        width, rank, max(16, triton.next_power_of_2(rank)), tile, CHANNELS, row_scale is not None, bias is not None,
        num_warps=warps,
    )  # fmt: skip
    return out


@add_lora_term.register_fake
def _(product: Tensor, row_scale: Tensor | None, bias: Tensor | None, u: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(product)
