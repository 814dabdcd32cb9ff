"""The Triton kernel of `modulated_norm.norm_back`: one program per token."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def modulated_norm_backward(
    grad_norm, grad_residual, x, rstd, scale, level, gates, weight_scale, grad_x, rows, values, row_scale,
    tokens, level_clip_stride, level_token_stride, D: tl.constexpr, LEVELS: tl.constexpr, FP8: tl.constexpr,
    FP8_MAX: tl.constexpr, MIN_SCALE: tl.constexpr,
):  # fmt: skip
    """grad_x = grad_residual + the gradient through the modulated norm; rows = gate * grad_x, also in fp8."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, D)
    clip = row // tokens
    adaln_row = tl.load(level + clip * level_clip_stride + (row % tokens) * level_token_stride).to(tl.int32)
    adaln_row = clip * LEVELS + tl.minimum(adaln_row, LEVELS - 1)
    offset = row * D + column
    inv = tl.load(rstd + row)
    value = tl.load(x + offset).to(tl.float32)
    g = tl.load(grad_norm + offset).to(tl.float32) * (1 + tl.load(scale + adaln_row * D + column).to(tl.float32))
    projection = tl.sum(g * value) * inv * inv / D  # of g onto x
    total = (tl.load(grad_residual + offset).to(tl.float32) + inv * (g - value * projection)).to(tl.bfloat16)
    tl.store(grad_x + offset, total)
    gated = (total.to(tl.float32) * tl.load(gates + adaln_row * D + column).to(tl.float32)).to(tl.bfloat16)
    tl.store(rows + offset, gated)
    if FP8:
        gated = gated.to(tl.float32)
        fp8_scale = tl.maximum(tl.max(tl.abs(gated)) / FP8_MAX, MIN_SCALE)
        tl.store(row_scale + row, fp8_scale * tl.load(weight_scale))
        tl.store(values + offset, (gated / fp8_scale).to(tl.float8e4nv))
