"""Frozen linears with LoRA; linears that read the same tokens are computed as one.

LoRA costs little arithmetic and much memory traffic. Linears of the same tokens x therefore read x together: all A and
the head gate are one small matmul, all B one block-diagonal matmul, and the frozen weights one large matmul.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, scaled_matmul
from iclora_train.ltx2.kernels.lora_product import Operands, lora_product, supports_lora_kernels
from iclora_train.ltx2.kernels.stacked_weight import reserve_rows, weight_of, with_spare_rows

LoraFactors = tuple[Tensor, Tensor]  # A (rank,in), B (out,rank); B includes the scale alpha / rank


class HasLoraFactors(Protocol):
    """A frozen linear with LoRA: x -> base_layer(x) + B A x. lora_factors() is None while the adapter is off."""

    base_layer: nn.Linear

    def lora_factors(self) -> LoraFactors | None: ...


def base_linear(layer: nn.Module) -> nn.Linear:
    """The frozen linear of a layer that may have LoRA."""
    return cast(nn.Linear, getattr(layer, "base_layer", layer))


def factors_of(layer: nn.Module) -> LoraFactors | None:
    """A and B of a layer; None without LoRA, and while the adapter is off."""
    return cast(HasLoraFactors, layer).lora_factors() if hasattr(layer, "lora_factors") else None


def operands(linear: nn.Linear) -> Operands:
    """The tensors of a frozen linear for a fused matmul."""
    scale, weight_t = (linear.weight_scale, linear.weight_t) if isinstance(linear, Fp8Linear) else (None, None)
    stacked = getattr(linear, "stacked", None)
    return Operands(weight_of(stacked, linear.weight), scale, weight_t, linear.bias, stacked)


def lora_linear(x: Tensor, layer: HasLoraFactors) -> Tensor:
    """x (...,in) -> base_layer(x) + B A x (...,out). A and B are cast to x's dtype."""
    base, factors = layer.base_layer(x), layer.lora_factors()
    if factors is None:
        return cast(Tensor, base)
    lora_a, lora_b = (factor.to(x.dtype) for factor in factors)
    return cast(Tensor, base + F.linear(F.linear(x, lora_a), lora_b))


class FusedLinear(nn.Module):
    """Frozen linears of the same input as one. The linears' weights become views of its weight: one copy in memory."""

    weight: Tensor  # (sum of out, in)
    scale: Tensor | None  # (sum of out,) fp32, if the weight is in fp8
    weight_t: Tensor | None  # as `Fp8Linear.weight_t`
    bias: Tensor | None  # (sum of out,)
    stacked: Tensor | None  # (longer,in): the weight with spare rows below it (`stacked_weight`)

    def __init__(self, layers: Sequence[nn.Module], rows: int = 0) -> None:
        """rows: number of spare rows below the weight."""
        super().__init__()
        linears = [base_linear(layer) for layer in layers]
        self.sizes = [linear.out_features for linear in linears]
        weight = torch.cat([linear.weight.detach().view(torch.uint8) for linear in linears])
        weight = weight.view(linears[0].weight.dtype)
        self.register_buffer("stacked", with_spare_rows(weight, rows) if rows else None, persistent=False)
        weight = weight if self.stacked is None else self.stacked[: len(weight)]
        self.register_buffer("weight", weight, persistent=False)
        for linear, part in zip(linears, self.weight.split(self.sizes), strict=True):
            linear.weight = nn.Parameter(part, requires_grad=False)
        scale = [linear.weight_scale.expand(linear.out_features) for linear in linears if isinstance(linear, Fp8Linear)]
        self.register_buffer("scale", torch.cat(scale) if scale else None, persistent=False)
        bias = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self.register_buffer("bias", torch.cat(bias) if bias else None, persistent=False)
        self.register_buffer("weight_t", None, persistent=False)

    def operands(self) -> Operands:
        """The tensors for a fused matmul."""
        return Operands(weight_of(self.stacked, self.weight), self.scale, self.weight_t, self.bias, self.stacked)

    def forward(self, x: Tensor) -> Tensor:
        """x (...,in) -> (..., sum of out)."""
        if self.scale is None:
            return F.linear(x, self.weight, self.bias)
        out = scaled_matmul(x, self.weight, self.scale, self.weight_t)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def fp8_linears(module: nn.Module) -> list[Fp8Linear | FusedLinear]:
    """The modules that multiply by fp8 weights: fused linears, and linears that are not part of one."""
    fused = [part for part in module.modules() if isinstance(part, FusedLinear) and part.scale is not None]
    storages = {linear.weight.untyped_storage().data_ptr() for linear in fused}
    linears = [part for part in module.modules() if isinstance(part, Fp8Linear)]
    return [*fused, *(part for part in linears if part.weight.untyped_storage().data_ptr() not in storages)]


