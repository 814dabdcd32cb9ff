"""The kernel of `low_rank.add_low_rank` (Triton)."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def added(product, row_scale, column_scale, bias, u, up, first, last, n, u_stride,
          WIDTH: tl.constexpr, EACH: tl.constexpr, R: tl.constexpr, LAYERS: tl.constexpr, ROWS: tl.constexpr,
          CHANNELS: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """product row_scale column_scale + bias + u up^T, of u and up only what belongs to the columns' layer; the last
    layer's to `last`, the others' to `first`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rank = (tl.program_id(1) * CHANNELS // EACH) * R + tl.arange(0, R)  # a tile lies in one layer
    inside = (row < n)[:, None]
    a = tl.load(u + row[:, None] * u_stride + rank[None, :], mask=inside, other=0.0)
    b = tl.load(up + column[:, None] * (R * LAYERS) + rank[None, :])
    at = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    value = tl.load(product + at, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(row_scale + row, mask=row < n, other=0.0)[:, None] * tl.load(column_scale + column)[None, :]
    if BIAS:
        value += tl.load(bias + column).to(tl.float32)[None, :]
    value += tl.dot(a, tl.trans(b))
    others: tl.constexpr = WIDTH - EACH
    if tl.program_id(1) * CHANNELS < others:
        tl.store(first + row[:, None].to(tl.int64) * others + column[None, :], value.to(tl.bfloat16), mask=inside)
    else:
        tl.store(last + row[:, None].to(tl.int64) * EACH + column[None, :] - others, value.to(tl.bfloat16), mask=inside)
