"""The feed-forward's kernels between its two products, adapters included (Triton). `feed_forward_ops` launches them.

A feed-forward is four times as wide inside, and what lies between its products is limited by reading and writing those
activations. So each is read and written as seldom as may be: the adapter's share is computed in registers where it is
added, GELU follows at once, and the next adapter's A is applied to what is at hand. Rounding to fp8 needs the largest
of a whole row first, so it is a second pass, which backwards also takes the sums over rows, the adapters' gradients.

N rows of tokens, F hidden channels, R the rank: a power of two from 16 on. Rows are shared out among programs, and so
are groups of channels; what needs all channels is left in one part for each group.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

# GELU multiplies h by the logistic function of LINEAR h + CUBIC h^3 (of twice what its tanh is taken of). The number of
# its instructions limits these kernels as much as memory does, so exp is a power of two, its factor in the constants,
# and division is by the hardware's reciprocal (2 units in the last place of fp32, far below bf16).
LINEAR: tl.constexpr = tl.constexpr(1.5957691216057308)
CUBIC: tl.constexpr = tl.constexpr(0.07135481627260025)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _above(h):
    """What h is divided by: 1 + exp(-LINEAR h - CUBIC h^3)."""
    return 1 + libdevice.exp2(h * (-LINEAR * LOG2_E - CUBIC * LOG2_E * (h * h)))


@triton.jit
def _gelu(h):
    return libdevice.fast_dividef(h, _above(h))


@triton.jit
def _gelu_slope(h):
    share = libdevice.fast_dividef(1.0, _above(h))
    return share * (1 + h * (LINEAR + 3 * CUBIC * (h * h)) * (1 - share))


@triton.jit
def _rows_of(thin, scale, n, R: tl.constexpr, ROWS: tl.constexpr, FP8: tl.constexpr):
    """A program's rows, which of them there are, what is thin of them (ROWS,R), and their scales, 1 without fp8."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < n)[:, None]
    own = tl.load(thin + row[:, None] * R + tl.arange(0, R)[None, :], mask=inside, other=0.0)
    factor = tl.full([ROWS, 1], 1.0, tl.float32)
    if FP8:
        factor = tl.load(scale + row, mask=row < n, other=0.0)[:, None]
    return row, inside, own, factor


@triton.jit
def _leave(shares, most, inner, highest, row, n, R: tl.constexpr, FP8: tl.constexpr):
    """What this program found of its rows, for `gather`."""
    part = tl.program_id(1)
    tl.store(shares + (part * n + row[:, None]) * R + tl.arange(0, R)[None, :], inner, mask=(row < n)[:, None])
    if FP8:
        tl.store(most + part * n + row, highest, mask=row < n)


