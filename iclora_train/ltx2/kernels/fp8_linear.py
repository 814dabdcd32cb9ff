"""Linears whose weights stay in fp8: half the memory of bf16, and on Ada and newer GPUs products at twice the speed.

The weight is one tensor times one scale, as the official fp8 files have it. On such a GPU activations, and in the
backward pass gradients, are rounded to fp8 too, each token with a scale of its own; elsewhere the weight is widened and
forgotten again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
LEAST = 1e-12  # scale of a row of zeros


class Fp8Linear(nn.Linear):
    """x (..., in) -> x (scale weight)^T + bias, weight (out,in) in fp8."""

    weight_scale: Tensor  # () fp32
    weight_t: Tensor | None  # (in,out): the weight as the gradient's product wants it; else that is made at each use

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, bias=bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("weight_scale", scale.float().reshape(()))
        self.register_buffer("weight_t", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = scaled_product(x, self.weight, self.weight_scale, self.weight_t)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as fp8 values and the scalar fp32 scale that they are multiplied with."""
    scale = (weight.abs().amax().float() / LARGEST).clamp(min=LEAST)
    return (weight.float() / scale).to(E4M3), scale


def scaled_product(x: Tensor, weight: Tensor, scale: Tensor, turned: Tensor | None = None) -> Tensor:
    """x (..., in) times (scale weight)^T: fp8 weight (out,in), one scale () or one for each output (out,); `turned` is
    the weight as (in,out) in memory, if there is one."""
    product: Tensor = _Product.apply(x, weight, scale, turned)
    return product


def by_column(weight: Tensor, turned: Tensor | None) -> Tensor:
    """A weight (out,in) lying column by column, as products of gradients want it."""
    return (weight.t().contiguous() if turned is None else turned).t()


def across(weight: Tensor, scale: Tensor | None, turned: Tensor | None) -> Tensor:
    """A weight (out,in), with a scale where it is fp8, as products of gradients want it."""
    return weight if scale is None else by_column(weight, turned)


def widened(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """fp8 values (out,in) times their scale () or (out,), in `dtype`."""
    return (weight.float() * scale.reshape(-1, 1)).to(dtype)


def rounded_product(x: Tensor, weight: Tensor, before: Tensor | None, behind: Tensor | None) -> Tensor:
    """x (..., k) times weight (k,n), both in fp8; x times `before` (k,), the product times `behind` () or (n,).

    The weight lies column by column. x is rounded with a scale per row. The kernel knows one scale for all of x, and is
    faster than the one that knows a scale per row: so all scales are multiplied on behind it, where a compiler joins
    that to what follows.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    values, row_scale = round_rows(rows if before is None else rows * before)
    product = raw_product(values, weight, x.dtype)
    behind = row_scale if behind is None else row_scale * behind
    return (product * behind).to(x.dtype).unflatten(0, x.shape[:-1])


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M,k) in fp8, and the scale of each (M,1) fp32."""
    rows = rows.float()
    scale = (rows.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=LEAST)
    return (rows / scale).to(E4M3), scale


def raw_product(values: Tensor, weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """fp8 values (M,k) times fp8 weight (k,n), which lies column by column, without their scales."""
    one = torch.ones((), dtype=torch.float32, device=values.device)
    return torch._scaled_mm(values, weight, one, one, out_dtype=dtype, use_fast_accum=True)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, turned: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale, turned)
        if multiplies_fp8(x):
            return rounded_product(x, weight.t(), None, scale)
        return F.linear(x, widened(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale, turned = ctx.saved_tensors
        if multiplies_fp8(grad):
            before, behind = (scale, None) if scale.ndim else (None, scale)
            return rounded_product(grad, by_column(weight, turned), before, behind), None, None, None
        return grad @ widened(weight, scale, grad.dtype), None, None, None


def multiplies_fp8(x: Tensor) -> bool:
    """Whether x lies where fp8 products are computed in hardware."""
    return x.is_cuda and x.dtype == torch.bfloat16 and _has_fp8_units(x.device.index)


@torch.compiler.assume_constant_result
def _has_fp8_units(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 9)
