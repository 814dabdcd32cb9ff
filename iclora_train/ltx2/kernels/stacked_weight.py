"""The stacked weight [W; A]: a frozen weight with LoRA's A below it, so that one matmul gives the whole input gradient.

With dY the gradient of the output, and dU = dY B the gradient of the LoRA activation u = A x, the gradient of x is
dY W + dU A = [dY, dU] @ [W; A]. A second matmul for dU A would read and write the input gradient again. The weight is
therefore stored with spare rows, and the gradient with spare columns. This works in bf16 only: in fp8, dU would need
other row scales than dY. If a head gate reads the same x, its weight is stacked below A and treated like A.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ALIGNMENT = 8  # bf16 numbers in 16 bytes, the alignment of rows
ROWS, CHANNELS, WARPS = 64, 128, 8  # a tile's rows and channels, and a program's warps


def padded(rows: int) -> int:
    """Spare rows of a weight, or spare columns of a gradient, for `rows` rows of A: rounded up to the alignment."""
    return -(-rows // ALIGNMENT) * ALIGNMENT


def with_spare_rows(weight: Tensor, rows: int) -> Tensor:
    """A copy of a weight (out,in) with spare, uninitialised rows below it."""
    stacked = weight.new_empty(len(weight) + padded(rows), weight.shape[1])
    stacked[: len(weight)] = weight
    return stacked


def reserve_rows(linear: nn.Linear, rows: int) -> None:
    """Move a linear's weight into a buffer `stacked` with spare rows below it, unless the linear has this buffer."""
    if not hasattr(linear, "stacked"):
        stacked = with_spare_rows(linear.weight.detach(), rows)
        linear.register_buffer("stacked", stacked, persistent=False)
        linear.weight = nn.Parameter(stacked[: linear.out_features], requires_grad=False)


def weight_of(stacked: Tensor | None, weight: Tensor) -> Tensor:
    """The weight (out,in), as a view of `stacked` if that exists.

    torch.compile plans memory by the graph's inputs: with both as inputs it would count the weight twice.
    """
    return weight if stacked is None else stacked[: len(weight)]


def spare_columns(stacked: Tensor | None, weight: Tensor, rows: int) -> int:
    """Spare columns that a gradient (n,out) needs for `stacked_product` with `rows` rows of A.

    0 if the number of spare rows of `stacked` does not match.
    """
    spare = 0 if stacked is None else len(stacked) - len(weight)
    return spare if spare == padded(rows) else 0


@torch.library.custom_op("iclora_train::stacked_product", mutates_args=())
def stacked_product(grad: Tensor, stacked: Tensor, grad_u: Tensor, lora_a: Tensor) -> Tensor:
    """grad[:, :out] @ weight + grad_u @ lora_a, for grad_u (n,R), lora_a (R,in), and a weight (out,in) that is the
    first rows of `stacked`.

    grad_u is written into the spare columns of `grad`, lora_a into the spare rows of `stacked`, zeros into the rest.
    Nothing else reads these places. The operator does not declare the mutation, because torch.compile would then copy
    both tensors.
    """
    import triton  # noqa: PLC0415 (absent without a GPU)

    from iclora_train.ltx2.kernels.lora_product_triton import fill_spare  # noqa: PLC0415

    (n, rank), (length, width) = grad_u.shape, stacked.shape
    tiles = triton.cdiv(n, ROWS)
    fill_spare[(tiles + triton.cdiv(width, CHANNELS),)](
        grad_u, lora_a, grad, stacked, n, tiles, grad_u.stride(0), lora_a.stride(0),
        length, width, rank, padded(rank), max(16, triton.next_power_of_2(rank)), ROWS, CHANNELS,
        num_warps=WARPS,
    )  # fmt: skip
    return grad @ stacked


@stacked_product.register_fake
def _(grad: Tensor, stacked: Tensor, grad_u: Tensor, lora_a: Tensor) -> Tensor:
    return grad.new_empty(len(grad), stacked.shape[1])