@triton.jit
def gather(most, shares, scales, v, n,
           R: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, FP8: tl.constexpr,
           LARGEST: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """What the programs that share rows have left: the scale of a row, and its product with an A or a B."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, rank = row < n, tl.arange(0, R)
    highest = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, R], tl.float32)
    for part in range(PARTS):
        at = part * n + row
        total += tl.load(shares + at[:, None] * R + rank[None, :], mask=inside[:, None], other=0.0)
        if FP8:
            highest = tl.maximum(highest, tl.load(most + at, mask=inside, other=0.0))
    tl.store(v + row[:, None] * R + rank[None, :], total.to(tl.bfloat16), mask=inside[:, None])
    if FP8:
        tl.store(scales + row, tl.maximum(highest / LARGEST, LEAST), mask=inside)


@triton.jit
def up(product, scale, u, up, bias, down, hidden, opened, most, shares, n,
       F: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, PARTS: tl.constexpr,
       FP8: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    row, inside, own, factor = _rows_of(u, scale, n, R, ROWS, FP8)
    part, rank, lane = tl.program_id(1), tl.arange(0, R), tl.arange(0, CHANNELS)
    highest = tl.zeros([ROWS], tl.float32)
    inner = tl.zeros([ROWS, R], tl.float32)
    width: tl.constexpr = F // PARTS
    place = row[:, None].to(tl.int64) * F + part * width + lane[None, :]
    ahead = tl.load(product + place, mask=inside, other=0.0)
    for start in range(0, width, CHANNELS):
        column, at = part * width + start + lane, place + start
        first = ahead.to(tl.float32) * factor
        ahead = tl.load(product + at + CHANNELS, mask=inside & (start + CHANNELS < width), other=0.0)
        b = tl.load(up + column[:, None] * R + rank[None, :])  # (CHANNELS,R)
        h = first + tl.dot(own, tl.trans(b))
        if BIAS:
            h += tl.load(bias + column).to(tl.float32)[None, :]
        tl.store(hidden + at, h.to(tl.bfloat16), mask=inside)
        g = _gelu(h).to(tl.bfloat16)  # of rounded h the compiler would compute it twice, for the store and the product
        a = tl.load(down + rank[:, None] * F + column[None, :])  # (R,CHANNELS)
        inner += tl.dot(g, tl.trans(a))
        if FP8:
            highest = tl.maximum(highest, tl.max(tl.abs(g.to(tl.float32)), 1))
        else:
            tl.store(opened + at, g, mask=inside)
    _leave(shares, most, inner, highest, row, n, R, FP8)


@triton.jit
def round_gelu(hidden, scales, opened, n,
               F: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < n)[:, None]
    over = 1 / tl.load(scales + row, mask=row < n, other=1.0)[:, None]
    for start in range(0, F // PARTS, CHANNELS):
        column = tl.program_id(1) * (F // PARTS) + start + tl.arange(0, CHANNELS)
        at = row[:, None].to(tl.int64) * F + column[None, :]
        h = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
        g = _gelu(h).to(tl.bfloat16).to(tl.float32)
        tl.store(opened + at, (g * over).to(tl.float8e4nv), mask=inside)


@triton.jit
def back(product, scale, t, down, hidden, up, grad, most, shares, n,
         SPARE: tl.constexpr, F: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
         PARTS: tl.constexpr, FP8: tl.constexpr):  # fmt: skip
    row, inside, own, factor = _rows_of(t, scale, n, R, ROWS, FP8)
    part, rank, lane = tl.program_id(1), tl.arange(0, R), tl.arange(0, CHANNELS)
    highest = tl.zeros([ROWS], tl.float32)
    inner = tl.zeros([ROWS, R], tl.float32)
    width: tl.constexpr = F // PARTS
    place = row[:, None].to(tl.int64) * F + part * width + lane[None, :]
    ahead = tl.load(product + place, mask=inside, other=0.0)
    hidden_ahead = tl.load(hidden + place, mask=inside, other=0.0)
    beside = row[:, None].to(tl.int64) * SPARE
    for start in range(0, width, CHANNELS):
        column, at = part * width + start + lane, place + start
        h, g = hidden_ahead.to(tl.float32), ahead.to(tl.float32) * factor
        more = inside & (start + CHANNELS < width)
        ahead = tl.load(product + at + CHANNELS, mask=more, other=0.0)
        hidden_ahead = tl.load(hidden + at + CHANNELS, mask=more, other=0.0)
        a = tl.load(down + rank[:, None] * F + column[None, :])  # (R,CHANNELS)
        g += tl.dot(own, a)
        d = (g * _gelu_slope(h)).to(tl.bfloat16)
        tl.store(grad + at + beside, d, mask=inside)
        b = tl.load(up + column[:, None] * R + rank[None, :])  # (CHANNELS,R)
        inner += tl.dot(d, b)
        if FP8:
            highest = tl.maximum(highest, tl.max(tl.abs(d.to(tl.float32)), 1))
    _leave(shares, most, inner, highest, row, n, R, FP8)


@triton.jit
def sums(hidden, grad, t, u, scales, rounded, down_grad, up_grad, n, tiles,
         SPARE: tl.constexpr, F: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
         FP8: tl.constexpr):  # fmt: skip
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(1)
    rank, lane = tl.arange(0, R), tl.arange(0, ROWS)
    of_down = tl.zeros([R, CHANNELS], tl.float32)
    of_up = tl.zeros([CHANNELS, R], tl.float32)
    for step in range(tiles):
        row = (part * tiles + step) * ROWS + lane
        inside = (row < n)[:, None]
        at = row[:, None].to(tl.int64) * F + column[None, :]
        g = _gelu(tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)).to(tl.bfloat16)
        d = tl.load(grad + at + row[:, None].to(tl.int64) * SPARE, mask=inside, other=0.0)
        small = row[:, None] * R + rank[None, :]
        of_down += tl.dot(tl.trans(tl.load(t + small, mask=inside, other=0.0)), g)
        of_up += tl.dot(tl.trans(d), tl.load(u + small, mask=inside, other=0.0))
        if FP8:
            over = 1 / tl.load(scales + row, mask=row < n, other=1.0)[:, None]
            tl.store(rounded + at, (d.to(tl.float32) * over).to(tl.float8e4nv), mask=inside)
    tl.store(down_grad + (part * R + rank[:, None]) * F + column[None, :], of_down)
    tl.store(up_grad + (part * F + column[:, None]) * R + rank[None, :], of_up)
