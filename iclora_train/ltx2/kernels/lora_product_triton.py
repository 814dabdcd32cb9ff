"""The kernels of `low_rank` and `gated_out`, which compute an adapter's share where it is added (Triton)."""

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


@triton.jit
def thinly(product, factor, bias, u, up, found, n, u_stride, rank_stride, column_stride,
           WIDTH: tl.constexpr, R: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
           SCALED: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """product factor + bias + u up, up (R,WIDTH) with strides of its own; PADDED: R or the next power of two."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rank, real = tl.arange(0, PADDED), row < n
    inside, some = real[:, None], rank < R
    at = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    value = tl.load(product + at, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(u + row[:, None] * u_stride + rank[None, :], mask=inside & some[None, :], other=0.0)
    b = tl.load(up + rank[:, None] * rank_stride + column[None, :] * column_stride, mask=some[:, None], other=0.0)
    if SCALED:
        value *= tl.load(factor + row, mask=real, other=0.0)[:, None]
    if BIAS:
        value += tl.load(bias + column).to(tl.float32)[None, :]
    value += tl.dot(a, b)
    tl.store(found + at, value.to(tl.bfloat16), mask=inside)


@triton.jit
def both(grad, u, up, shares, of_up, n, tiles, grad_stride, u_stride,
         WIDTH: tl.constexpr, EACH: tl.constexpr, R: tl.constexpr, LAYERS: tl.constexpr, ROWS: tl.constexpr,
         CHANNELS: tl.constexpr):  # fmt: skip
    """Of the channels of a program, which lie in one layer, and of its part of the rows: grad up (n, R of the layer),
    to be summed over the layer's programs, and grad^T u (channels,R), to be summed over the parts."""
    chunk, part = tl.program_id(0), tl.program_id(1)
    column = chunk * CHANNELS + tl.arange(0, CHANNELS)
    own = (chunk * CHANNELS // EACH) * R + tl.arange(0, R)
    b = tl.load(up + column[:, None] * (R * LAYERS) + own[None, :])
    share = shares + (chunk % (EACH // CHANNELS)).to(tl.int64) * n * (R * LAYERS)
    total = tl.zeros([CHANNELS, R], tl.float32)
    for step in range(tiles):
        row = (part * tiles + step) * ROWS + tl.arange(0, ROWS)
        inside = (row < n)[:, None]
        g = tl.load(grad + row[:, None].to(tl.int64) * grad_stride + column[None, :], mask=inside, other=0.0)
        total += tl.dot(tl.trans(g), tl.load(u + row[:, None] * u_stride + own[None, :], mask=inside, other=0.0))
        tl.store(share + row[:, None] * (R * LAYERS) + own[None, :], tl.dot(g, b), mask=inside)
    tl.store(of_up + (part * WIDTH + column[:, None]) * R + tl.arange(0, R)[None, :], total)


@triton.jit
def laid(t, down, wide, room, n, tiles, t_stride, down_stride,
         WIDE: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr, SPARE: tl.constexpr, PADDED: tl.constexpr,
         ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """t (n,R) beside the columns of wide (n,WIDE), of which SPARE are left, and down (R,WIDTH) beneath the rows of
    room, of which there are as many as wide has columns; zeros beyond R."""
    program, rank = tl.program_id(0), tl.arange(0, PADDED)
    real, there = rank < R, rank < SPARE
    if program < tiles:
        row = program * ROWS + tl.arange(0, ROWS)
        inside = (row < n)[:, None]
        value = tl.load(t + row[:, None] * t_stride + rank[None, :], mask=inside & real[None, :], other=0.0)
        to = wide + row[:, None].to(tl.int64) * WIDE + (WIDE - SPARE) + rank[None, :]
        tl.store(to, value, mask=inside & there[None, :])
    else:
        column = (program - tiles) * CHANNELS + tl.arange(0, CHANNELS)
        within = (column < WIDTH)[None, :]
        own = tl.load(down + rank[:, None] * down_stride + column[None, :], mask=within & real[:, None], other=0.0)
        under = room + (WIDE - SPARE + rank[:, None]).to(tl.int64) * WIDTH + column[None, :]
        tl.store(under, own, mask=within & there[:, None])


@triton.jit
def gated(product, factor, bias, u, up, x, gates, level, found, n, tokens, level_clip, level_token,
          WIDTH: tl.constexpr, R: tl.constexpr, LEVELS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
          SCALED: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """x + gates of the row's level times (product factor + bias + u up^T)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rank, real = tl.arange(0, R), row < n
    inside = real[:, None]
    at = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    value = tl.load(product + at, mask=inside, other=0.0).to(tl.float32)
    before = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    clip = row // tokens
    own = tl.load(level + clip * level_clip + (row % tokens) * level_token, mask=real, other=0).to(tl.int32)
    own = clip * LEVELS + tl.minimum(own, LEVELS - 1)
    gate = tl.load(gates + own[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(factor + row, mask=real, other=0.0)[:, None]
    if BIAS:
        value += tl.load(bias + column).to(tl.float32)[None, :]
    a = tl.load(u + row[:, None] * R + rank[None, :], mask=inside, other=0.0)
    b = tl.load(up + column[:, None] * R + rank[None, :])
    value += tl.dot(a, tl.trans(b))
    tl.store(found + at, (before + gate * value).to(tl.bfloat16), mask=inside)


@triton.jit
def ungated(product, factor, t, down, out, gate, of_out, of_gate, of_down, n, tiles,
            WIDTH: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
            SCALED: tl.constexpr):  # fmt: skip
    """Of one head and a part of the rows: d = product factor + t down; its gradients 2 sigmoid(gate) d, and that of the
    gate; and t^T times what was seen forwards, 2 sigmoid(gate) out, to be summed over the parts (R,WIDTH)."""
    head, part = tl.program_id(0), tl.program_id(1)
    column = head * CHANNELS + tl.arange(0, CHANNELS)
    rank = tl.arange(0, R)
    b = tl.load(down + rank[:, None] * WIDTH + column[None, :])
    total = tl.zeros([R, CHANNELS], tl.float32)
    row = part * tiles * ROWS + tl.arange(0, ROWS)
    at = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    ahead = tl.load(product + at, mask=(row < n)[:, None], other=0.0)
    out_ahead = tl.load(out + at, mask=(row < n)[:, None], other=0.0)
    for step in range(tiles):
        row = (part * tiles + step) * ROWS + tl.arange(0, ROWS)
        real = row < n
        inside = real[:, None]
        at = row[:, None].to(tl.int64) * WIDTH + column[None, :]
        value, given = ahead.to(tl.float32), out_ahead.to(tl.float32)
        more = ((row + ROWS < n) & (step + 1 < tiles))[:, None]
        ahead = tl.load(product + at + ROWS * WIDTH, mask=more, other=0.0)
        out_ahead = tl.load(out + at + ROWS * WIDTH, mask=more, other=0.0)
        share = 1 / (1 + tl.exp(-tl.load(gate + row * HEADS + head, mask=real, other=0.0).to(tl.float32)))
        if SCALED:
            value *= tl.load(factor + row, mask=real, other=0.0)[:, None]
        a = tl.load(t + row[:, None] * R + rank[None, :], mask=inside, other=0.0)
        value += tl.dot(a, b)
        total += tl.dot(tl.trans(a), (2 * share[:, None] * given).to(tl.bfloat16))
        tl.store(of_out + at, (2 * share[:, None] * value).to(tl.bfloat16), mask=inside)
        slope = 2 * share * (1 - share) * tl.sum(value * given, 1)
        tl.store(of_gate + row * HEADS + head, slope.to(tl.bfloat16), mask=real)
    tl.store(of_down + (part * R + rank[:, None]) * WIDTH + column[None, :], total)
