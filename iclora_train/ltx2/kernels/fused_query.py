"""The query of attention to a text as one function: product, adapter, norm, and the heads' gate, which reads the same.

As in `qkv` the backward pass finds what was normalised in the query that attention keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from iclora_train.ltx2.kernels.dispatch import power_of_two
from iclora_train.ltx2.kernels.fp8_linear import E4M3, LARGEST, LEAST, across
from iclora_train.ltx2.kernels.fused_qkv import ROUNDING
from iclora_train.ltx2.kernels.lora_linear import frozen, given, ranks_of, thin_halves
from iclora_train.ltx2.kernels.lora_product import CHANNELS, add_thin, back_through, factored, has_kernel, thin_back
from iclora_train.ltx2.kernels.stacked_weight import spare_columns

WARPS = 4


def takes_query(x: Tensor, layer: nn.Module) -> bool:
    """Whether `normed_query` can be had: with an adapter as `low_rank` wants it, and as many channels as a power of
    two."""
    linear = frozen(layer)
    width = linear.out_features
    if not power_of_two(width) or x.shape[-1] % CHANNELS:
        return False
    return has_kernel(x, given(linear).scale, ranks_of([layer]), [width])


def normed_query(x: Tensor, layer: nn.Module, gate: nn.Linear | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor | None]:
    """x (B,n,in) -> its query (B,n,D), normalised, and through the gate."""
    linear = frozen(layer)
    halves = thin_halves(x, [layer], [linear.out_features], gate)
    query, opened = _NormedQuery.apply(x, *given(linear), *halves, norm.weight.to(x.dtype), norm.eps)
    return query, None if gate is None else opened + gate.bias


class _NormedQuery(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, turned: Tensor | None, bias: Tensor | None,
        room: Tensor | None, down: Tensor, up: Tensor, norm: Tensor, eps: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows = x.flatten(0, -2)
        u, gate = (rows @ down.t()).tensor_split([up.shape[1]], -1)
        product, factor = factored(rows, weight.t(), scale)
        query, inverse = norm_alone(add_thin(product, factor, bias, u, up.t()), norm, eps)
        query = query.unflatten(0, x.shape[:-1])
        ctx.save_for_backward(x, weight, scale, turned, room, u, down, up, norm, query, inverse)
        return query, gate.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, of_query: Tensor, of_gate: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, turned, room, u, down, up, norm, query, inverse = ctx.saved_tensors
        columns = spare_columns(room, weight, len(down))
        grad, values, factor = norm_alone_back(of_query.contiguous(), query.contiguous(), inverse, norm, scale, columns)
        t, of_down, of_up = thin_back(grad[:, : len(weight)], of_gate.flatten(0, -2), x.flatten(0, -2), u, up)
        rounded: tuple[Tensor, Tensor | None] = (grad, None) if scale is None else (values, factor)
        back = back_through(*rounded, across(weight, scale, turned), t, down, room)
        return back.view_as(x), None, None, None, None, None, of_down, of_up, None, None


@torch.library.custom_op("iclora_train::norm_alone", mutates_args=())
def norm_alone(raw: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """raw (n,D) -> RMS-normalised with weights (D,), and the inverse root mean squares (n,) fp32."""
    from iclora_train.ltx2.kernels.fused_qkv_triton import normed_alone  # noqa: PLC0415 (needs Triton)

    n, width = raw.shape
    found, inverse = torch.empty_like(raw), raw.new_empty(n, dtype=torch.float32)
    normed_alone[(n,)](raw, weight, found, inverse, eps, width, num_warps=WARPS)
    return found, inverse


@norm_alone.register_fake
def _(raw: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(raw), raw.new_empty(len(raw), dtype=torch.float32)


@torch.library.custom_op("iclora_train::norm_alone_back", mutates_args=())
def norm_alone_back(
    of_query: Tensor, query: Tensor, inverse: Tensor, norm: Tensor, scale: Tensor | None, spare: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of what `norm_alone` made (...,D) -> of what it was made from (n,D + spare), and beside it room for
    more; where the weight behind that has a scale (), in fp8 too, and a factor of each row (n,), that scale in it."""
    from iclora_train.ltx2.kernels.fused_qkv_triton import unnormed_alone  # noqa: PLC0415

    grad, values, factor = _grads_like(query, scale, spare)
    unnormed_alone[(len(grad),)](
        of_query, query, inverse, norm, scale, grad, values, factor, spare,
        query.shape[-1], scale is not None, ROUNDING, LARGEST, LEAST, num_warps=WARPS,
    )  # fmt: skip
    return grad, values, factor


@norm_alone_back.register_fake
def _(
    of_query: Tensor, query: Tensor, inverse: Tensor, norm: Tensor, scale: Tensor | None, spare: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _grads_like(query, scale, spare)


def _grads_like(query: Tensor, scale: Tensor | None, spare: int) -> tuple[Tensor, Tensor, Tensor]:
    width = query.shape[-1]
    n = query.numel() // width
    rounded = 0 if scale is None else n
    grad = query.new_empty(n, width + spare)
    return grad, query.new_empty(rounded, width, dtype=E4M3), query.new_empty(rounded, dtype=torch.float32)
