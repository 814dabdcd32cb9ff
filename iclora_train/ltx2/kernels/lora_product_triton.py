"""Triton kernels of `lora_product`, `stacked_weight` and `fused_attention_out`: LoRA's term is added in an epilogue."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_lora(product, row_scale, column_scale, bias, u, lora_b, first, last, n, u_stride,
             WIDTH: tl.constexpr, LAYER_WIDTH: tl.constexpr, R: tl.constexpr, LAYERS: tl.constexpr, ROWS: tl.constexpr,
             CHANNELS: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """product row_scale column_scale + bias + u lora_b^T, with the block of lora_b that belongs to the tile's layer.

    The last layer's columns are stored in `last`, the columns of the layers before it in `first`.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rank = (tl.program_id(1) * CHANNELS // LAYER_WIDTH) * R + tl.arange(0, R)  # a tile lies in one layer
    mask = (row < n)[:, None]
    a = tl.load(u + row[:, None] * u_stride + rank[None, :], mask=mask, other=0.0)
    b = tl.load(lora_b + column[:, None] * (R * LAYERS) + rank[None, :])
    offset = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    value = tl.load(product + offset, mask=mask, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(row_scale + row, mask=row < n, other=0.0)[:, None] * tl.load(column_scale + column)[None, :]
    if BIAS:
        value += tl.load(bias + column).to(tl.float32)[None, :]
    value += tl.dot(a, tl.trans(b))
    first_width: tl.constexpr = WIDTH - LAYER_WIDTH
    if tl.program_id(1) * CHANNELS < first_width:
        tl.store(first + row[:, None].to(tl.int64) * first_width + column[None, :], value.to(tl.bfloat16), mask=mask)
    else:
        last_ptr = last + row[:, None].to(tl.int64) * LAYER_WIDTH + column[None, :] - first_width
        tl.store(last_ptr, value.to(tl.bfloat16), mask=mask)


@triton.jit
def add_term(product, row_scale, bias, u, factor, out, n, u_stride, rank_stride, column_stride,
             WIDTH: tl.constexpr, R: tl.constexpr, PADDED_R: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
             SCALED: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """product row_scale + bias + u factor, for a factor (R,WIDTH) of any strides; PADDED_R: R or the next power of two,
    at least 16."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rank, row_mask = tl.arange(0, PADDED_R), row < n
    mask, rank_mask = row_mask[:, None], rank < R
    offset = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    value = tl.load(product + offset, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(u + row[:, None] * u_stride + rank[None, :], mask=mask & rank_mask[None, :], other=0.0)
    b_ptr = factor + rank[:, None] * rank_stride + column[None, :] * column_stride
    b = tl.load(b_ptr, mask=rank_mask[:, None], other=0.0)
    if SCALED:
        value *= tl.load(row_scale + row, mask=row_mask, other=0.0)[:, None]
    if BIAS:
        value += tl.load(bias + column).to(tl.float32)[None, :]
    value += tl.dot(a, b)
    tl.store(out + offset, value.to(tl.bfloat16), mask=mask)


@triton.jit
def b_backward(grad, u, lora_b, grad_u, grad_b, n, tiles, grad_stride, u_stride,
               WIDTH: tl.constexpr, LAYER_WIDTH: tl.constexpr, R: tl.constexpr, LAYERS: tl.constexpr,
               ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Partial sums of grad_u = grad lora_b (n, R LAYERS) and grad_b = grad^T u (WIDTH,R).

    A program has CHANNELS channels, all in one layer, and one group of rows. Its grad_u is summed over the programs of
    that layer, its grad_b over the groups of rows.
    """
    chunk, part = tl.program_id(0), tl.program_id(1)
    column = chunk * CHANNELS + tl.arange(0, CHANNELS)
    rank = (chunk * CHANNELS // LAYER_WIDTH) * R + tl.arange(0, R)
    b = tl.load(lora_b + column[:, None] * (R * LAYERS) + rank[None, :])
    grad_u_part = grad_u + (chunk % (LAYER_WIDTH // CHANNELS)).to(tl.int64) * n * (R * LAYERS)
    total = tl.zeros([CHANNELS, R], tl.float32)
    for step in range(tiles):
        row = (part * tiles + step) * ROWS + tl.arange(0, ROWS)
        mask = (row < n)[:, None]
        g = tl.load(grad + row[:, None].to(tl.int64) * grad_stride + column[None, :], mask=mask, other=0.0)
        total += tl.dot(tl.trans(g), tl.load(u + row[:, None] * u_stride + rank[None, :], mask=mask, other=0.0))
        tl.store(grad_u_part + row[:, None] * (R * LAYERS) + rank[None, :], tl.dot(g, b), mask=mask)
    tl.store(grad_b + (part * WIDTH + column[:, None]) * R + tl.arange(0, R)[None, :], total)


@triton.jit
def fill_spare(grad_u, lora_a, grad, stacked, n, tiles, grad_u_stride, lora_a_stride,
               LENGTH: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr, SPARE: tl.constexpr, PADDED_R: tl.constexpr,
               ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Copies grad_u (n,R) into the last SPARE columns of grad (n,LENGTH), and lora_a (R,WIDTH) into the last SPARE rows
    of stacked (LENGTH,WIDTH); zeros beyond R. The first `tiles` programs copy grad_u, the others lora_a."""
    program, rank = tl.program_id(0), tl.arange(0, PADDED_R)
    rank_mask, spare_mask = rank < R, rank < SPARE
    if program < tiles:
        row = program * ROWS + tl.arange(0, ROWS)
        mask = (row < n)[:, None]
        g = tl.load(grad_u + row[:, None] * grad_u_stride + rank[None, :], mask=mask & rank_mask[None, :], other=0.0)
        grad_ptr = grad + row[:, None].to(tl.int64) * LENGTH + (LENGTH - SPARE) + rank[None, :]
        tl.store(grad_ptr, g, mask=mask & spare_mask[None, :])
    else:
        column = (program - tiles) * CHANNELS + tl.arange(0, CHANNELS)
        column_mask = (column < WIDTH)[None, :]
        a_ptr = lora_a + rank[:, None] * lora_a_stride + column[None, :]
        a = tl.load(a_ptr, mask=column_mask & rank_mask[:, None], other=0.0)
        stacked_ptr = stacked + (LENGTH - SPARE + rank[:, None]).to(tl.int64) * WIDTH + column[None, :]
        tl.store(stacked_ptr, a, mask=column_mask & spare_mask[:, None])


@triton.jit
def gated_residual(product, row_scale, bias, u, lora_b, x, gates, level, out, n, tokens, level_clip_stride,
                   level_token_stride,
                   WIDTH: tl.constexpr, R: tl.constexpr, LEVELS: tl.constexpr, ROWS: tl.constexpr,
                   CHANNELS: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """x + gate (product row_scale + bias + u lora_b^T), with the gate of each row's noise level."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    rank, row_mask = tl.arange(0, R), row < n
    mask = row_mask[:, None]
    offset = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    value = tl.load(product + offset, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    clip = row // tokens
    level_ptr = level + clip * level_clip_stride + (row % tokens) * level_token_stride
    gate_row = tl.load(level_ptr, mask=row_mask, other=0).to(tl.int32)
    gate_row = clip * LEVELS + tl.minimum(gate_row, LEVELS - 1)
    gate = tl.load(gates + gate_row[:, None] * WIDTH + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(row_scale + row, mask=row_mask, other=0.0)[:, None]
    if BIAS:
        value += tl.load(bias + column).to(tl.float32)[None, :]
    a = tl.load(u + row[:, None] * R + rank[None, :], mask=mask, other=0.0)
    b = tl.load(lora_b + column[:, None] * R + rank[None, :])
    value += tl.dot(a, tl.trans(b))
    tl.store(out + offset, (residual + gate * value).to(tl.bfloat16), mask=mask)


@triton.jit
def head_gate_backward(product, row_scale, grad_u, lora_a, out, gate, grad_out, grad_gate, grad_a, n, tiles,
                       WIDTH: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr,
                       CHANNELS: tl.constexpr, SCALED: tl.constexpr):  # fmt: skip
    """Backward of gated = 2 sigmoid(gate) out, whose gradient is d = product row_scale + grad_u lora_a.

    A program has one head and one group of rows. Besides grad_out and grad_gate it returns its part of
    grad_a = grad_u^T gated (R,WIDTH), to be summed over the groups of rows. `product` and `out` of the next tile are
    loaded ahead.
    """
    head, part = tl.program_id(0), tl.program_id(1)
    column = head * CHANNELS + tl.arange(0, CHANNELS)
    rank = tl.arange(0, R)
    b = tl.load(lora_a + rank[:, None] * WIDTH + column[None, :])
    total = tl.zeros([R, CHANNELS], tl.float32)
    row = part * tiles * ROWS + tl.arange(0, ROWS)
    offset = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    next_product = tl.load(product + offset, mask=(row < n)[:, None], other=0.0)
    next_out = tl.load(out + offset, mask=(row < n)[:, None], other=0.0)
    for step in range(tiles):
        row = (part * tiles + step) * ROWS + tl.arange(0, ROWS)
        row_mask = row < n
        mask = row_mask[:, None]
        offset = row[:, None].to(tl.int64) * WIDTH + column[None, :]
        value, attended = next_product.to(tl.float32), next_out.to(tl.float32)
        next_mask = ((row + ROWS < n) & (step + 1 < tiles))[:, None]
        next_product = tl.load(product + offset + ROWS * WIDTH, mask=next_mask, other=0.0)
        next_out = tl.load(out + offset + ROWS * WIDTH, mask=next_mask, other=0.0)
        sigmoid = 1 / (1 + tl.exp(-tl.load(gate + row * HEADS + head, mask=row_mask, other=0.0).to(tl.float32)))
        if SCALED:
            value *= tl.load(row_scale + row, mask=row_mask, other=0.0)[:, None]
        a = tl.load(grad_u + row[:, None] * R + rank[None, :], mask=mask, other=0.0)
        value += tl.dot(a, b)
        total += tl.dot(tl.trans(a), (2 * sigmoid[:, None] * attended).to(tl.bfloat16))
        tl.store(grad_out + offset, (2 * sigmoid[:, None] * value).to(tl.bfloat16), mask=mask)
        slope = 2 * sigmoid * (1 - sigmoid) * tl.sum(value * attended, 1)
        tl.store(grad_gate + row * HEADS + head, slope.to(tl.bfloat16), mask=row_mask)
    tl.store(grad_a + (part * R + rank[:, None]) * WIDTH + column[None, :], total)
