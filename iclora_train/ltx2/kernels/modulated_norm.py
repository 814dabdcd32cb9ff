"""Norms that a token's noise level modulates, and what goes back through them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.fp8_linear import E4M3, LARGEST, LEAST
from iclora_train.ltx2.kernels.modulation import pick, rms_norm

WARPS = 8


class Norm(NamedTuple):
    """An RMS norm that is modulated by a token's noise level: scale and shift (B,K,D)."""

    scale: Tensor
    shift: Tensor
    eps: float

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """x (B,n,D) -> (B,n,D)."""
        return rms_norm(x, self.eps) * (1 + pick(self.scale, level)) + pick(self.shift, level)


def modulated(x: Tensor, norm: Norm, level: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of x (B,n,D), and the inverse root mean squares (B,n,1) fp32."""
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + norm.eps)
    even = (x.float() * inverse).to(x.dtype)
    return even * (1 + pick(norm.scale, level)) + pick(norm.shift, level), inverse


@torch.library.custom_op("iclora_train::norm_back", mutates_args=())
def norm_back(
    of_h: Tensor, of_x: Tensor, x: Tensor, inverse: Tensor, scale: Tensor, level: Tensor, gates: Tensor,
    behind: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradient of x (B,n,D), that of its norm (`modulated`) and what comes beside it being given; and that times gates
    (B,K,D) of a token's level, as rows (B n,D). Where the weight behind those has a scale (), they are in fp8 too, with
    a factor of each row (B n,) that has that scale in it."""
    from iclora_train.ltx2.kernels.modulated_norm_triton import unmodulated  # noqa: PLC0415 (needs Triton)

    found, rows, values, factor = _grads_like(x, behind)
    unmodulated[(len(rows),)](
        of_h, of_x, x, inverse, scale, level, gates, behind, found, rows, values, factor,
        x.shape[1], level.stride(0), level.stride(1), x.shape[-1], scale.shape[1], behind is not None, LARGEST, LEAST,
        num_warps=WARPS,
    )  # fmt: skip
    return found, rows, values, factor


@norm_back.register_fake
def _(
    of_h: Tensor, of_x: Tensor, x: Tensor, inverse: Tensor, scale: Tensor, level: Tensor, gates: Tensor,
    behind: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _grads_like(x, behind)


def _grads_like(x: Tensor, behind: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, width = x.shape[0] * x.shape[1], x.shape[2]
    rounded = 0 if behind is None else n
    values = x.new_empty(rounded, width, dtype=E4M3)
    return torch.empty_like(x), x.new_empty(n, width), values, x.new_empty(rounded, dtype=torch.float32)
