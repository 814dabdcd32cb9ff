"""Triton kernels of `fused_qkv` and `fused_query`: norms and rotation, forward and backward.

One program per token. It holds the D channels of q and of k, each as two tensors (heads, half of head_dim): the first
and the second halves of the heads, which are rotated against each other.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _offsets(HEADS: tl.constexpr, HALF: tl.constexpr):
    """Offsets of the heads' first halves in a row of channels, and in a row of angles."""
    head, channel = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    return head * (2 * HALF) + channel, head * HALF + channel


@triton.jit
def _load_halves(start, offset, HALF: tl.constexpr):
    """The first and the second halves, in fp32."""
    return tl.load(start + offset).to(tl.float32), tl.load(start + offset + HALF).to(tl.float32)


@triton.jit
def _norm_rotate_row(raw, weight, cos, sin, out, rstd, offset, eps, D: tl.constexpr, HALF: tl.constexpr):
    """Norm and rotation of one row of q or of k."""
    a, b = _load_halves(raw, offset, HALF)
    inv = tl.rsqrt((tl.sum(a * a) + tl.sum(b * b)) / D + eps)
    wa, wb = _load_halves(weight, offset, HALF)
    a, b = a * inv * wa, b * inv * wb
    tl.store(out + offset, (a * cos - b * sin).to(tl.bfloat16))
    tl.store(out + offset + HALF, (b * cos + a * sin).to(tl.bfloat16))
    tl.store(rstd, inv)


