"""Linears whose weights stay in fp8: half the memory of bf16, and on Ada and newer GPUs products at twice the speed.

The weight is one tensor times one scale, as the official fp8 files have it. On such a GPU activations are rounded to
fp8 too, each token with a scale of its own; elsewhere, and for the gradient, the weight is widened and forgotten again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
_LEAST = 1e-12  # scale of a row of zeros


class Fp8Linear(nn.Linear):
    """x (..., in) -> x (scale weight)^T + bias, weight (out,in) in fp8."""

    weight_scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, bias=bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("weight_scale", scale.float().reshape(1, 1).repeat(1, outputs))  # as the product wants it

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self.weight, self.weight_scale, self.bias)
        return out


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as fp8 values and the scalar fp32 scale that they are multiplied with."""
    scale = (weight.abs().amax().float() / LARGEST).clamp(min=_LEAST)
    return (weight.float() / scale).to(E4M3), scale


def widened(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """fp8 values (out,in) times their scale, in `dtype`."""
    return (weight.float() * scale[:, :1]).to(dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        if not _multiplies_fp8(x):
            return F.linear(x, widened(weight, scale, x.dtype), bias)
        rows = x.reshape(-1, x.shape[-1])
        row_scale = (rows.abs().amax(-1, keepdim=True).float() / LARGEST).clamp(min=_LEAST)
        product = torch._scaled_mm(
            (rows / row_scale).to(E4M3), weight.t(), row_scale, scale, bias, out_dtype=x.dtype, use_fast_accum=True
        )
        return product.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return grad @ widened(weight, scale, grad.dtype), None, None, None


def _multiplies_fp8(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (8, 9)
