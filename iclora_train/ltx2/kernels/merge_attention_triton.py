"""The kernel of `joining.join` (Triton)."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def joined(out, total, more, theirs, n,
           ob, oh, on, od, tb, th, tn, mb, mh, mn, md, sb, sh, sn,
           D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """out += sigmoid(theirs - total) (more - out); total = log(e^total + e^theirs). Strides follow the tensors."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head, clip = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    lane = tl.arange(0, WIDE)
    real = row < n
    inside = real[:, None] & (lane < D)[None, :]
    at = total + clip * tb + head * th + row * tn
    a = tl.load(at, mask=real, other=0.0)
    b = tl.load(theirs + clip * sb + head * sh + row * sn, mask=real, other=0.0)
    most = tl.maximum(a, b)
    share = 1 / (1 + tl.exp(a - b))  # of theirs
    tl.store(at, most + tl.log(1 + tl.exp(tl.minimum(a, b) - most)), mask=real)
    place = out + clip * ob + head * oh + row[:, None] * on + lane[None, :] * od
    ours = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(more + clip * mb + head * mh + row[:, None] * mn + lane[None, :] * md, mask=inside, other=0.0)
    value = ours + share[:, None] * (other.to(tl.float32) - ours)
    tl.store(place, value.to(out.dtype.element_ty), mask=inside)
