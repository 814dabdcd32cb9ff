"""A frozen weight with room for an adapter's A beneath it: what goes back through both is one product.

A gradient of what a linear gave, with what goes back through B beside it, times the weight with A beneath it is the
gradient of what the linear was given. So nothing has to be read again to add the adapter's share, as it would behind a
product of its own. Only in bf16: in fp8 a row's scale is not its adapter's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ALIGNED = 8  # of a row of bf16, in numbers: 16 bytes
ROWS, CHANNELS, WARPS = 64, 128, 8  # of a program's tile


def room_for(rows: int) -> int:
    """Rows beneath a weight, or columns beside a gradient, for so many."""
    return -(-rows // ALIGNED) * ALIGNED


def stack(weight: Tensor, rows: int) -> Tensor:
    """A copy of a weight (out,in) with room for so many rows beneath it."""
    room = weight.new_empty(len(weight) + room_for(rows), weight.shape[1])
    room[: len(weight)] = weight
    return room


def make_room(linear: nn.Linear, rows: int) -> None:
    """From now on a linear's weight has room beneath it for so many rows."""
    if not hasattr(linear, "room"):
        room = stack(linear.weight.detach(), rows)
        linear.register_buffer("room", room, persistent=False)
        linear.weight = nn.Parameter(room[: linear.out_features], requires_grad=False)


def first_rows(room: Tensor | None, weight: Tensor) -> Tensor:
    """A weight (out,in), as a part of `room` if that is there: a compiler plans memory by what it is given, and would
    count both."""
    return weight if room is None else room[: len(weight)]


def spare_columns(room: Tensor | None, weight: Tensor, rows: int) -> int:
    """Columns that a gradient (n,out) needs beside it for `stacked_product` with so many rows; 0 where there is no room
    for them."""
    found = 0 if room is None else len(room) - len(weight)
    return found if found == room_for(rows) else 0


@torch.library.custom_op("iclora_train::stacked_product", mutates_args=())
def stacked_product(wide: Tensor, room: Tensor, t: Tensor, down: Tensor) -> Tensor:
    """wide[:, :out] weight + t down, for t (n,R), down (R,in), and a weight (out,in) that is the first rows of `room`.

    Beside the first columns of `wide` and beneath the weight is nothing that anyone else reads: t and down are written
    there, and zeros beside them. So neither counts as changed: for a compiler that would mean to copy them.
    """
    import triton  # noqa: PLC0415 (not where there is no GPU)

    from iclora_train.ltx2.kernels.lora_product_triton import laid  # noqa: PLC0415

    (n, rank), (length, width) = t.shape, room.shape
    tiles = triton.cdiv(n, ROWS)
    laid[(tiles + triton.cdiv(width, CHANNELS),)](
        t, down, wide, room, n, tiles, t.stride(0), down.stride(0),
        length, width, rank, room_for(rank), max(16, triton.next_power_of_2(rank)), ROWS, CHANNELS,
        num_warps=WARPS,
    )  # fmt: skip
    return wide @ room


@stacked_product.register_fake
def _(wide: Tensor, room: Tensor, t: Tensor, down: Tensor) -> Tensor:
    return wide.new_empty(len(wide), room.shape[1])
