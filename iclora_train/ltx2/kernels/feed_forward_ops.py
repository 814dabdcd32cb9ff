"""PyTorch operators around the kernels of `feed_forward_triton`; torch.compile treats each as one opaque call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.fp8_linear import E4M3, FP8_MAX, MIN_SCALE


@dataclass(frozen=True)
class Tile:
    """Rows and channels that a program computes at a time, and its warps.

    parts: number of programs that share a row's channels; in `factor_grads`, that share a channel's rows.
    """

    rows: int
    channels: int
    warps: int
    parts: int

    def channels_for(self, width: int) -> int:
        """The tile's channels for a tensor with `width` channels."""
        return min(self.channels, width // self.parts)


# Kernels that load the next tile ahead have fewer than 64 rows. From 64 on Triton compiles `dot` to wgmma instructions,
# and that code accessed memory out of bounds (Triton 3.6, for some loop counts only).
UP, UP_FP8, BACK = Tile(16, 128, 2, 16), Tile(32, 64, 2, 16), Tile(16, 128, 4, 8)
ROUND, SUMS = Tile(1, 4096, 4, 4), Tile(64, 128, 8, 2)
REDUCE_ROWS = 32


def _empty_scales(rows: Tensor, fp8: bool) -> Tensor:
    """One scale per row, or an empty tensor without fp8."""
    return rows.new_empty(len(rows) if fp8 else 0, dtype=torch.float32)


def _reduce(absmax: Tensor, partials: Tensor, like: Tensor, fp8: bool) -> tuple[Tensor, Tensor]:
    """Combine the parts of each row: its fp8 scale (N,), and the sum of its partials (N,R) in `like`'s dtype."""
    import triton  # noqa: PLC0415 (absent without a GPU)

    from iclora_train.ltx2.kernels import feed_forward_triton as kernels  # noqa: PLC0415

    parts, n, rank = partials.shape
    scales, total = _empty_scales(like, fp8), torch.empty_like(like)
    kernels.reduce_parts[(triton.cdiv(n, REDUCE_ROWS),)](
        absmax, partials, scales, total, n, rank, REDUCE_ROWS, parts, fp8, FP8_MAX, MIN_SCALE
    )
    return scales, total


def _empty_parts(product: Tensor, rank: int, parts: int) -> tuple[Tensor, Tensor]:
    """For each of the programs that share a row: the absolute maximum (parts,N), and the partial matmul (parts,N,R)."""
    n, device = len(product), product.device
    absmax = torch.empty(parts, n, dtype=torch.float32, device=device)
    return absmax, torch.empty(parts, n, rank, dtype=torch.float32, device=device)


@torch.library.custom_op("iclora_train::gelu_up", mutates_args=())
def gelu_up(
    product: Tensor, scale: Tensor | None, u: Tensor, lora_b: Tensor, bias: Tensor | None, lora_a: Tensor, fp8: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All operations between the first linear's matmul and the second's.

    Takes product (N,F), scale (N,) if `fp8`, u (N,R), lora_b (F,R) and bias (F,) of the first linear, and lora_a (R,F)
    of the second.
    Returns hidden = scale product + u lora_b^T + bias (N,F); gelu(hidden) (N,F), in fp8 if `fp8`; its scales per row
    (N,), empty without fp8; and gelu(hidden) @ lora_a^T (N,R), the second linear's LoRA activations.
    """
    import triton  # noqa: PLC0415 (absent without a GPU)

    from iclora_train.ltx2.kernels import feed_forward_triton as kernels  # noqa: PLC0415

    n, width = product.shape
    hidden = torch.empty_like(product)
    activated = torch.empty_like(product, dtype=E4M3 if fp8 else None)
    tile = UP_FP8 if fp8 else UP
    absmax, partials = _empty_parts(product, u.shape[1], tile.parts)
    kernels.gelu_forward[(triton.cdiv(n, tile.rows), tile.parts)](
        product, scale, u, lora_b, bias, lora_a, hidden, activated, absmax, partials, n,
        width, u.shape[1], tile.rows, tile.channels_for(width), tile.parts, fp8, bias is not None, num_warps=tile.warps,
    )  # fmt: skip
    scales, next_u = _reduce(absmax, partials, u, fp8)
    if fp8:
        kernels.round_gelu[(triton.cdiv(n, ROUND.rows), ROUND.parts)](
            hidden, scales, activated, n, width, ROUND.rows, ROUND.channels_for(width), ROUND.parts,
            num_warps=ROUND.warps,
        )  # fmt: skip
    return hidden, activated, scales, next_u


@gelu_up.register_fake
def _(
    product: Tensor, scale: Tensor | None, u: Tensor, lora_b: Tensor, bias: Tensor | None, lora_a: Tensor, fp8: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    activated = torch.empty_like(product, dtype=E4M3 if fp8 else None)
    return torch.empty_like(product), activated, _empty_scales(product, fp8), torch.empty_like(u)


@torch.library.custom_op("iclora_train::gelu_back", mutates_args=())
def gelu_back(
    product: Tensor, scale: Tensor | None, grad_u: Tensor, lora_a: Tensor, hidden: Tensor, lora_b: Tensor, u: Tensor,
    fp8: bool, spare: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of `gelu_up`.

    The gradient of gelu(hidden) is scale product + grad_u lora_a, from the second linear's backward matmul: product
    (N,F), scale (N,) if `fp8`, grad_u (N,R), lora_a (R,F). lora_b (F,R) and u (N,R) belong to the first linear.
    Returns grad = (scale product + grad_u lora_a) gelu'(hidden), as (N, F + spare) with the last columns uninitialised,
    or in fp8 (N,F); its scales per row (N,), empty without fp8; grad @ lora_b (N,R); and the gradients of lora_a
    (parts,R,F) and of lora_b (parts,F,R) as fp32 partial sums.
    """
    import triton  # noqa: PLC0415 (absent without a GPU)

    from iclora_train.ltx2.kernels import feed_forward_triton as kernels  # noqa: PLC0415

    (n, width), rank = product.shape, grad_u.shape[1]
    grad = product.new_empty(n, width + spare)
    values = torch.empty_like(product, dtype=E4M3) if fp8 else grad
    absmax, partials = _empty_parts(product, rank, BACK.parts)
    kernels.gelu_backward[(triton.cdiv(n, BACK.rows), BACK.parts)](
        product, scale, grad_u, lora_a, hidden, lora_b, grad, absmax, partials, n,
        spare, width, rank, BACK.rows, BACK.channels_for(width), BACK.parts, fp8, num_warps=BACK.warps,
    )  # fmt: skip
    scales, next_grad_u = _reduce(absmax, partials, grad_u, fp8)
    grad_a, grad_b = _empty_factor_grads(grad_u, width)
    kernels.factor_grads[(width // SUMS.channels, SUMS.parts)](
        hidden, grad, grad_u, u, scales, values, grad_a, grad_b, n, triton.cdiv(n, SUMS.rows * SUMS.parts),
        spare, width, rank, SUMS.rows, SUMS.channels, fp8, num_warps=SUMS.warps,
    )  # fmt: skip
    return values, scales, next_grad_u, grad_a, grad_b


@gelu_back.register_fake
def _(
    product: Tensor, scale: Tensor | None, grad_u: Tensor, lora_a: Tensor, hidden: Tensor, lora_b: Tensor, u: Tensor,
    fp8: bool, spare: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n, width = product.shape
    values = torch.empty_like(product, dtype=E4M3) if fp8 else product.new_empty(n, width + spare)
    grads = _empty_factor_grads(grad_u, width)
    return values, _empty_scales(product, fp8), torch.empty_like(grad_u), *grads


def _empty_factor_grads(grad_u: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Gradients of lora_a (parts,R,F) and lora_b (parts,F,R): one part per group of rows."""
    shapes = (SUMS.parts, grad_u.shape[1], width), (SUMS.parts, width, grad_u.shape[1])
    return grad_u.new_empty(shapes[0], dtype=torch.float32), grad_u.new_empty(shapes[1], dtype=torch.float32)
