"""q, k and v of self-attention as one function: product, adapters, norms and rotation, with kernels of our own.

Backwards it needs neither what was normalised nor anything computed again: a rotation is undone by its transpose, and
a norm's weights by division, from the q and k that attention keeps anyway. The gradients of all three are written side
by side as the product wants them, rounded to fp8 in the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iclora_train.ltx2.kernels.dispatch import power_of_two
from iclora_train.ltx2.kernels.fp8_linear import E4M3, LARGEST, LEAST, across
from iclora_train.ltx2.kernels.lora_linear import FusedLinear, ranks_of, thin_halves
from iclora_train.ltx2.kernels.lora_product import CHANNELS, add_low_rank, back_through, has_kernel, opened, thin_back
from iclora_train.ltx2.kernels.stacked_weight import spare_columns

WARPS = 8
ROUNDING = 2.0**-19  # variance of what rounding to bf16 adds to a number, over its square
_LAYERS = 3


def takes_qkv(x: Tensor, layers: Sequence[nn.Module], joint: FusedLinear, rope: Tensor) -> bool:
    """Whether `rotated_qkv` can be had: with adapters as `low_rank` wants them, and rotations (2,B,N,heads,
    head_dim/2) whose heads and channels are powers of two."""
    if not has_kernel(x, joint.scale, ranks_of(layers), joint.sizes) or x.shape[-1] % CHANNELS:
        return False
    heads, half = rope.shape[-2:]
    return power_of_two(heads) and power_of_two(half) and rope.shape[1:3] == x.shape[:2]


def rotated_qkv(
    x: Tensor,
    layers: Sequence[nn.Module],
    joint: FusedLinear,
    gate: nn.Linear | None,
    norms: tuple[nn.RMSNorm, nn.RMSNorm],
    rope: Tensor,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    """x (B,N,in) -> q, k, v (B,N,heads,head_dim), q and k normalised across heads and rotated by `rope`
    (2,B,N,heads,head_dim/2), and through the gate."""
    weights = (norm.weight.to(x.dtype) for norm in norms)
    halves = thin_halves(x, layers, joint.sizes, gate)
    q, k, v, opened = _RotatedQKV.apply(x, *joint.given(), *halves, *weights, rope.contiguous(), norms[0].eps)
    return (q, k, v), None if gate is None else opened + gate.bias


class _RotatedQKV(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, turned: Tensor | None, bias: Tensor | None,
        room: Tensor | None, down: Tensor, up: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor, eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        rows = x.flatten(0, -2)
        u, gate = (rows @ down.t()).tensor_split([up.shape[1]], -1)
        product, own = opened(rows, weight.t(), scale is not None)
        raw, v = add_low_rank(product, own, scale, bias, u, up, _LAYERS)
        q, k, inverse = norm_rotate(raw, q_weight, k_weight, rope, eps)
        q, k, v = (rows.view(*rope.shape[1:4], -1) for rows in (q, k, v))
        ctx.save_for_backward(x, weight, scale, turned, room, u, down, up, q_weight, k_weight, rope, q, k, inverse)
        return q, k, v, gate.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor, of_gate: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, turned, room, u, down, up, q_weight, k_weight, rope, q, k, inverse = ctx.saved_tensors
        given = [rows.contiguous() for rows in (of_q, of_k, of_v, q, k)]
        columns = spare_columns(room, weight, len(down))
        grad, values, row_scale = norm_rotate_back(*given, inverse, q_weight, k_weight, rope, scale, columns)
        own = grad[:, : len(weight)]
        t, of_down, of_up = thin_back(own, of_gate.flatten(0, -2), x.flatten(0, -2), u, up, _LAYERS)
        rounded: tuple[Tensor, Tensor | None] = (grad, None) if scale is None else (values, row_scale)
        back = back_through(*rounded, across(weight, scale, turned), t, down, room)
        return back.view_as(x), None, None, None, None, None, of_down, of_up, *[None] * 4


@torch.library.custom_op("iclora_train::norm_rotate", mutates_args=())
def norm_rotate(
    raw: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """raw (n,2D) of q and k -> both (n,D), RMS-normalised with weights (D,) and rotated by rope
    (2,B,N,heads,D/heads/2) of n = B N tokens; and the inverse root mean squares (2,n) fp32."""
    from iclora_train.ltx2.kernels.fused_qkv_triton import normed  # noqa: PLC0415 (needs Triton)

    q, k, inverse = _normed_like(raw)
    n, (heads, half) = len(raw), rope.shape[-2:]
    normed[(n,)](raw, q_weight, k_weight, rope, q, k, inverse, n, eps, heads, half, num_warps=WARPS)
    return q, k, inverse


@norm_rotate.register_fake
def _(raw: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _normed_like(raw)


def _normed_like(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, width = raw.shape
    return raw.new_empty(n, width // 2), raw.new_empty(n, width // 2), raw.new_empty(2, n, dtype=torch.float32)


@torch.library.custom_op("iclora_train::norm_rotate_back", mutates_args=())
def norm_rotate_back(
    of_q: Tensor, of_k: Tensor, of_v: Tensor, q: Tensor, k: Tensor, inverse: Tensor,
    q_weight: Tensor, k_weight: Tensor, rope: Tensor, column_scale: Tensor | None, spare: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q and k as `norm_rotate` made them, and of v, (B,N,heads,head_dim) each -> of what they were made
    from, side by side (n,3D + spare), and beside it room for more; where there are column scales (3D,), times those in
    fp8 too, and a scale of each row."""
    from iclora_train.ltx2.kernels.fused_qkv_triton import unnormed  # noqa: PLC0415

    heads, half = rope.shape[-2:]
    grad, values, row_scale = _sides_like(of_q, column_scale, spare)
    n, fp8 = len(grad), column_scale is not None
    unnormed[(n,)](
        of_q, of_k, of_v, q, k, inverse, q_weight, k_weight, rope, column_scale, grad, values, row_scale, n,
        spare, heads, half, fp8, ROUNDING, LARGEST, LEAST, num_warps=WARPS,
    )  # fmt: skip
    return grad, values, row_scale


@norm_rotate_back.register_fake
def _(
    of_q: Tensor, of_k: Tensor, of_v: Tensor, q: Tensor, k: Tensor, inverse: Tensor,
    q_weight: Tensor, k_weight: Tensor, rope: Tensor, column_scale: Tensor | None, spare: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _sides_like(of_q, column_scale, spare)


def _sides_like(of_q: Tensor, column_scale: Tensor | None, spare: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, width = of_q.shape
    n, wide = batch * tokens, _LAYERS * heads * width
    rounded = 0 if column_scale is None else n
    grad = of_q.new_empty(n, wide + spare)
    return grad, of_q.new_empty(rounded, wide, dtype=E4M3), of_q.new_empty(rounded, dtype=torch.float32)
