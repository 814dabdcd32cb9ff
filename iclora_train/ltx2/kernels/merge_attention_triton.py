"""The Triton kernel of `merge_attention`."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merge(out, lse, other_out, other_lse, n,
          out_b, out_h, out_n, out_d, lse_b, lse_h, lse_n,
          other_b, other_h, other_n, other_d, other_lse_b, other_lse_h, other_lse_n,
          D: tl.constexpr, PADDED_D: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """out += sigmoid(other_lse - lse) (other_out - out); lse = log(e^lse + e^other_lse), in place.

    The strides of the four tensors follow in their order. PADDED_D is D or the next power of two.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, PADDED_D)
    row_mask = row < n
    mask = row_mask[:, None] & (channel < D)[None, :]
    lse_ptr = lse + batch * lse_b + head * lse_h + row * lse_n
    a = tl.load(lse_ptr, mask=row_mask, other=0.0)
    b = tl.load(other_lse + batch * other_lse_b + head * other_lse_h + row * other_lse_n, mask=row_mask, other=0.0)
    highest = tl.maximum(a, b)
    share = 1 / (1 + tl.exp(a - b))  # the other result's share of the probabilities
    tl.store(lse_ptr, highest + tl.log(1 + tl.exp(tl.minimum(a, b) - highest)), mask=row_mask)
    out_ptr = out + batch * out_b + head * out_h + row[:, None] * out_n + channel[None, :] * out_d
    old = tl.load(out_ptr, mask=mask, other=0.0).to(tl.float32)
    other_ptr = other_out + batch * other_b + head * other_h + row[:, None] * other_n + channel[None, :] * other_d
    other = tl.load(other_ptr, mask=mask, other=0.0)
    merged = old + share[:, None] * (other.to(tl.float32) - old)
    tl.store(out_ptr, merged.to(out.dtype.element_ty), mask=mask)