@triton.jit
def norm_rotate_forward(raw, q_weight, k_weight, rope, q, k, rstd, n, eps, HEADS: tl.constexpr, HALF: tl.constexpr):
    """raw (n,2D) -> q, k (n,D), and rstd (2,n), the inverse root mean squares of both."""
    D: tl.constexpr = 2 * HEADS * HALF
    row = tl.program_id(0).to(tl.int64)
    offset, angle = _offsets(HEADS, HALF)
    cos = tl.load(rope + row * (D // 2) + angle).to(tl.float32)
    sin = tl.load(rope + (n + row) * (D // 2) + angle).to(tl.float32)
    _norm_rotate_row(raw + row * (2 * D), q_weight, cos, sin, q + row * D, rstd + row, offset, eps, D, HALF)
    _norm_rotate_row(raw + row * (2 * D) + D, k_weight, cos, sin, k + row * D, rstd + n + row, offset, eps, D, HALF)


@triton.jit
def rms_norm_forward(raw, weight, out, rstd, eps, D: tl.constexpr):
    """raw (n,D) -> out (n,D) without a rotation, and rstd (n,)."""
    row = tl.program_id(0).to(tl.int64)
    _norm_rotate_row(raw + row * D, weight, 1.0, 0.0, out + row * D, rstd + row, tl.arange(0, D // 2), eps, D, D // 2)


@triton.jit
def _divide_by_weight(y, w, noise):
    """The best linear estimate of x from y = w x + noise, for x of variance 1 and the given variance of the noise.

    For large weights it is y / w; for w = 0 it is finite.
    """
    return y * w / (w * w + noise)


@triton.jit
def _grad_row(grad_out, out, weight, inv, cos, sin, offset, D: tl.constexpr, HALF: tl.constexpr,
              ROUNDING: tl.constexpr):  # fmt: skip
    """The gradient of a row before norm and rotation, from their output `out` and its gradient `grad_out`."""
    ga, gb = _load_halves(grad_out, offset, HALF)
    a, b = _load_halves(out, offset, HALF)
    wa, wb = _load_halves(weight, offset, HALF)
    projection = (tl.sum(ga * a) + tl.sum(gb * b)) / D  # a rotation does not change inner products
    noise = ROUNDING * (a * a + b * b) + 1e-30
    xa, xb = _divide_by_weight(a * cos + b * sin, wa, noise), _divide_by_weight(b * cos - a * sin, wb, noise)
    da = inv * ((ga * cos + gb * sin) * wa - projection * xa)
    db = inv * ((gb * cos - ga * sin) * wb - projection * xb)
    return da.to(tl.bfloat16), db.to(tl.bfloat16)


@triton.jit
def _store_fp8(start, offset, value, scale):
    tl.store(start + offset, (value.to(tl.float32) * scale).to(tl.float8e4nv))


@triton.jit
def _absmax(a, b, scale):
    return tl.maximum(tl.max(tl.abs(a.to(tl.float32))), tl.max(tl.abs(b.to(tl.float32)))) * scale


@triton.jit
def norm_rotate_backward(grad_q, grad_k, grad_v, q, k, rstd, q_weight, k_weight, rope, column_scale, grad, values,
                         row_scale, n,
                         SPARE: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, FP8: tl.constexpr,
                         ROUNDING: tl.constexpr, FP8_MAX: tl.constexpr, MIN_SCALE: tl.constexpr):  # fmt: skip
    """Gradients of q, k, v (n,D) -> gradients of the linear outputs side by side, grad (n, 3D + SPARE).

    With FP8, grad times column_scale (3D,) is stored in fp8 too: values (n,3D) and row_scale (n,). column_scale is
    constant within each of q, k and v.
    """
    D: tl.constexpr = 2 * HEADS * HALF
    row = tl.program_id(0).to(tl.int64)
    offset, angle = _offsets(HEADS, HALF)
    cos = tl.load(rope + row * (D // 2) + angle).to(tl.float32)
    sin = tl.load(rope + (n + row) * (D // 2) + angle).to(tl.float32)
    inv_q, inv_k = tl.load(rstd + row), tl.load(rstd + n + row)
    qa, qb = _grad_row(grad_q + row * D, q + row * D, q_weight, inv_q, cos, sin, offset, D, HALF, ROUNDING)
    ka, kb = _grad_row(grad_k + row * D, k + row * D, k_weight, inv_k, cos, sin, offset, D, HALF, ROUNDING)
    va, vb = tl.load(grad_v + row * D + offset), tl.load(grad_v + row * D + offset + HALF)
    grad_row = grad + row * (3 * D + SPARE)
    tl.store(grad_row + offset, qa)
    tl.store(grad_row + offset + HALF, qb)
    tl.store(grad_row + D + offset, ka)
    tl.store(grad_row + D + offset + HALF, kb)
    tl.store(grad_row + 2 * D + offset, va)
    tl.store(grad_row + 2 * D + offset + HALF, vb)
    if FP8:
        sq, sk, sv = tl.load(column_scale), tl.load(column_scale + D), tl.load(column_scale + 2 * D)
        absmax = tl.maximum(tl.maximum(_absmax(qa, qb, sq), _absmax(ka, kb, sk)), _absmax(va, vb, sv))
        scale = tl.maximum(absmax / FP8_MAX, MIN_SCALE)
        tl.store(row_scale + row, scale)
        values_row = values + row * (3 * D)
        _store_fp8(values_row, offset, qa, sq / scale)
        _store_fp8(values_row, offset + HALF, qb, sq / scale)
        _store_fp8(values_row + D, offset, ka, sk / scale)
        _store_fp8(values_row + D, offset + HALF, kb, sk / scale)
        _store_fp8(values_row + 2 * D, offset, va, sv / scale)
        _store_fp8(values_row + 2 * D, offset + HALF, vb, sv / scale)


@triton.jit
def rms_norm_backward(grad_out, out, rstd, weight, weight_scale, grad, values, row_scale,
                  SPARE: tl.constexpr, D: tl.constexpr, FP8: tl.constexpr, ROUNDING: tl.constexpr,
                  FP8_MAX: tl.constexpr, MIN_SCALE: tl.constexpr):  # fmt: skip
    """Gradient of `rms_norm_forward`'s output (n,D) -> gradient of its input, grad (n, D + SPARE).

    With FP8, grad is stored in fp8 too: values (n,D) and row_scale (n,), which includes weight_scale ().
    """
    HALF: tl.constexpr = D // 2
    row, offset = tl.program_id(0).to(tl.int64), tl.arange(0, HALF)
    inv = tl.load(rstd + row)
    a, b = _grad_row(grad_out + row * D, out + row * D, weight, inv, 1.0, 0.0, offset, D, HALF, ROUNDING)
    tl.store(grad + row * (D + SPARE) + offset, a)
    tl.store(grad + row * (D + SPARE) + offset + HALF, b)
    if FP8:
        scale = tl.maximum(_absmax(a, b, 1.0) / FP8_MAX, MIN_SCALE)
        tl.store(row_scale + row, scale * tl.load(weight_scale))
        _store_fp8(values + row * D, offset, a, 1 / scale)
        _store_fp8(values + row * D, offset + HALF, b, 1 / scale)
