"""The feed-forward with LoRA on both linears, GELU and the gated residual as one autograd function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.ltx2.kernels.dispatch import LORA_RANKS, supports_triton
from iclora_train.ltx2.kernels.feed_forward_ops import gelu_back, gelu_up
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, supports_fp8_matmul, unscaled_matmul, weight_for_input_grad
from iclora_train.ltx2.kernels.fused_attention_out import add_gated, supports_residual
from iclora_train.ltx2.kernels.lora_linear import base_linear, factors_of, operands
from iclora_train.ltx2.kernels.lora_product import base_matmul_with_scale, input_grad, lora_b_backward
from iclora_train.ltx2.kernels.modulation import GatedResidual, pick
from iclora_train.ltx2.kernels.stacked_weight import spare_columns

_CHANNELS = 1024  # divides the number of hidden channels: the kernels' parts times their smallest tile


def fused_feed_forward(x: Tensor, first: nn.Module, second: nn.Module, residual: GatedResidual) -> Tensor | None:
    """The residual stream plus the gated second(gelu(first(x))), for linears with LoRA of one rank.

    None if the kernels do not apply.
    """
    factors = factors_of(first), factors_of(second)
    if not supports_triton(x) or factors[0] is None or factors[1] is None or not supports_residual(residual):
        return None
    linear1, linear2 = base_linear(first), base_linear(second)
    ranks = {factors[0][0].shape[0], factors[1][0].shape[0]}
    if len(ranks) > 1 or not ranks <= set(LORA_RANKS) or linear1.out_features % _CHANNELS:
        return None
    fp8 = {isinstance(linear, Fp8Linear) for linear in (linear1, linear2)}
    if len(fp8) > 1 or (fp8 == {True} and not supports_fp8_matmul(x)):
        return None
    out: Tensor = _FusedFeedForward.apply(
        x, *operands(linear1), *factors[0], *operands(linear2), *factors[1], *residual
    )
    return out


class _FusedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor,
        w1: Tensor, s1: Tensor | None, w1_t: Tensor | None, bias1: Tensor | None, stacked1: Tensor | None,
        a1: Tensor, b1: Tensor,
        w2: Tensor, s2: Tensor | None, w2_t: Tensor | None, bias2: Tensor | None, _stacked2: Tensor | None,
        a2: Tensor, b2: Tensor,
        residual: Tensor, gates: Tensor, level: Tensor,
    ) -> Tensor:  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])
        lora_a1, lora_b1, lora_a2, lora_b2 = (factor.to(x.dtype) for factor in (a1, b1, a2, b2))
        u1 = F.linear(rows, lora_a1)  # (N,R)
        product, scale = base_matmul_with_scale(rows, w1.t(), s1)
        hidden, activated, activated_scale, u2 = gelu_up(product, scale, u1, lora_b1, bias1, lora_a2, s1 is not None)
        row_scale = None if s2 is None else activated_scale * s2
        product = activated @ w2.t() if s2 is None else unscaled_matmul(activated, w2.t())
        weights = w1, s1, w1_t, stacked1, w2, s2, w2_t
        ctx.save_for_backward(x, u1, hidden, u2, *weights, a1, b1, a2, b2, gates, level)
        return add_gated(product, row_scale, bias2, u2, lora_b2, residual.contiguous(), gates.contiguous(), level)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, u1, hidden, u2, *weights, a1, b1, a2, b2, gates, level = ctx.saved_tensors
        w1, s1, w1_t, stacked1, w2, s2, w2_t = weights
        rows, fp8 = (grad * pick(gates, level)).reshape(-1, grad.shape[-1]), s1 is not None
        lora_a1, lora_b1, lora_a2, lora_b2 = (factor.to(grad.dtype) for factor in (a1, b1, a2, b2))
        grad_u2, grad_b2 = lora_b_backward(rows, u2, lora_b2)  # (N,R), (D,R)
        product, scale = base_matmul_with_scale(rows, weight_for_input_grad(w2, s2, w2_t), s2)
        spare = spare_columns(stacked1, w1, len(lora_a1))
        grad_hidden, hidden_scale, grad_u1, *parts = gelu_back(
            product, scale, grad_u2, lora_a2, hidden, lora_b1, u1, fp8, spare
        )
        grad_a2, grad_b1 = (part.sum(0) for part in parts)
        row_scale = None if s1 is None else hidden_scale * s1
        weight = weight_for_input_grad(w1, s1, w1_t)
        grad_x = input_grad(grad_hidden, row_scale, weight, grad_u1, lora_a1, stacked1).view_as(x)
        grad_a1 = grad_u1.t() @ x.reshape(-1, x.shape[-1])
        return (
            grad_x, None, None, None, None, None, grad_a1.to(a1.dtype), grad_b1.to(b1.dtype),
            None, None, None, None, None, grad_a2.to(a2.dtype), grad_b2.to(b2.dtype),
            grad, None, None,
        )  # fmt: skip
