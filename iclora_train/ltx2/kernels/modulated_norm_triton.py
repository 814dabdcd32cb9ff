"""The kernel of `norm.norm_back` (Triton): one program has one token's whole row."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unmodulated(of_h, of_x, x, inverse, scale, level, gates, behind, found, rows, values, factor,
                tokens, level_clip, level_token, D: tl.constexpr, LEVELS: tl.constexpr, FP8: tl.constexpr,
                LARGEST: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """found = of_x + the gradient of x for that of its modulated norm; rows = found times the gates of its level, in
    fp8 too."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, D)
    clip = row // tokens
    own = tl.load(level + clip * level_clip + (row % tokens) * level_token).to(tl.int32)
    own = clip * LEVELS + tl.minimum(own, LEVELS - 1)
    at = row * D + column
    over = tl.load(inverse + row)
    seen = tl.load(x + at).to(tl.float32)
    g = tl.load(of_h + at).to(tl.float32) * (1 + tl.load(scale + own * D + column).to(tl.float32))
    along = tl.sum(g * seen) * over * over / D
    total = (tl.load(of_x + at).to(tl.float32) + over * (g - seen * along)).to(tl.bfloat16)
    tl.store(found + at, total)
    gated = (total.to(tl.float32) * tl.load(gates + own * D + column).to(tl.float32)).to(tl.bfloat16)
    tl.store(rows + at, gated)
    if FP8:
        gated = gated.to(tl.float32)
        own_scale = tl.maximum(tl.max(tl.abs(gated)) / LARGEST, LEAST)
        tl.store(factor + row, own_scale * tl.load(behind))
        tl.store(values + at, (gated / own_scale).to(tl.float8e4nv))
