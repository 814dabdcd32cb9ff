"""Triton kernels between the two matmuls of the feed-forward, LoRA included; `feed_forward_ops` launches them.

The hidden activations are four times as wide as a token, and these kernels are bound by reading and writing them. Each
tensor is therefore read and written as seldom as possible: LoRA's term is computed in registers where it is added, GELU
follows at once, and the next linear's A is applied to the same registers. Quantizing to fp8 is a second pass, because
it needs the absolute maximum of a whole row. In backward this pass also computes the gradients of A and B, which are
sums over rows.

N rows (tokens), F hidden channels, R the LoRA rank: a power of two, at least 16. Groups of rows and groups of channels
are spread over programs. A result that needs all channels of a row is left as one part per group of channels, and
`reduce_parts` combines the parts.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

# gelu(h) = h sigmoid(LINEAR h + CUBIC h^3), the tanh approximation: the sigmoid's argument is twice the tanh's. The
# number of instructions limits these kernels as much as memory does. Therefore exp is exp2 with log2(e) in the
# constants, and division is the hardware's approximate one (2 units in the last place of fp32, far below bf16).
LINEAR: tl.constexpr = tl.constexpr(1.5957691216057308)
CUBIC: tl.constexpr = tl.constexpr(0.07135481627260025)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _inverse_sigmoid(h):
    """1 + exp(-LINEAR h - CUBIC h^3), the divisor of h in gelu(h)."""
    return 1 + libdevice.exp2(h * (-LINEAR * LOG2_E - CUBIC * LOG2_E * (h * h)))


@triton.jit
def _gelu(h):
    return libdevice.fast_dividef(h, _inverse_sigmoid(h))


@triton.jit
def _gelu_slope(h):
    sigmoid = libdevice.fast_dividef(1.0, _inverse_sigmoid(h))
    return sigmoid * (1 + h * (LINEAR + 3 * CUBIC * (h * h)) * (1 - sigmoid))


@triton.jit
def _load_rows(small, scale, n, R: tl.constexpr, ROWS: tl.constexpr, FP8: tl.constexpr):
    """A program's row numbers, their mask, its rows (ROWS,R) of `small`, and the rows' scales, 1 without fp8."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = (row < n)[:, None]
    values = tl.load(small + row[:, None] * R + tl.arange(0, R)[None, :], mask=mask, other=0.0)
    row_scale = tl.full([ROWS, 1], 1.0, tl.float32)
    if FP8:
        row_scale = tl.load(scale + row, mask=row < n, other=0.0)[:, None]
    return row, mask, values, row_scale


@triton.jit
def _store_part(partials, absmax, partial, highest, row, n, R: tl.constexpr, FP8: tl.constexpr):
    """Stores a program's part of the results of its rows, for `reduce_parts`."""
    part = tl.program_id(1)
    tl.store(partials + (part * n + row[:, None]) * R + tl.arange(0, R)[None, :], partial, mask=(row < n)[:, None])
    if FP8:
        tl.store(absmax + part * n + row, highest, mask=row < n)


