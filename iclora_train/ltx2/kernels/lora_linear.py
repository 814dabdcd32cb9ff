"""Linears with adapters beside them; those that read the same tokens are computed as one.

A low-rank adapter costs little arithmetic and much memory traffic, so what reads the same tokens reads them once: the
adapters' A and the attention's gate are one thin product, their B one block-diagonal product, the frozen weights one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, scaled_product
from iclora_train.ltx2.kernels.lora_product import Weight, adapted_product, has_kernel
from iclora_train.ltx2.kernels.stacked_weight import first_rows, make_room, stack

LoraFactors = tuple[Tensor, Tensor]  # A (rank,in), B (out,rank) with the adapter's scale in it


class HasLoraFactors(Protocol):
    """A frozen linear with an adapter: x -> base_layer(x) + B A x. lora_factors() is None while the adapter is off."""

    base_layer: nn.Linear

    def lora_factors(self) -> LoraFactors | None: ...


def frozen(layer: nn.Module) -> nn.Linear:
    """The linear of the base, without its adapter."""
    return cast(nn.Linear, getattr(layer, "base_layer", layer))


def halves_of(layer: nn.Module) -> LoraFactors | None:
    """A and B of a layer that has an adapter, and not switched off."""
    return cast(HasLoraFactors, layer).lora_factors() if hasattr(layer, "lora_factors") else None


def given(linear: nn.Linear) -> Weight:
    """What a product with a frozen linear needs."""
    scale, turned = (linear.weight_scale, linear.weight_t) if isinstance(linear, Fp8Linear) else (None, None)
    room = getattr(linear, "room", None)
    return Weight(first_rows(room, linear.weight), scale, turned, linear.bias, room)


def lora_linear(x: Tensor, layer: HasLoraFactors) -> Tensor:
    """x (...,in) -> (...,out) by a linear and its adapter, which computes in x's precision whatever its own is."""
    base, halves = layer.base_layer(x), layer.lora_factors()
    if halves is None:
        return cast(Tensor, base)
    down, up = (half.to(x.dtype) for half in halves)
    return cast(Tensor, base + F.linear(F.linear(x, down), up))


class FusedLinear(nn.Module):
    """Frozen linears of the same tokens as one, whose memory they share."""

    weight: Tensor  # (sum of out, in)
    scale: Tensor | None  # (sum of out,) fp32 where the weight is in fp8
    weight_t: Tensor | None  # as `Fp8Linear.weight_t`
    bias: Tensor | None
    room: Tensor | None  # (longer,in): the weight with room beneath it (`stacked`)

    def __init__(self, layers: Sequence[nn.Module], rows: int = 0) -> None:
        """rows: what there is to be room for beneath the weight."""
        super().__init__()
        linears = [frozen(layer) for layer in layers]
        self.sizes = [linear.out_features for linear in linears]
        weight = torch.cat([linear.weight.detach().view(torch.uint8) for linear in linears])
        weight = weight.view(linears[0].weight.dtype)
        self.register_buffer("room", stack(weight, rows) if rows else None, persistent=False)
        self.register_buffer("weight", weight if self.room is None else self.room[: len(weight)], persistent=False)
        for linear, part in zip(linears, self.weight.split(self.sizes), strict=True):
            linear.weight = nn.Parameter(part, requires_grad=False)
        scale = [linear.weight_scale.expand(linear.out_features) for linear in linears if isinstance(linear, Fp8Linear)]
        self.register_buffer("scale", torch.cat(scale) if scale else None, persistent=False)
        bias = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self.register_buffer("bias", torch.cat(bias) if bias else None, persistent=False)
        self.register_buffer("weight_t", None, persistent=False)

    def given(self) -> Weight:
        """What a product with it needs."""
        return Weight(first_rows(self.room, self.weight), self.scale, self.weight_t, self.bias, self.room)

    def forward(self, x: Tensor) -> Tensor:
        """x (...,in) -> (...,sum of out)."""
        if self.scale is None:
            return F.linear(x, self.weight, self.bias)
        product = scaled_product(x, self.weight, self.scale, self.weight_t)
        return product if self.bias is None else product + self.bias.to(product.dtype)


