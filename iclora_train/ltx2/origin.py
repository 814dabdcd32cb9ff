"""What a modulated norm came from, and gradients of products with it that do not want it computed again.

Between the norm and a linear lies what differs from token to token in one factor only, the inverse root mean square;
scale and shift are those of a few noise levels. So t^T h, for the h that a linear read, is a sum over levels of
products with the norm's own input, which the backward pass keeps anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from iclora_train.ltx2.modulation import pick


class Origin(NamedTuple):
    """h (B,n,D) = x inverse (1 + scale) + shift of a token's level: x (B,n,D), inverse (B,n,1) fp32, scale and shift
    (B,K,D), level (B,n)."""

    x: Tensor
    inverse: Tensor
    scale: Tensor
    shift: Tensor
    level: Tensor


def modulated(x: Tensor, scale: Tensor, shift: Tensor, level: Tensor, eps: float) -> tuple[Tensor, Origin]:
    """The RMS norm of x (B,n,D), modulated, and what it came from."""
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    normed = (x.float() * inverse).to(x.dtype)
    found = normed * (1 + pick(scale, level)) + pick(shift, level)
    return found, Origin(x, inverse, scale, shift, level)


def across_tokens(t: Tensor, seen: Sequence[Tensor]) -> Tensor:
    """t^T h (r,D) for t (B n,r) and what is kept of h (B,n,D): itself alone, or its origin."""
    if len(seen) == 1:
        return t.t() @ seen[0].flatten(0, -2)
    x, inverse, scale, shift, level = seen
    batch, levels, _ = scale.shape
    own = t.unflatten(0, x.shape[:2])  # (B,n,r)
    chosen = level.clamp(max=levels - 1)[..., None] == torch.arange(levels, device=level.device)  # (B,n,K)
    parts = own[:, :, None] * (chosen * inverse)[..., None]  # (B,n,K,r)
    rows = parts.to(t.dtype).flatten(2).mT  # (B,K r,n)
    products = rows @ x if batch > 1 else (rows[0] @ x[0])[None]  # one clip's is no batched product: that is slower
    scaled = products.unflatten(1, (levels, -1)) * (1 + scale.float())[:, :, None]  # (B,K,r,D)
    shifted = (chosen.to(t.dtype).mT @ own)[..., None] * shift.float()[:, :, None]
    return (scaled + shifted).sum((0, 1)).to(t.dtype)
