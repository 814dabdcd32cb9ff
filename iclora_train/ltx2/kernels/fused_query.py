"""The query of text attention as one autograd function: linear with LoRA, norm, and the head gate of the same input.

As in `fused_qkv`, backward reconstructs the norm's input from the query, which attention saves anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from iclora_train.ltx2.kernels.dispatch import is_power_of_two
from iclora_train.ltx2.kernels.fp8_linear import E4M3, FP8_MAX, MIN_SCALE, weight_for_input_grad
from iclora_train.ltx2.kernels.fused_qkv import ROUNDING
from iclora_train.ltx2.kernels.lora_linear import base_linear, lora_ranks, operands, stack_factors
from iclora_train.ltx2.kernels.lora_product import (
    CHANNELS,
    add_lora_term,
    base_matmul_with_scale,
    input_grad,
    lora_backward,
    supports_lora_kernels,
)
from iclora_train.ltx2.kernels.stacked_weight import spare_columns

WARPS = 4


def supports_query(x: Tensor, layer: nn.Module) -> bool:
    """Whether `fused_query` takes x: LoRA as `lora_product` needs it, and output channels that are a power of two."""
    linear = base_linear(layer)
    width = linear.out_features
    if not is_power_of_two(width) or x.shape[-1] % CHANNELS:
        return False
    return supports_lora_kernels(x, operands(linear).scale, lora_ranks([layer]), [width])


def fused_query(x: Tensor, layer: nn.Module, gate: nn.Linear | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor | None]:
    """x (B,n,in) -> the normalised query (B,n,D), and the gate logits (B,n,heads) if there is a gate."""
    linear = base_linear(layer)
    factors = stack_factors(x, [layer], [linear.out_features], gate)
    query, logits = _FusedQuery.apply(x, *operands(linear), *factors, norm.weight.to(x.dtype), norm.eps)
    return query, None if gate is None else logits + gate.bias


class _FusedQuery(torch.autograd.Function):
    """down_weight: LoRA's A with the gate's weight below it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, weight_t: Tensor | None, bias: Tensor | None,
        stacked: Tensor | None, down_weight: Tensor, lora_b: Tensor, norm: Tensor, eps: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows = x.flatten(0, -2)
        u, gate = (rows @ down_weight.t()).tensor_split([lora_b.shape[1]], -1)
        product, row_scale = base_matmul_with_scale(rows, weight.t(), scale)
        query, rstd = query_norm(add_lora_term(product, row_scale, bias, u, lora_b.t()), norm, eps)
        query = query.unflatten(0, x.shape[:-1])
        ctx.save_for_backward(x, weight, scale, weight_t, stacked, u, down_weight, lora_b, norm, query, rstd)
        return query, gate.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad_query: Tensor, grad_gate: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, weight_t, stacked, u, down_weight, lora_b, norm, query, rstd = ctx.saved_tensors
        spare = spare_columns(stacked, weight, len(down_weight))
        grad, values, row_scale = query_norm_back(grad_query.contiguous(), query.contiguous(), rstd, norm, scale, spare)
        grad_linear = grad[:, : len(weight)]
        grad_down, grad_down_weight, grad_b = lora_backward(
            grad_linear, grad_gate.flatten(0, -2), x.flatten(0, -2), u, lora_b
        )
        operand: tuple[Tensor, Tensor | None] = (grad, None) if scale is None else (values, row_scale)
        grad_x = input_grad(*operand, weight_for_input_grad(weight, scale, weight_t), grad_down, down_weight, stacked)
        return grad_x.view_as(x), None, None, None, None, None, grad_down_weight, grad_b, None, None


@torch.library.custom_op("iclora_train::norm_alone", mutates_args=())
def query_norm(raw: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMS norm of raw (n,D) with weights (D,), and rstd (n,) in fp32: the inverse root mean squares."""
    from iclora_train.ltx2.kernels.fused_qkv_triton import rms_norm_forward  # noqa: PLC0415 (needs Triton)

    n, width = raw.shape
    out, rstd = torch.empty_like(raw), raw.new_empty(n, dtype=torch.float32)
    rms_norm_forward[(n,)](raw, weight, out, rstd, eps, width, num_warps=WARPS)
    return out, rstd


@query_norm.register_fake
def _(raw: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(raw), raw.new_empty(len(raw), dtype=torch.float32)


@torch.library.custom_op("iclora_train::norm_alone_back", mutates_args=())
def query_norm_back(
    grad_query: Tensor, query: Tensor, rstd: Tensor, norm: Tensor, scale: Tensor | None, spare: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of `query_norm`, given its output `query` (...,D) and the gradient grad_query.

    Returns the gradient of raw (n, D + spare), whose last `spare` columns are uninitialised. If the query's linear is
    in fp8 with a scale (), the gradient comes quantized too: values (n,D), and row_scale (n,), which includes that
    scale. Else both are empty.
    """
    from iclora_train.ltx2.kernels.fused_qkv_triton import rms_norm_backward  # noqa: PLC0415

    grad, values, row_scale = _empty_grads(query, scale, spare)
    rms_norm_backward[(len(grad),)](
        grad_query, query, rstd, norm, scale, grad, values, row_scale, spare,
        query.shape[-1], scale is not None, ROUNDING, FP8_MAX, MIN_SCALE, num_warps=WARPS,
    )  # fmt: skip
    return grad, values, row_scale


@query_norm_back.register_fake
def _(
    grad_query: Tensor, query: Tensor, rstd: Tensor, norm: Tensor, scale: Tensor | None, spare: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_grads(query, scale, spare)


def _empty_grads(query: Tensor, scale: Tensor | None, spare: int) -> tuple[Tensor, Tensor, Tensor]:
    width = query.shape[-1]
    n = query.numel() // width
    n_fp8 = 0 if scale is None else n
    grad = query.new_empty(n, width + spare)
    return grad, query.new_empty(n_fp8, width, dtype=E4M3), query.new_empty(n_fp8, dtype=torch.float32)
