"""The end of attention as one autograd function: head gate, output linear with LoRA, gated residual, and the next norm.

LoRA's term is added in a matmul's epilogue, in forward and in backward. Norm, residual and gate share one backward
kernel (`norm_back`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from iclora_train.ltx2.kernels.dispatch import is_power_of_two
from iclora_train.ltx2.kernels.fp8_linear import weight_for_input_grad
from iclora_train.ltx2.kernels.lora_linear import base_linear, factors_of, operands
from iclora_train.ltx2.kernels.lora_product import (
    CHANNELS,
    base_matmul_with_scale,
    lora_b_backward,
    matmul,
    supports_lora_kernels,
)
from iclora_train.ltx2.kernels.modulated_norm import ModulatedNorm, modulated_norm, norm_back
from iclora_train.ltx2.kernels.modulation import GatedResidual, gate_heads

ADD_TILE = (64, 4)  # of `add_gated`: rows, warps
BACK_TILE = (32, 4, 2)  # of `gate_back`: rows, warps, pipeline stages
PARTS = 8  # groups of rows; each has its own partial sum of the gradient of A


def supports_residual(residual: GatedResidual) -> bool:
    """Whether `add_gated` takes the residual. It computes no gradient of the gates."""
    x, gates = residual.x, residual.gates
    return x.shape[-1] % CHANNELS == 0 and not gates.requires_grad and gates.dtype == x.dtype


def supports_attention_out(out: Tensor, layer: nn.Module, residual: GatedResidual) -> bool:
    """Whether `fused_attention_out` takes attention outputs (B,n,heads,head_dim)."""
    linear, factors, head_dim = base_linear(layer), factors_of(layer), out.shape[-1]
    if factors is None or not is_power_of_two(head_dim) or not 16 <= head_dim <= CHANNELS:
        return False
    if not supports_residual(residual) or not is_power_of_two(linear.out_features):
        return False
    return supports_lora_kernels(out, operands(linear).scale, [len(factors[0])], [linear.out_features])


def fused_attention_out(
    out: Tensor, gate: Tensor, layer: nn.Module, residual: GatedResidual, norm: ModulatedNorm
) -> tuple[Tensor, Tensor]:
    """Attention outputs (B,n,heads,head_dim) and gate logits (B,n,heads) -> the residual stream plus the gated
    layer(2 sigmoid(gate) out), and the norm of that sum; both (B,n,D)."""
    factors = factors_of(layer)
    assert factors is not None
    lora_a, lora_b = (factor.to(out.dtype) for factor in factors)
    outputs: tuple[Tensor, Tensor] = _FusedAttentionOut.apply(
        out, gate, *operands(base_linear(layer)), lora_a, lora_b, *residual, *norm
    )
    return outputs


class _FusedAttentionOut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, out: Tensor, gate: Tensor, weight: Tensor, scale: Tensor | None, weight_t: Tensor | None,
        bias: Tensor | None, _stacked: Tensor | None, lora_a: Tensor, lora_b: Tensor, x: Tensor, gates: Tensor,
        level: Tensor, norm_scale: Tensor, norm_shift: Tensor, eps: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows = gate_heads(out, gate).flatten(2).flatten(0, 1)
        u = rows @ lora_a.t()
        product, row_scale = base_matmul_with_scale(rows, weight.t(), scale)
        x_out = add_gated(product, row_scale, bias, u, lora_b, x.contiguous(), gates.contiguous(), level)
        normed, rstd = modulated_norm(x_out, ModulatedNorm(norm_scale, norm_shift, eps), level)
        norm_tensors = x_out, rstd, norm_scale, level, gates
        ctx.save_for_backward(out, gate, weight, scale, weight_t, lora_a, lora_b, u, *norm_tensors)
        return x_out, normed

    @staticmethod
    def backward(ctx: Any, grad_x_out: Tensor, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
        out, gate, weight, scale, weight_t, lora_a, lora_b, u, x_out, rstd, norm_scale, level, gates = ctx.saved_tensors
        norm_inputs = grad_normed.contiguous(), grad_x_out.contiguous(), x_out, rstd, norm_scale.contiguous()
        grad_x, rows, values, row_scale = norm_back(*norm_inputs, level, gates.contiguous(), scale)
        operand: tuple[Tensor, Tensor | None] = (rows, None) if scale is None else (values, row_scale)
        product = matmul(*operand, weight_for_input_grad(weight, scale, weight_t))
        grad_u, grad_b = lora_b_backward(rows, u, lora_b)
        grad_out, grad_gate, grad_a = gate_back(
            product, operand[1], grad_u, lora_a, out.contiguous(), gate.contiguous()
        )
        return grad_out, grad_gate, *[None] * 5, grad_a.sum(0).to(lora_a.dtype), grad_b, grad_x, *[None] * 5


@torch.library.custom_op("iclora_train::add_gated", mutates_args=())
def add_gated(
    product: Tensor, row_scale: Tensor | None, bias: Tensor | None, u: Tensor, lora_b: Tensor, x: Tensor, gates: Tensor,
    level: Tensor,
) -> Tensor:  # fmt: skip
    """x (B,n,D) + gate * [product (B n,D) row_scale (B n,) + bias (D,) + u (B n,R) @ lora_b^T (R,D)].

    gates (B,K,D), level (B,n) picks each token's gate. row_scale is fp32.
    """
    import triton  # noqa: PLC0415 (absent without a GPU)

    from iclora_train.ltx2.kernels.lora_product_triton import gated_residual  # noqa: PLC0415

    rows, width = product.shape
    out, (tile, warps) = torch.empty_like(x), ADD_TILE
    gated_residual[(triton.cdiv(rows, tile), width // CHANNELS)](
        product, row_scale, bias, u, lora_b, x, gates, level, out, rows, x.shape[1], level.stride(0), level.stride(1),
        width, u.shape[1], gates.shape[1], tile, CHANNELS, row_scale is not None, bias is not None, num_warps=warps,
    )  # fmt: skip
    return out


@add_gated.register_fake
def _(
    product: Tensor, row_scale: Tensor | None, bias: Tensor | None, u: Tensor, lora_b: Tensor, x: Tensor, *rest: Any
) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("iclora_train::gate_back", mutates_args=())
def gate_back(
    product: Tensor, row_scale: Tensor | None, grad_u: Tensor, lora_a: Tensor, out: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of gated = 2 sigmoid(gate) out and u = gated lora_a^T, for out (B,n,heads,head_dim), gate (B,n,heads).

    The gradient of gated is product (B n,D) row_scale (B n,) + grad_u (B n,R) @ lora_a (R,D). Returns the gradients of
    out, of gate, and of lora_a as fp32 partial sums (PARTS,R,D).
    """
    import triton  # noqa: PLC0415

    from iclora_train.ltx2.kernels.lora_product_triton import head_gate_backward  # noqa: PLC0415

    (rows, width), (tile, warps, stages) = product.shape, BACK_TILE
    grad_out, grad_gate, grad_a = _empty_grads(out, gate, lora_a)
    heads, channels = out.shape[2:]
    head_gate_backward[(heads, PARTS)](
        product, row_scale, grad_u, lora_a, out, gate, grad_out, grad_gate, grad_a, rows,
        triton.cdiv(rows, tile * PARTS),
        width, heads, grad_u.shape[1], tile, channels, row_scale is not None, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return grad_out, grad_gate, grad_a


@gate_back.register_fake
def _(
    product: Tensor, row_scale: Tensor | None, grad_u: Tensor, lora_a: Tensor, out: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_grads(out, gate, lora_a)


def _empty_grads(out: Tensor, gate: Tensor, lora_a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_a = lora_a.new_empty(PARTS, *lora_a.shape, dtype=torch.float32)
    return torch.empty_like(out), torch.empty_like(gate), grad_a