def fp8_linears(module: nn.Module) -> list[Fp8Linear | FusedLinear]:
    """What multiplies by fp8 weights inside a module: joints, and linears that are in none."""
    joints = [part for part in module.modules() if isinstance(part, FusedLinear) and part.scale is not None]
    joined = {joint.weight.untyped_storage().data_ptr() for joint in joints}
    linears = [part for part in module.modules() if isinstance(part, Fp8Linear)]
    return [*joints, *(part for part in linears if part.weight.untyped_storage().data_ptr() not in joined)]


def cache_transposed(module: nn.Module, wanted: bool) -> None:
    """Keep the fp8 weights inside a module a second time, as the products of gradients want them, or no longer."""
    for part in fp8_linears(module):
        part.weight_t = part.weight.detach().t().contiguous() if wanted else None


def joinable(layers: Sequence[nn.Module]) -> bool:
    """Whether linears can be one: of one precision, all with a bias or none."""
    linears = [frozen(layer) for layer in layers]
    return len({(linear.weight.dtype, linear.bias is None, linear.in_features) for linear in linears}) == 1


def rows_beneath(layers: Sequence[nn.Module], gate: nn.Linear | None = None) -> int:
    """For how many rows there should be room beneath the weights of linears of the same tokens: their adapters' A and
    the gate; 0 without adapters, and where nothing of that is multiplied along (`stacked`)."""
    rank = sum(ranks_of(layers)) if frozen(layers[0]).weight.dtype == torch.bfloat16 else 0
    return rank + gate.out_features if rank and gate is not None else rank


def roomy(layer: nn.Module, gate: nn.Linear | None = None) -> None:
    """From now on there is such room beneath a linear's weight."""
    rows = rows_beneath([layer], gate)
    if rows:
        make_room(frozen(layer), rows)


class Thin(NamedTuple):
    """What adapters of the same tokens, and a gate, make of them in one product."""

    inner: Tensor  # (B,N,rank of all)
    up: Tensor  # (out of all, rank of all), a block for each adapter
    gate: Tensor | None  # (B,N,heads)


def ranks_of(layers: Sequence[nn.Module]) -> list[int]:
    """The rank of each layer's adapter, 0 where there is none."""
    halves = [halves_of(layer) for layer in layers]
    return [0 if pair is None else len(pair[0]) for pair in halves]


def thin_halves(
    x: Tensor, layers: Sequence[nn.Module], sizes: Sequence[int], gate: nn.Linear | None
) -> tuple[Tensor, Tensor]:
    """The A of each layer that has an adapter and the gate's weight, one below the other (rank of all + heads, in); the
    B (out of all, rank of all), a block for each; in x's precision."""
    halves = [halves_of(layer) for layer in layers]
    down = [pair[0].to(x.dtype) for pair in halves if pair is not None]  # (rank,in) each
    up = torch.block_diag(
        *(
            x.new_zeros(size, 0) if pair is None else pair[1].to(x.dtype)
            for pair, size in zip(halves, sizes, strict=True)
        )
    )
    return torch.cat([*down, gate.weight] if gate else down), up


def thin_product(x: Tensor, layers: Sequence[nn.Module], sizes: Sequence[int], gate: nn.Linear | None) -> Thin:
    """x (B,N,in) through the A of each layer that has an adapter, and through the gate."""
    down, up = thin_halves(x, layers, sizes, gate)
    inner, opened = F.linear(x, down).tensor_split([up.shape[1]], -1)
    return Thin(inner, up, None if gate is None else opened + gate.bias)


def together(
    x: Tensor, layers: Sequence[nn.Module], joint: FusedLinear | None, gate: nn.Linear | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """x (B,N,in) through each of the layers, and through the gate, all of which read it once if there is a joint."""
    if joint is None:
        return [layer(x) for layer in layers], None if gate is None else gate(x)
    ranks = ranks_of(layers)
    if not any(ranks):
        return list(joint(x).split(joint.sizes, -1)), None if gate is None else gate(x)
    thin = thin_product(x, layers, joint.sizes, gate)
    if has_kernel(x, joint.scale, ranks, joint.sizes):
        first, last = adapted_product(x, joint.given(), thin.inner, thin.up, len(ranks))
        return [*first.split(joint.sizes[:-1], -1), last], thin.gate
    return list((joint(x) + F.linear(thin.inner, thin.up)).split(joint.sizes, -1)), thin.gate
