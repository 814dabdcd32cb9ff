"""The kernels of `qkv`: norms and rotation of q and k, forwards and backwards (Triton).

One program has one token's whole row: D channels of q and of k each, as (heads, half of a head's channels) twice, of
which the first are rotated against the second.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _places(HEADS: tl.constexpr, HALF: tl.constexpr):
    """Where a row's first halves of heads are, in a row of channels and in a row of angles."""
    head, lane = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    return head * (2 * HALF) + lane, head * HALF + lane


@triton.jit
def _pair(start, at, HALF: tl.constexpr):
    """First and second halves."""
    return tl.load(start + at).to(tl.float32), tl.load(start + at + HALF).to(tl.float32)


@triton.jit
def _normed(raw, weight, cos, sin, out, inverse, at, eps, D: tl.constexpr, HALF: tl.constexpr):
    """One row of q or of k."""
    a, b = _pair(raw, at, HALF)
    over = tl.rsqrt((tl.sum(a * a) + tl.sum(b * b)) / D + eps)
    wa, wb = _pair(weight, at, HALF)
    a, b = a * over * wa, b * over * wb
    tl.store(out + at, (a * cos - b * sin).to(tl.bfloat16))
    tl.store(out + at + HALF, (b * cos + a * sin).to(tl.bfloat16))
    tl.store(inverse, over)


@triton.jit
def normed(raw, q_weight, k_weight, rope, q, k, inverse, n, eps, HEADS: tl.constexpr, HALF: tl.constexpr):
    """raw (n,2D) -> q, k (n,D), and the inverse root mean squares of both (2,n)."""
    D: tl.constexpr = 2 * HEADS * HALF
    row = tl.program_id(0).to(tl.int64)
    at, angle = _places(HEADS, HALF)
    cos = tl.load(rope + row * (D // 2) + angle).to(tl.float32)
    sin = tl.load(rope + (n + row) * (D // 2) + angle).to(tl.float32)
    _normed(raw + row * (2 * D), q_weight, cos, sin, q + row * D, inverse + row, at, eps, D, HALF)
    _normed(raw + row * (2 * D) + D, k_weight, cos, sin, k + row * D, inverse + n + row, at, eps, D, HALF)


@triton.jit
def normed_alone(raw, weight, out, inverse, eps, D: tl.constexpr):
    """raw (n,D) -> out (n,D), not rotated, and the inverse root mean squares (n,)."""
    row = tl.program_id(0).to(tl.int64)
    _normed(raw + row * D, weight, 1.0, 0.0, out + row * D, inverse + row, tl.arange(0, D // 2), eps, D, D // 2)


@triton.jit
def _unweighted(y, w, noise):
    """y / w where y = w x + noise of that variance and x has variance 1: its best estimate, also for w = 0."""
    return y * w / (w * w + noise)


@triton.jit
def _back(of_out, out, weight, over, cos, sin, at, D: tl.constexpr, HALF: tl.constexpr, ROUNDING: tl.constexpr):
    """Gradient of a row before its norm and rotation, given that of what came out and what came out."""
    ga, gb = _pair(of_out, at, HALF)
    a, b = _pair(out, at, HALF)
    wa, wb = _pair(weight, at, HALF)
    along = (tl.sum(ga * a) + tl.sum(gb * b)) / D  # a rotation changes no product
    noise = ROUNDING * (a * a + b * b) + 1e-30
    ya, yb = _unweighted(a * cos + b * sin, wa, noise), _unweighted(b * cos - a * sin, wb, noise)
    da = over * ((ga * cos + gb * sin) * wa - along * ya)
    db = over * ((gb * cos - ga * sin) * wb - along * yb)
    return da.to(tl.bfloat16), db.to(tl.bfloat16)


@triton.jit
def _rounded(start, at, value, scale):
    tl.store(start + at, (value.to(tl.float32) * scale).to(tl.float8e4nv))


@triton.jit
def _largest(a, b, scale):
    return tl.maximum(tl.max(tl.abs(a.to(tl.float32))), tl.max(tl.abs(b.to(tl.float32)))) * scale


@triton.jit
def unnormed(of_q, of_k, of_v, q, k, inverse, q_weight, k_weight, rope, column_scale, grad, values, row_scale, n,
             SPARE: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, FP8: tl.constexpr, ROUNDING: tl.constexpr,
             LARGEST: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """Gradients of q, k, v (n,D) -> of their products side by side, grad (n,3D + SPARE); times the column scales (3D,),
    one for each of the three, also in fp8, values (n,3D), with a scale of each row (n,)."""
    D: tl.constexpr = 2 * HEADS * HALF
    row = tl.program_id(0).to(tl.int64)
    at, angle = _places(HEADS, HALF)
    cos = tl.load(rope + row * (D // 2) + angle).to(tl.float32)
    sin = tl.load(rope + (n + row) * (D // 2) + angle).to(tl.float32)
    over_q, over_k = tl.load(inverse + row), tl.load(inverse + n + row)
    qa, qb = _back(of_q + row * D, q + row * D, q_weight, over_q, cos, sin, at, D, HALF, ROUNDING)
    ka, kb = _back(of_k + row * D, k + row * D, k_weight, over_k, cos, sin, at, D, HALF, ROUNDING)
    va, vb = tl.load(of_v + row * D + at), tl.load(of_v + row * D + at + HALF)
    own = grad + row * (3 * D + SPARE)
    tl.store(own + at, qa)
    tl.store(own + at + HALF, qb)
    tl.store(own + D + at, ka)
    tl.store(own + D + at + HALF, kb)
    tl.store(own + 2 * D + at, va)
    tl.store(own + 2 * D + at + HALF, vb)
    if FP8:
        sq, sk, sv = tl.load(column_scale), tl.load(column_scale + D), tl.load(column_scale + 2 * D)
        most = tl.maximum(tl.maximum(_largest(qa, qb, sq), _largest(ka, kb, sk)), _largest(va, vb, sv))
        scale = tl.maximum(most / LARGEST, LEAST)
        tl.store(row_scale + row, scale)
        to = values + row * (3 * D)
        _rounded(to, at, qa, sq / scale)
        _rounded(to, at + HALF, qb, sq / scale)
        _rounded(to + D, at, ka, sk / scale)
        _rounded(to + D, at + HALF, kb, sk / scale)
        _rounded(to + 2 * D, at, va, sv / scale)
        _rounded(to + 2 * D, at + HALF, vb, sv / scale)


@triton.jit
def unnormed_alone(of_out, out, inverse, weight, column_scale, grad, values, row_scale,
                   SPARE: tl.constexpr, D: tl.constexpr, FP8: tl.constexpr, ROUNDING: tl.constexpr,
                   LARGEST: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """Gradient of what `normed_alone` gave (n,D) -> of what it was made from, grad (n,D + SPARE); in fp8 too, values
    (n,D), with a scale of each row (n,), which has the scale of the weight in it that is multiplied with them."""
    HALF: tl.constexpr = D // 2
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, HALF)
    over = tl.load(inverse + row)
    a, b = _back(of_out + row * D, out + row * D, weight, over, 1.0, 0.0, at, D, HALF, ROUNDING)
    tl.store(grad + row * (D + SPARE) + at, a)
    tl.store(grad + row * (D + SPARE) + at + HALF, b)
    if FP8:
        scale = tl.maximum(_largest(a, b, 1.0) / LARGEST, LEAST)
        tl.store(row_scale + row, scale * tl.load(column_scale))
        _rounded(values + row * D, at, a, 1 / scale)
        _rounded(values + row * D, at + HALF, b, 1 / scale)
