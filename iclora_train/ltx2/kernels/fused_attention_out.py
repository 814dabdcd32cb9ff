"""What comes behind attention as one function: a gate for each head, the output's linear with its adapter, the gated
sum with the tokens, and the norm that looks at them next. The adapter's share is computed where it is added, forwards
and backwards, and never written; what goes back through norm, sum and gate is one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from iclora_train.ltx2.kernels.dispatch import power_of_two
from iclora_train.ltx2.kernels.fp8_linear import across
from iclora_train.ltx2.kernels.lora_linear import frozen, given, halves_of
from iclora_train.ltx2.kernels.lora_product import CHANNELS, factored, has_kernel, low_rank_back, multiplied
from iclora_train.ltx2.kernels.modulated_norm import Norm, modulated, norm_back
from iclora_train.ltx2.kernels.modulation import GatedResidual

ADD, BACK = (64, 4), (32, 4, 2)  # rows of a program's tile, its warps, and backwards tiles on their way
PARTS = 8  # of the rows, that are summed up apart


def adds_to(onto: GatedResidual) -> bool:
    """Whether `add_gated` can be had: for gates that are not learned."""
    return onto.x.shape[-1] % CHANNELS == 0 and not onto.rows.requires_grad and onto.rows.dtype == onto.x.dtype


def takes_out(out: Tensor, layer: nn.Module, onto: GatedResidual) -> bool:
    """Whether `gated_out` can be had of attention's results (B,n,heads,head_dim)."""
    linear, halves, width = frozen(layer), halves_of(layer), out.shape[-1]
    if halves is None or not power_of_two(width) or not 16 <= width <= CHANNELS or not adds_to(onto):
        return False
    whole = power_of_two(linear.out_features)
    return whole and has_kernel(out, given(linear).scale, [len(halves[0])], [linear.out_features])


def gated_out(out: Tensor, gate: Tensor, layer: nn.Module, onto: GatedResidual, norm: Norm) -> tuple[Tensor, Tensor]:
    """onto + layer(2 sigmoid(gate) out), for attention's results out (B,n,heads,head_dim) and gate (B,n,heads); and
    the norm of that."""
    halves = halves_of(layer)
    assert halves is not None
    down, up = (half.to(out.dtype) for half in halves)
    found: tuple[Tensor, Tensor] = _GatedOut.apply(out, gate, *given(frozen(layer)), down, up, *onto, *norm)
    return found


def by_heads(out: Tensor, gate: Tensor) -> Tensor:
    """2 sigmoid(gate) out, for out (B,n,heads,head_dim) and gate (B,n,heads)."""
    return out * (2 * gate.sigmoid())[..., None]


class _GatedOut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, out: Tensor, gate: Tensor, weight: Tensor, scale: Tensor | None, turned: Tensor | None,
        bias: Tensor | None, _room: Tensor | None, down: Tensor, up: Tensor, x: Tensor, gates: Tensor, level: Tensor,
        norm_scale: Tensor, norm_shift: Tensor, eps: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows = by_heads(out, gate).flatten(2).flatten(0, 1)
        u = rows @ down.t()
        product, factor = factored(rows, weight.t(), scale)
        found = add_gated(product, factor, bias, u, up, x.contiguous(), gates.contiguous(), level)
        normed, inverse = modulated(found, Norm(norm_scale, norm_shift, eps), level)
        seen = found, inverse, norm_scale, level, gates
        ctx.save_for_backward(out, gate, weight, scale, turned, down, up, u, *seen)
        return found, normed

    @staticmethod
    def backward(ctx: Any, of_found: Tensor, of_normed: Tensor) -> tuple[Tensor | None, ...]:
        out, gate, weight, scale, turned, down, up, u, found, inverse, norm_scale, level, gates = ctx.saved_tensors
        given = of_normed.contiguous(), of_found.contiguous(), found, inverse, norm_scale.contiguous()
        of_x, rows, values, factor = norm_back(*given, level, gates.contiguous(), scale)
        rounded: tuple[Tensor, Tensor | None] = (rows, None) if scale is None else (values, factor)
        product = multiplied(*rounded, across(weight, scale, turned))
        t, of_up = low_rank_back(rows, u, up)
        of_out, of_gate, of_down = gate_back(product, rounded[1], t, down, out.contiguous(), gate.contiguous())
        return of_out, of_gate, *[None] * 5, of_down.sum(0).to(down.dtype), of_up, of_x, *[None] * 5


@torch.library.custom_op("iclora_train::add_gated", mutates_args=())
def add_gated(
    product: Tensor, factor: Tensor | None, bias: Tensor | None, u: Tensor, up: Tensor, x: Tensor, gates: Tensor,
    level: Tensor,
) -> Tensor:  # fmt: skip
    """x (B,n,D) + gates (B,K,D) of a token's level (B,n) times [product (B n,D) factor (B n,) + bias (D,) + u up^T].

    u (B n,R), up (D,R), factor fp32.
    """
    import triton  # noqa: PLC0415 (not where there is no GPU)

    from iclora_train.ltx2.kernels.lora_product_triton import gated  # noqa: PLC0415

    rows, width = product.shape
    found, (tile, warps) = torch.empty_like(x), ADD
    gated[(triton.cdiv(rows, tile), width // CHANNELS)](
        product, factor, bias, u, up, x, gates, level, found, rows, x.shape[1], level.stride(0), level.stride(1),
        width, u.shape[1], gates.shape[1], tile, CHANNELS, factor is not None, bias is not None, num_warps=warps,
    )  # fmt: skip
    return found


@add_gated.register_fake
def _(
    product: Tensor, factor: Tensor | None, bias: Tensor | None, u: Tensor, up: Tensor, x: Tensor, *rest: Any
) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("iclora_train::gate_back", mutates_args=())
def gate_back(
    product: Tensor, factor: Tensor | None, t: Tensor, down: Tensor, out: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of out (B,n,heads,head_dim) and gate (B,n,heads), given that of 2 sigmoid(gate) out: product (B n,D)
    factor (B n,) + t down, t (B n,R), down (R,D); and that of down, in parts (PARTS,R,D) fp32."""
    import triton  # noqa: PLC0415

    from iclora_train.ltx2.kernels.lora_product_triton import ungated  # noqa: PLC0415

    (rows, width), (tile, warps, stages) = product.shape, BACK
    of_out, of_gate, of_down = _grads_like(out, gate, down)
    heads, channels = out.shape[2:]
    ungated[(heads, PARTS)](
        product, factor, t, down, out, gate, of_out, of_gate, of_down, rows, triton.cdiv(rows, tile * PARTS),
        width, heads, t.shape[1], tile, channels, factor is not None, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return of_out, of_gate, of_down


@gate_back.register_fake
def _(
    product: Tensor, factor: Tensor | None, t: Tensor, down: Tensor, out: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _grads_like(out, gate, down)


def _grads_like(out: Tensor, gate: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_down = down.new_empty(PARTS, *down.shape, dtype=torch.float32)
    return torch.empty_like(out), torch.empty_like(gate), of_down