def cache_transposed(module: nn.Module, enabled: bool) -> None:
    """Store or delete a transposed copy of each fp8 weight, which the matmul of input gradients reads."""
    for linear in fp8_linears(module):
        linear.weight_t = linear.weight.detach().t().contiguous() if enabled else None


def can_fuse(layers: Sequence[nn.Module]) -> bool:
    """Whether the linears have one dtype and one input size, all or none of them a bias, and no adapter but LoRA."""
    linears = [base_linear(layer) for layer in layers]
    if any(hasattr(layer, "base_layer") and not hasattr(layer, "lora_factors") for layer in layers):
        return False  # an adapter of another kind, which `fused_forward` would leave out
    return len({(linear.weight.dtype, linear.bias is None, linear.in_features) for linear in linears}) == 1


def spare_rows(layers: Sequence[nn.Module], gate: nn.Linear | None = None) -> int:
    """Number of rows to reserve below the weights of linears with the same input: the rows of all A and of the head
    gate's weight (`stacked_weight`). 0 without LoRA, and for weights that are not bf16."""
    rank = sum(lora_ranks(layers)) if base_linear(layers[0]).weight.dtype == torch.bfloat16 else 0
    return rank + gate.out_features if rank and gate is not None else rank


def reserve_spare_rows(layer: nn.Module, gate: nn.Linear | None = None) -> None:
    """Reserve a linear's `spare_rows` below its weight."""
    rows = spare_rows([layer], gate)
    if rows:
        reserve_rows(base_linear(layer), rows)


class LoraDown(NamedTuple):
    """The outputs of all A and of the head gate, and the B that are applied to u."""

    u: Tensor  # (B,N, sum of ranks)
    lora_b: Tensor  # (sum of out, sum of ranks), block-diagonal
    gate: Tensor | None  # (B,N,heads)


def lora_ranks(layers: Sequence[nn.Module]) -> list[int]:
    """The LoRA rank of each layer, 0 without LoRA."""
    all_factors = [factors_of(layer) for layer in layers]
    return [0 if factors is None else len(factors[0]) for factors in all_factors]


def stack_factors(
    x: Tensor, layers: Sequence[nn.Module], sizes: Sequence[int], gate: nn.Linear | None
) -> tuple[Tensor, Tensor]:
    """All A and the gate's weight stacked (sum of ranks + heads, in), and the block-diagonal of all B (sum of out, sum
    of ranks), in x's dtype. sizes: the outputs of each layer."""
    all_factors = [factors_of(layer) for layer in layers]
    lora_a = [factors[0].to(x.dtype) for factors in all_factors if factors is not None]  # (rank,in) each
    lora_b = torch.block_diag(
        *(
            x.new_zeros(size, 0) if factors is None else factors[1].to(x.dtype)
            for factors, size in zip(all_factors, sizes, strict=True)
        )
    )
    return torch.cat([*lora_a, gate.weight] if gate else lora_a), lora_b


def lora_down(x: Tensor, layers: Sequence[nn.Module], sizes: Sequence[int], gate: nn.Linear | None) -> LoraDown:
    """x (B,N,in) through all A and the gate, in one matmul."""
    down_weight, lora_b = stack_factors(x, layers, sizes, gate)
    u, logits = F.linear(x, down_weight).tensor_split([lora_b.shape[1]], -1)
    return LoraDown(u, lora_b, None if gate is None else logits + gate.bias)


def fused_forward(
    x: Tensor, layers: Sequence[nn.Module], fused: FusedLinear | None, gate: nn.Linear | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """x (B,N,in) through each of the layers and through the gate; x is read once if the layers are fused."""
    if fused is None:
        return [layer(x) for layer in layers], None if gate is None else gate(x)
    ranks = lora_ranks(layers)
    if not any(ranks):
        return list(fused(x).split(fused.sizes, -1)), None if gate is None else gate(x)
    down = lora_down(x, layers, fused.sizes, gate)
    if supports_lora_kernels(x, fused.scale, ranks, fused.sizes):
        first, last = lora_product(x, fused.operands(), down.u, down.lora_b, len(ranks))
        return [*first.split(fused.sizes[:-1], -1), last], down.gate
    return list((fused(x) + F.linear(down.u, down.lora_b)).split(fused.sizes, -1)), down.gate
