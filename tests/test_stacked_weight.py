"""The stacked weight [W; A]: spare rows below a weight, and the matmul with it."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.ltx2.kernels.lora_linear import FusedLinear, base_linear, operands
from iclora_train.ltx2.kernels.stacked_weight import padded, reserve_rows, spare_columns, stacked_product
from iclora_train.ltx2.model.transformer import Block, Transformer
from iclora_train.ltx2.runtime.compile import compile_blocks
from scripts.synthetic.random_base import RandomBase

HEADS, RANK = 4, 4  # attention heads of the tiny transformer, and rank of its LoRA


def compiled(dtype: torch.dtype, with_lora: bool = True, fp8: bool = False) -> Transformer:
    net = RandomBase("2.3", "tiny").transformer(fp8=fp8)
    if not fp8:
        net.to(dtype)
    if with_lora:
        lora.attach(net, Lora(rank=RANK))
    compile_blocks(net, backend="eager")
    return net


def stacked_weights(net: Transformer) -> list[Tensor | None]:
    """The stacked weights of the first block: q, k and v (one if fused), text query, first feed-forward linear."""
    block = net.transformer_blocks[0]
    assert isinstance(block, Block)
    first = cast(nn.Module, block.ff.net[0]).proj
    fused, attn = cast(FusedLinear | None, block.fused.qkv), block.attn1
    separate = [operands(base_linear(linear)) for linear in (attn.to_q, attn.to_k, attn.to_v)]
    linears = [
        *(separate if fused is None else [fused.operands()]),
        operands(base_linear(block.attn2.to_q)),
        operands(base_linear(cast(nn.Module, first))),
    ]
    for linear in linears:
        if linear.stacked is not None:
            assert linear.stacked.untyped_storage().data_ptr() == linear.weight.untyped_storage().data_ptr()
            assert torch.equal(linear.stacked[: len(linear.weight)], linear.weight)
    return [linear.stacked for linear in linears]


def test_compiled_blocks_have_spare_rows_for_lora_and_the_head_gate() -> None:
    original = RandomBase("2.3", "tiny").transformer().to(torch.bfloat16)
    net = compiled(torch.bfloat16)
    qkv, query, hidden = stacked_weights(net)
    block = original.transformer_blocks[0]
    assert isinstance(block, Block)
    width = original.config.width
    assert qkv is not None
    assert query is not None
    assert hidden is not None
    assert len(qkv) == 3 * width + padded(3 * RANK + HEADS)
    assert len(query) == width + padded(RANK + HEADS)
    assert len(hidden) == 4 * width + padded(RANK)
    assert torch.equal(qkv[:width], block.attn1.to_q.weight)
    assert torch.equal(query[:width], block.attn2.to_q.weight)
    assert not any("stacked" in name for name in net.state_dict())


@pytest.mark.parametrize(
    ("dtype", "with_lora", "fp8"),
    [(torch.float32, True, False), (torch.bfloat16, False, False), (torch.bfloat16, True, True)],
)
def test_without_lora_or_bf16_weights_have_no_spare_rows(dtype: torch.dtype, with_lora: bool, fp8: bool) -> None:
    is_fused = dtype == torch.bfloat16 and not fp8  # q, k and v stay separate if the model is in fp32 on a CPU
    assert stacked_weights(compiled(dtype, with_lora, fp8)) == [None] * (3 if is_fused else 5)


def test_spare_rows_are_used_only_for_the_reserved_number_of_rows() -> None:
    linear = nn.Linear(3, 16)
    before = linear.weight.detach().clone()
    reserve_rows(linear, 20)
    reserve_rows(linear, 20)  # changes nothing
    stacked = operands(linear).stacked
    assert torch.equal(linear.weight, before)
    assert spare_columns(stacked, linear.weight, 20) == spare_columns(stacked, linear.weight, 24) == 24
    assert spare_columns(stacked, linear.weight, 16) == spare_columns(None, linear.weight, 20) == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("out", "width", "rank"), [(64, 256, 24), (128, 200, 20), (512, 128, 128)])
def test_the_stacked_matmul_is_the_sum_of_both_matmuls(out: int, width: int, rank: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    grad, stacked = random(150, out + padded(rank)), random(out + padded(rank), width)
    grad_u, lora_a = random(150, rank + 5)[:, :rank], random(rank, width)
    expected = grad[:, :out].double() @ stacked[:out].double() + grad_u.double() @ lora_a.double()
    grad[:, out:] = stacked[out:] = torch.nan
    result = stacked_product(grad, stacked, grad_u, lora_a)
    assert float((result - expected).norm() / expected.norm()) < 0.005
