"""Linears whose frozen weights stay in fp8 (e4m3): half the memory of bf16, twice the matmul speed on Ada and newer.

A weight is fp8 values times one scale, as in the official fp8 files. On a GPU with fp8 tensor cores, activations and
gradients are quantized to fp8 too, with one scale per token. On other devices the weight is dequantized at each use.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(E4M3).max  # 448
MIN_SCALE = 1e-12  # the scale of a row of zeros


class Fp8Linear(nn.Linear):
    """x (...,in) -> x (weight_scale weight)^T + bias, with weight (out,in) in fp8."""

    weight_scale: Tensor  # () fp32
    weight_t: Tensor | None  # (in,out), cached for the matmul of input gradients; None: transposed at each use

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        out_features, in_features = weight.shape
        super().__init__(in_features, out_features, bias=bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("weight_scale", scale.float().reshape(()))
        self.register_buffer("weight_t", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = scaled_matmul(x, self.weight, self.weight_scale, self.weight_t)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as fp8 values and one fp32 scale (): weight = values * scale."""
    scale = (weight.abs().amax().float() / FP8_MAX).clamp(min=MIN_SCALE)
    return (weight.float() / scale).to(E4M3), scale


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """fp8 values (out,in) times their scale, () or one per output (out,), in `dtype`."""
    return (weight.float() * scale.reshape(-1, 1)).to(dtype)


def scaled_matmul(x: Tensor, weight: Tensor, scale: Tensor, weight_t: Tensor | None = None) -> Tensor:
    """x (...,in) times (scale weight)^T, for an fp8 weight (out,in) and a scale () or (out,).

    weight_t: the weight as a contiguous (in,out), if it is cached.
    """
    out: Tensor = _ScaledMatmul.apply(x, weight, scale, weight_t)
    return out


def column_major(weight: Tensor, weight_t: Tensor | None) -> Tensor:
    """The fp8 weight (out,in) in column-major memory, which the fp8 matmul of input gradients requires."""
    return (weight.t().contiguous() if weight_t is None else weight_t).t()


def weight_for_input_grad(weight: Tensor, scale: Tensor | None, weight_t: Tensor | None) -> Tensor:
    """The weight (out,in) in the layout that grad @ weight requires: column-major if it is in fp8, with a scale."""
    return weight if scale is None else column_major(weight, weight_t)


def quantized_matmul(x: Tensor, weight: Tensor, input_scale: Tensor | None, output_scale: Tensor | None) -> Tensor:
    """(x input_scale) @ weight * output_scale, in fp8: x (...,k) is quantized per row, weight (k,n) is column-major.

    input_scale (k,), output_scale () or (n,). The matmul kernel with one scale for the whole of x is faster than the
    kernel with a scale per row. It therefore runs without scales, and its output is multiplied by all scales, which
    torch.compile fuses into the next operation.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    values, row_scale = quantize_rows(rows if input_scale is None else rows * input_scale)
    out = unscaled_matmul(values, weight, x.dtype)
    output_scale = row_scale if output_scale is None else row_scale * output_scale
    return (out * output_scale).to(x.dtype).unflatten(0, x.shape[:-1])


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M,k) as fp8 values (M,k) and one fp32 scale per row (M,1)."""
    rows = rows.float()
    scale = (rows.abs().amax(-1, keepdim=True) / FP8_MAX).clamp(min=MIN_SCALE)
    return (rows / scale).to(E4M3), scale


def unscaled_matmul(values: Tensor, weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """fp8 values (M,k) @ fp8 weight (k,n), which is column-major; no scale is applied."""
    one = torch.ones((), dtype=torch.float32, device=values.device)
    return torch._scaled_mm(values, weight, one, one, out_dtype=dtype, use_fast_accum=True)


class _ScaledMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, weight_t: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale, weight_t)
        if supports_fp8_matmul(x):
            return quantized_matmul(x, weight.t(), None, scale)
        return F.linear(x, dequantize(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale, weight_t = ctx.saved_tensors
        if supports_fp8_matmul(grad):
            input_scale, output_scale = (scale, None) if scale.ndim else (None, scale)
            return quantized_matmul(grad, column_major(weight, weight_t), input_scale, output_scale), None, None, None
        return grad @ dequantize(weight, scale, grad.dtype), None, None, None


def supports_fp8_matmul(x: Tensor) -> bool:
    """Whether x is a bf16 tensor on a GPU with fp8 tensor cores."""
    return x.is_cuda and x.dtype == torch.bfloat16 and _has_fp8_tensor_cores(x.device.index)


@torch.compiler.assume_constant_result
def _has_fp8_tensor_cores(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 9)