@triton.jit
def reduce_parts(absmax, partials, scales, total, n,
                 R: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, FP8: tl.constexpr,
                 FP8_MAX: tl.constexpr, MIN_SCALE: tl.constexpr):  # fmt: skip
    """Combines the parts of the programs that share a row: total (n,R) is the sum, scales (n,) the row's fp8 scale."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask, rank = row < n, tl.arange(0, R)
    highest = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, R], tl.float32)
    for part in range(PARTS):
        offset = part * n + row
        summed += tl.load(partials + offset[:, None] * R + rank[None, :], mask=mask[:, None], other=0.0)
        if FP8:
            highest = tl.maximum(highest, tl.load(absmax + offset, mask=mask, other=0.0))
    tl.store(total + row[:, None] * R + rank[None, :], summed.to(tl.bfloat16), mask=mask[:, None])
    if FP8:
        tl.store(scales + row, tl.maximum(highest / FP8_MAX, MIN_SCALE), mask=mask)


@triton.jit
def gelu_forward(product, scale, u, lora_b, bias, lora_a, hidden, activated, absmax, partials, n,
                 F: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, PARTS: tl.constexpr,
                 FP8: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """hidden = scale product + u lora_b^T + bias, and without FP8 activated = gelu(hidden).

    Also stores the parts of gelu(hidden) lora_a^T and of the rows' absolute maxima. The next tile of `product` is
    loaded ahead.
    """
    row, mask, u_rows, row_scale = _load_rows(u, scale, n, R, ROWS, FP8)
    part, rank, channel = tl.program_id(1), tl.arange(0, R), tl.arange(0, CHANNELS)
    highest = tl.zeros([ROWS], tl.float32)
    partial = tl.zeros([ROWS, R], tl.float32)
    width: tl.constexpr = F // PARTS
    first_offset = row[:, None].to(tl.int64) * F + part * width + channel[None, :]
    next_product = tl.load(product + first_offset, mask=mask, other=0.0)
    for start in range(0, width, CHANNELS):
        column, offset = part * width + start + channel, first_offset + start
        scaled = next_product.to(tl.float32) * row_scale
        next_mask = mask & (start + CHANNELS < width)
        next_product = tl.load(product + offset + CHANNELS, mask=next_mask, other=0.0)
        b = tl.load(lora_b + column[:, None] * R + rank[None, :])  # (CHANNELS,R)
        h = scaled + tl.dot(u_rows, tl.trans(b))
        if BIAS:
            h += tl.load(bias + column).to(tl.float32)[None, :]
        tl.store(hidden + offset, h.to(tl.bfloat16), mask=mask)
        g = _gelu(h).to(tl.bfloat16)  # from bf16 h the compiler would compute GELU twice, for store and dot
        a = tl.load(lora_a + rank[:, None] * F + column[None, :])  # (R,CHANNELS)
        partial += tl.dot(g, tl.trans(a))
        if FP8:
            highest = tl.maximum(highest, tl.max(tl.abs(g.to(tl.float32)), 1))
        else:
            tl.store(activated + offset, g, mask=mask)
    _store_part(partials, absmax, partial, highest, row, n, R, FP8)


@triton.jit
def round_gelu(hidden, scales, activated, n,
               F: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    """activated = gelu(hidden) / scales, in fp8."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = (row < n)[:, None]
    inv_scale = 1 / tl.load(scales + row, mask=row < n, other=1.0)[:, None]
    for start in range(0, F // PARTS, CHANNELS):
        column = tl.program_id(1) * (F // PARTS) + start + tl.arange(0, CHANNELS)
        offset = row[:, None].to(tl.int64) * F + column[None, :]
        h = tl.load(hidden + offset, mask=mask, other=0.0).to(tl.float32)
        g = _gelu(h).to(tl.bfloat16).to(tl.float32)
        tl.store(activated + offset, (g * inv_scale).to(tl.float8e4nv), mask=mask)


@triton.jit
def gelu_backward(product, scale, grad_u, lora_a, hidden, lora_b, grad, absmax, partials, n,
                  SPARE: tl.constexpr, F: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
                  PARTS: tl.constexpr, FP8: tl.constexpr):  # fmt: skip
    """grad = (scale product + grad_u lora_a) gelu'(hidden), in rows of F + SPARE.

    Also stores the parts of grad lora_b and of the rows' absolute maxima. The next tiles of `product` and `hidden` are
    loaded ahead.
    """
    row, mask, u_rows, row_scale = _load_rows(grad_u, scale, n, R, ROWS, FP8)
    part, rank, channel = tl.program_id(1), tl.arange(0, R), tl.arange(0, CHANNELS)
    highest = tl.zeros([ROWS], tl.float32)
    partial = tl.zeros([ROWS, R], tl.float32)
    width: tl.constexpr = F // PARTS
    first_offset = row[:, None].to(tl.int64) * F + part * width + channel[None, :]
    next_product = tl.load(product + first_offset, mask=mask, other=0.0)
    next_hidden = tl.load(hidden + first_offset, mask=mask, other=0.0)
    spare_offset = row[:, None].to(tl.int64) * SPARE
    for start in range(0, width, CHANNELS):
        column, offset = part * width + start + channel, first_offset + start
        h, g = next_hidden.to(tl.float32), next_product.to(tl.float32) * row_scale
        next_mask = mask & (start + CHANNELS < width)
        next_product = tl.load(product + offset + CHANNELS, mask=next_mask, other=0.0)
        next_hidden = tl.load(hidden + offset + CHANNELS, mask=next_mask, other=0.0)
        a = tl.load(lora_a + rank[:, None] * F + column[None, :])  # (R,CHANNELS)
        g += tl.dot(u_rows, a)
        d = (g * _gelu_slope(h)).to(tl.bfloat16)
        tl.store(grad + offset + spare_offset, d, mask=mask)
        b = tl.load(lora_b + column[:, None] * R + rank[None, :])  # (CHANNELS,R)
        partial += tl.dot(d, b)
        if FP8:
            highest = tl.maximum(highest, tl.max(tl.abs(d.to(tl.float32)), 1))
    _store_part(partials, absmax, partial, highest, row, n, R, FP8)


@triton.jit
def factor_grads(hidden, grad, grad_u, u, scales, values, grad_a, grad_b, n, tiles,
                 SPARE: tl.constexpr, F: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
                 FP8: tl.constexpr):  # fmt: skip
    """Parts of grad_a = grad_u^T gelu(hidden) (R,F) and of grad_b = grad^T u (F,R), over a program's group of rows.

    With FP8 also values = grad / scales in fp8.
    """
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(1)
    rank, row_in_tile = tl.arange(0, R), tl.arange(0, ROWS)
    total_a = tl.zeros([R, CHANNELS], tl.float32)
    total_b = tl.zeros([CHANNELS, R], tl.float32)
    for step in range(tiles):
        row = (part * tiles + step) * ROWS + row_in_tile
        mask = (row < n)[:, None]
        offset = row[:, None].to(tl.int64) * F + column[None, :]
        g = _gelu(tl.load(hidden + offset, mask=mask, other=0.0).to(tl.float32)).to(tl.bfloat16)
        d = tl.load(grad + offset + row[:, None].to(tl.int64) * SPARE, mask=mask, other=0.0)
        small = row[:, None] * R + rank[None, :]
        total_a += tl.dot(tl.trans(tl.load(grad_u + small, mask=mask, other=0.0)), g)
        total_b += tl.dot(tl.trans(d), tl.load(u + small, mask=mask, other=0.0))
        if FP8:
            inv_scale = 1 / tl.load(scales + row, mask=row < n, other=1.0)[:, None]
            tl.store(values + offset, (d.to(tl.float32) * inv_scale).to(tl.float8e4nv), mask=mask)
    tl.store(grad_a + (part * R + rank[:, None]) * F + column[None, :], total_a)
    tl.store(grad_b + (part * F + column[:, None]) * R + rank[None, :], total_b)
