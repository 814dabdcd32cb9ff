"""The feed-forward's kernels as operators of PyTorch, which a compiler takes as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.fp8_linear import E4M3, LARGEST, LEAST


@dataclass(frozen=True)
class Tile:
    """Rows and channels that a program has at hand at a time, its warps, and how many programs share a row, or, for
    sums over rows, a channel."""

    rows: int
    channels: int
    warps: int
    parts: int

    def of(self, width: int) -> int:
        """Channels of a tile where there are `width` in all."""
        return min(self.channels, width // self.parts)


# Rows are fewer than 64, from where on products are computed otherwise (wgmma): with what is loaded ahead, code for
# that touched memory that was not its own (Triton 3.6, for some numbers of loops only).
UP, UP_FP8, BACK = Tile(16, 128, 2, 16), Tile(32, 64, 2, 16), Tile(16, 128, 4, 8)
ROUND, SUMS = Tile(1, 4096, 4, 4), Tile(64, 128, 8, 2)
GATHERED = 32  # rows


def _scales_like(rows: Tensor, fp8: bool) -> Tensor:
    """Room for a scale of each row of a tensor, none without fp8."""
    return rows.new_empty(len(rows) if fp8 else 0, dtype=torch.float32)


def _gathered(most: Tensor, shares: Tensor, like: Tensor, fp8: bool) -> tuple[Tensor, Tensor]:
    """The scales of rows (N,), and the product of rows with an A or a B as `like` (N,R)."""
    import triton  # noqa: PLC0415 (not where there is no GPU)

    from iclora_train.ltx2.kernels import feed_forward_triton as kernels  # noqa: PLC0415

    parts, n, rank = shares.shape
    scales, v = _scales_like(like, fp8), torch.empty_like(like)
    kernels.gather[(triton.cdiv(n, GATHERED),)](most, shares, scales, v, n, rank, GATHERED, parts, fp8, LARGEST, LEAST)
    return scales, v


def _parts_of(product: Tensor, rank: int, parts: int) -> tuple[Tensor, Tensor]:
    """Where programs that share rows leave the largest they saw, and their share of a product with an A or a B."""
    n, device = len(product), product.device
    most = torch.empty(parts, n, dtype=torch.float32, device=device)
    return most, torch.empty(parts, n, rank, dtype=torch.float32, device=device)


@torch.library.custom_op("iclora_train::gelu_up", mutates_args=())
def gelu_up(
    product: Tensor, scale: Tensor | None, u: Tensor, up: Tensor, bias: Tensor | None, down: Tensor, fp8: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h = scale product + u up^T + bias (N,F); GELU of it, in fp8 with a scale per row (N,) if `fp8`; and its down^T.

    product (N,F), scale (N,) if `fp8`, u (N,R), up (F,R), bias (F,), down (R,F).
    """
    import triton  # noqa: PLC0415 (not where there is no GPU)

    from iclora_train.ltx2.kernels import feed_forward_triton as kernels  # noqa: PLC0415

    n, width = product.shape
    hidden = torch.empty_like(product)
    opened = torch.empty_like(product, dtype=E4M3 if fp8 else None)
    tile = UP_FP8 if fp8 else UP
    most, shares = _parts_of(product, u.shape[1], tile.parts)
    kernels.up[(triton.cdiv(n, tile.rows), tile.parts)](
        product, scale, u, up, bias, down, hidden, opened, most, shares, n,
        width, u.shape[1], tile.rows, tile.of(width), tile.parts, fp8, bias is not None, num_warps=tile.warps,
    )  # fmt: skip
    scales, v = _gathered(most, shares, u, fp8)
    if fp8:
        kernels.round_gelu[(triton.cdiv(n, ROUND.rows), ROUND.parts)](
            hidden, scales, opened, n, width, ROUND.rows, ROUND.of(width), ROUND.parts, num_warps=ROUND.warps
        )
    return hidden, opened, scales, v


@gelu_up.register_fake
def _(
    product: Tensor, scale: Tensor | None, u: Tensor, up: Tensor, bias: Tensor | None, down: Tensor, fp8: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    opened = torch.empty_like(product, dtype=E4M3 if fp8 else None)
    return torch.empty_like(product), opened, _scales_like(product, fp8), torch.empty_like(u)


@torch.library.custom_op("iclora_train::gelu_back", mutates_args=())
def gelu_back(
    product: Tensor, scale: Tensor | None, t: Tensor, down: Tensor, hidden: Tensor, up: Tensor, u: Tensor, fp8: bool,
    spare: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """d = (scale product + t down) gelu'(hidden) (N,F + spare), beside it room for more, or in fp8 (N,F) with a scale
    per row (N,) if `fp8`; d up (N,R); and the gradients of the adapters' inner halves, t^T gelu(hidden) (parts,R,F) and
    d^T u (parts,F,R), both fp32 and in parts, to be summed over the first dimension."""
    import triton  # noqa: PLC0415 (not where there is no GPU)

    from iclora_train.ltx2.kernels import feed_forward_triton as kernels  # noqa: PLC0415

    (n, width), rank = product.shape, t.shape[1]
    grad = product.new_empty(n, width + spare)
    rounded = torch.empty_like(product, dtype=E4M3) if fp8 else grad
    most, shares = _parts_of(product, rank, BACK.parts)
    kernels.back[(triton.cdiv(n, BACK.rows), BACK.parts)](
        product, scale, t, down, hidden, up, grad, most, shares, n,
        spare, width, rank, BACK.rows, BACK.of(width), BACK.parts, fp8, num_warps=BACK.warps,
    )  # fmt: skip
    scales, v = _gathered(most, shares, t, fp8)
    of_down, of_up = _sums_like(t, width)
    kernels.sums[(width // SUMS.channels, SUMS.parts)](
        hidden, grad, t, u, scales, rounded, of_down, of_up, n, triton.cdiv(n, SUMS.rows * SUMS.parts),
        spare, width, rank, SUMS.rows, SUMS.channels, fp8, num_warps=SUMS.warps,
    )  # fmt: skip
    return rounded, scales, v, of_down, of_up


@gelu_back.register_fake
def _(
    product: Tensor, scale: Tensor | None, t: Tensor, down: Tensor, hidden: Tensor, up: Tensor, u: Tensor, fp8: bool,
    spare: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n, width = product.shape
    rounded = torch.empty_like(product, dtype=E4M3) if fp8 else product.new_empty(n, width + spare)
    return rounded, _scales_like(product, fp8), torch.empty_like(t), *_sums_like(t, width)


def _sums_like(t: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Room for sums over rows, of programs that each have a part of them."""
    shapes = (SUMS.parts, t.shape[1], width), (SUMS.parts, width, t.shape[1])
    return t.new_empty(shapes[0], dtype=torch.float32), t.new_empty(shapes[1], dtype=torch.float32)
