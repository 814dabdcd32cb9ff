"""The feed-forward with both LoRA adapters and GELU as one autograd function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.ltx2.kernels.dispatch import RANKS, takes
from iclora_train.ltx2.kernels.feed_forward_ops import gelu_back, gelu_up
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, across, multiplies_fp8, raw_product
from iclora_train.ltx2.kernels.fused_attention_out import add_gated, adds_to
from iclora_train.ltx2.kernels.lora_linear import frozen, given, halves_of
from iclora_train.ltx2.kernels.lora_product import back_through, factored, low_rank_back
from iclora_train.ltx2.kernels.modulation import GatedResidual, pick
from iclora_train.ltx2.kernels.stacked_weight import spare_columns

_CHANNELS = 1024  # hidden channels come in multiples of it: the kernels' parts times their smallest tile


def fused_feed_forward(x: Tensor, first: nn.Module, second: nn.Module, onto: GatedResidual) -> Tensor | None:
    """onto + second(gelu(first(x))) for adapted linears of one rank; None where that has no kernel."""
    halves = halves_of(first), halves_of(second)
    if not takes(x) or halves[0] is None or halves[1] is None or not adds_to(onto):
        return None
    inner, outer = frozen(first), frozen(second)
    rank = {halves[0][0].shape[0], halves[1][0].shape[0]}
    if len(rank) > 1 or not rank <= set(RANKS) or inner.out_features % _CHANNELS:
        return None
    fp8 = {isinstance(linear, Fp8Linear) for linear in (inner, outer)}
    if len(fp8) > 1 or (fp8 == {True} and not multiplies_fp8(x)):
        return None
    found: Tensor = _FeedForward.apply(x, *given(inner), *halves[0], *given(outer), *halves[1], *onto)
    return found


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor,
        w1: Tensor, s1: Tensor | None, turned1: Tensor | None, bias1: Tensor | None, room1: Tensor | None,
        a1: Tensor, b1: Tensor,
        w2: Tensor, s2: Tensor | None, turned2: Tensor | None, bias2: Tensor | None, _room2: Tensor | None,
        a2: Tensor, b2: Tensor,
        residual: Tensor, gates: Tensor, level: Tensor,
    ) -> Tensor:  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])
        down1, up1, down2, up2 = (half.to(x.dtype) for half in (a1, b1, a2, b2))
        u1 = F.linear(rows, down1)  # (N,R)
        product, scale = factored(rows, w1.t(), s1)
        hidden, inner, inner_scale, u2 = gelu_up(product, scale, u1, up1, bias1, down2, s1 is not None)
        factor = None if s2 is None else inner_scale * s2
        product = inner @ w2.t() if s2 is None else raw_product(inner, w2.t())
        weights = w1, s1, turned1, room1, w2, s2, turned2
        ctx.save_for_backward(x, u1, hidden, u2, *weights, a1, b1, a2, b2, gates, level)
        return add_gated(product, factor, bias2, u2, up2, residual.contiguous(), gates.contiguous(), level)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, u1, hidden, u2, *weights, a1, b1, a2, b2, gates, level = ctx.saved_tensors
        w1, s1, turned1, room1, w2, s2, turned2 = weights
        rows, fp8 = (grad * pick(gates, level)).reshape(-1, grad.shape[-1]), s1 is not None
        down1, up1, down2, up2 = (half.to(grad.dtype) for half in (a1, b1, a2, b2))
        t2, of_b2 = low_rank_back(rows, u2, up2)  # (N,R), (D,R)
        product, scale = factored(rows, across(w2, s2, turned2), s2)
        columns = spare_columns(room1, w1, len(down1))
        d, d_scale, t1, *parts = gelu_back(product, scale, t2, down2, hidden, up1, u1, fp8, columns)
        of_a2, of_b1 = (part.sum(0) for part in parts)
        factor = None if s1 is None else d_scale * s1
        back = back_through(d, factor, across(w1, s1, turned1), t1, down1, room1).view_as(x)
        of_a1 = t1.t() @ x.reshape(-1, x.shape[-1])
        return (
            back, None, None, None, None, None, of_a1.to(a1.dtype), of_b1.to(b1.dtype),
            None, None, None, None, None, of_a2.to(a2.dtype), of_b2.to(b2.dtype),
            grad, None, None,
        )  # fmt: skip
