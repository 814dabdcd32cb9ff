"""q, k and v of self-attention as one autograd function: linears with LoRA, norms of q and k, and rotation.

The input of the norms is neither saved nor recomputed. Backward reconstructs it from the q and k that attention saves
anyway: the transposed rotation undoes the rotation, a division undoes the norm's weights. The gradients of q, k and v
are written side by side, as the matmul of the input gradient needs them, and are quantized to fp8 in the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iclora_train.ltx2.kernels.dispatch import is_power_of_two
from iclora_train.ltx2.kernels.fp8_linear import E4M3, FP8_MAX, MIN_SCALE, weight_for_input_grad
from iclora_train.ltx2.kernels.lora_linear import FusedLinear, lora_ranks, stack_factors
from iclora_train.ltx2.kernels.lora_product import (
    CHANNELS,
    add_low_rank,
    base_matmul,
    input_grad,
    lora_backward,
    supports_lora_kernels,
)
from iclora_train.ltx2.kernels.stacked_weight import spare_columns

WARPS = 8
ROUNDING = 2.0**-19  # variance of the error of rounding a number to bf16, relative to its square
_LAYERS = 3


def supports_qkv(x: Tensor, layers: Sequence[nn.Module], fused: FusedLinear, rope: Tensor) -> bool:
    """Whether `fused_qkv` takes x: LoRA as `lora_product` needs it, and rotations (2,B,N,heads,head_dim/2) whose heads
    and channels are powers of two."""
    if not supports_lora_kernels(x, fused.scale, lora_ranks(layers), fused.sizes) or x.shape[-1] % CHANNELS:
        return False
    heads, half = rope.shape[-2:]
    return is_power_of_two(heads) and is_power_of_two(half) and rope.shape[1:3] == x.shape[:2]


def fused_qkv(
    x: Tensor,
    layers: Sequence[nn.Module],
    fused: FusedLinear,
    gate: nn.Linear | None,
    norms: tuple[nn.RMSNorm, nn.RMSNorm],
    rope: Tensor,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    """x (B,N,in) -> q, k, v (B,N,heads,head_dim), and the gate logits (B,N,heads) if there is a gate.

    q and k are normalised across heads and rotated by `rope` (2,B,N,heads,head_dim/2): cosines and sines.
    """
    weights = (norm.weight.to(x.dtype) for norm in norms)
    factors = stack_factors(x, layers, fused.sizes, gate)
    q, k, v, logits = _FusedQKV.apply(x, *fused.operands(), *factors, *weights, rope.contiguous(), norms[0].eps)
    return (q, k, v), None if gate is None else logits + gate.bias


class _FusedQKV(torch.autograd.Function):
    """down_weight: the A of q, k and v with the gate's weight below them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, weight_t: Tensor | None, bias: Tensor | None,
        stacked: Tensor | None, down_weight: Tensor, lora_b: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        rows = x.flatten(0, -2)
        u, gate = (rows @ down_weight.t()).tensor_split([lora_b.shape[1]], -1)
        product, row_scale = base_matmul(rows, weight.t(), scale is not None)
        raw, v = add_low_rank(product, row_scale, scale, bias, u, lora_b, _LAYERS)
        q, k, rstd = norm_rotate(raw, q_weight, k_weight, rope, eps)
        q, k, v = (rows.view(*rope.shape[1:4], -1) for rows in (q, k, v))
        ctx.save_for_backward(
            x, weight, scale, weight_t, stacked, u, down_weight, lora_b, q_weight, k_weight, rope, q, k, rstd
        )
        return q, k, v, gate.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(
        ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, grad_gate: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, scale, weight_t, stacked, u, down_weight, lora_b, q_weight, k_weight, rope, q, k, rstd = (
            ctx.saved_tensors
        )
        grads_and_qk = [rows.contiguous() for rows in (grad_q, grad_k, grad_v, q, k)]
        spare = spare_columns(stacked, weight, len(down_weight))
        grad, values, row_scale = norm_rotate_back(*grads_and_qk, rstd, q_weight, k_weight, rope, scale, spare)
        grad_linear = grad[:, : len(weight)]
        grad_down, grad_down_weight, grad_b = lora_backward(
            grad_linear, grad_gate.flatten(0, -2), x.flatten(0, -2), u, lora_b, _LAYERS
        )
        operand: tuple[Tensor, Tensor | None] = (grad, None) if scale is None else (values, row_scale)
        grad_x = input_grad(*operand, weight_for_input_grad(weight, scale, weight_t), grad_down, down_weight, stacked)
        return grad_x.view_as(x), None, None, None, None, None, grad_down_weight, grad_b, *[None] * 4


@torch.library.custom_op("iclora_train::norm_rotate", mutates_args=())
def norm_rotate(
    raw: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """raw (n,2D), the linear outputs of q and k -> q and k (n,D), RMS-normalised with weights (D,) and rotated by rope
    (2,B,N,heads,D/heads/2), where n = B N; and rstd (2,n) in fp32, the inverse root mean squares of both."""
    from iclora_train.ltx2.kernels.fused_qkv_triton import norm_rotate_forward  # noqa: PLC0415 (needs Triton)

    q, k, rstd = _empty_qk(raw)
    n, (heads, half) = len(raw), rope.shape[-2:]
    norm_rotate_forward[(n,)](raw, q_weight, k_weight, rope, q, k, rstd, n, eps, heads, half, num_warps=WARPS)
    return q, k, rstd


@norm_rotate.register_fake
def _(raw: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_qk(raw)


def _empty_qk(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, width = raw.shape
    return raw.new_empty(n, width // 2), raw.new_empty(n, width // 2), raw.new_empty(2, n, dtype=torch.float32)


@torch.library.custom_op("iclora_train::norm_rotate_back", mutates_args=())
def norm_rotate_back(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, q: Tensor, k: Tensor, rstd: Tensor,
    q_weight: Tensor, k_weight: Tensor, rope: Tensor, column_scale: Tensor | None, spare: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of `norm_rotate`, given its outputs q and k and the gradients of q, k and v, (B,N,heads,head_dim) each.

    Returns the gradients of the linear outputs side by side (n, 3D + spare), whose last `spare` columns are
    uninitialised. With column scales (3D,) that gradient times the scales comes in fp8 too: values (n,3D) and one scale
    per row (n,). Else both are empty.
    """
    from iclora_train.ltx2.kernels.fused_qkv_triton import norm_rotate_backward  # noqa: PLC0415

    heads, half = rope.shape[-2:]
    grad, values, row_scale = _empty_grads(grad_q, column_scale, spare)
    n, fp8 = len(grad), column_scale is not None
    norm_rotate_backward[(n,)](
        grad_q, grad_k, grad_v, q, k, rstd, q_weight, k_weight, rope, column_scale, grad, values, row_scale, n,
        spare, heads, half, fp8, ROUNDING, FP8_MAX, MIN_SCALE, num_warps=WARPS,
    )  # fmt: skip
    return grad, values, row_scale


@norm_rotate_back.register_fake
def _(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, q: Tensor, k: Tensor, rstd: Tensor,
    q_weight: Tensor, k_weight: Tensor, rope: Tensor, column_scale: Tensor | None, spare: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_grads(grad_q, column_scale, spare)


def _empty_grads(grad_q: Tensor, column_scale: Tensor | None, spare: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, head_dim = grad_q.shape
    n, width = batch * tokens, _LAYERS * heads * head_dim
    n_fp8 = 0 if column_scale is None else n
    grad = grad_q.new_empty(n, width + spare)
    return grad, grad_q.new_empty(n_fp8, width, dtype=E4M3), grad_q.new_empty(n_fp8, dtype=torch.float32)
