"""RMS norm modulated by a token's noise level (AdaLN), and a backward pass that includes the residual and its gate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from iclora_train.ltx2.kernels.fp8_linear import E4M3, FP8_MAX, MIN_SCALE
from iclora_train.ltx2.kernels.modulation import pick, rms_norm

WARPS = 8


class ModulatedNorm(NamedTuple):
    """rms_norm(x) * (1 + scale) + shift, with a scale and a shift (B,K,D) for each noise level."""

    scale: Tensor
    shift: Tensor
    eps: float

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """x (B,n,D), level (B,n) -> (B,n,D)."""
        return rms_norm(x, self.eps) * (1 + pick(self.scale, level)) + pick(self.shift, level)


def modulated_norm(x: Tensor, norm: ModulatedNorm, level: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of x (B,n,D), and rstd (B,n,1) in fp32: the inverse root mean square of each token."""
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + norm.eps)
    normed = (x.float() * rstd).to(x.dtype)
    return normed * (1 + pick(norm.scale, level)) + pick(norm.shift, level), rstd


@torch.library.custom_op("iclora_train::norm_back", mutates_args=())
def norm_back(
    grad_norm: Tensor, grad_residual: Tensor, x: Tensor, rstd: Tensor, scale: Tensor, level: Tensor, gates: Tensor,
    weight_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of x -> (`modulated_norm` of x, x), where x = residual + gate * linear(...).

    Returns grad_x (B,n,D), the sum of both gradients; and gate * grad_x as rows (B n,D), the gradient of the linear's
    output. If that linear is in fp8 with weight_scale (), the rows come quantized too: values (B n,D) and
    row_scale (B n,) in fp32, which includes weight_scale. Else both are empty.
    """
    from iclora_train.ltx2.kernels.modulated_norm_triton import modulated_norm_backward  # noqa: PLC0415 (needs Triton)

    grad_x, rows, values, row_scale = _empty_outputs(x, weight_scale)
    modulated_norm_backward[(len(rows),)](
        grad_norm, grad_residual, x, rstd, scale, level, gates, weight_scale, grad_x, rows, values, row_scale,
        x.shape[1], level.stride(0), level.stride(1), x.shape[-1], scale.shape[1], weight_scale is not None,
        FP8_MAX, MIN_SCALE, num_warps=WARPS,
    )  # fmt: skip
    return grad_x, rows, values, row_scale


@norm_back.register_fake
def _(
    grad_norm: Tensor, grad_residual: Tensor, x: Tensor, rstd: Tensor, scale: Tensor, level: Tensor, gates: Tensor,
    weight_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_outputs(x, weight_scale)


def _empty_outputs(x: Tensor, weight_scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, width = x.shape[0] * x.shape[1], x.shape[2]
    n_fp8 = 0 if weight_scale is None else n
    values = x.new_empty(n_fp8, width, dtype=E4M3)
    return torch.empty_like(x), x.new_empty(n, width), values, x.new_empty(n_fp8, dtype=torch.float32)
