"""A weight with room beneath it is the same weight, in the same memory; and the product with what is laid there."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.ltx2.kernels.lora_linear import FusedLinear, frozen, given
from iclora_train.ltx2.kernels.stacked_weight import make_room, room_for, spare_columns, stacked_product
from iclora_train.ltx2.model.transformer import Block, Transformer
from iclora_train.ltx2.runtime.compile import compile_blocks
from scripts.synthetic.random_base import RandomBase

HEADS, RANK = 4, 4  # of the tiny transformer, and of its adapters


def compiled(dtype: torch.dtype, adapted: bool = True, fp8: bool = False) -> Transformer:
    net = RandomBase("2.3", "tiny").transformer(fp8=fp8)
    if not fp8:
        net.to(dtype)
    if adapted:
        lora.attach(net, Lora(rank=RANK))
    compile_blocks(net, backend="eager")
    return net


def rooms(net: Transformer) -> list[Tensor | None]:
    """Of q, k and v as one, of the query of a text, and of the feed-forward's first linear, in the first block."""
    block = net.transformer_blocks[0]
    assert isinstance(block, Block)
    first = cast(nn.Module, block.ff.net[0]).proj
    weights = [
        cast(FusedLinear, block.fused.qkv).given(),
        given(frozen(block.attn2.to_q)),
        given(frozen(cast(nn.Module, first))),
    ]
    for weight in weights:
        if weight.room is not None:
            assert weight.room.untyped_storage().data_ptr() == weight.weight.untyped_storage().data_ptr()
            assert torch.equal(weight.room[: len(weight.weight)], weight.weight)
    return [weight.room for weight in weights]


def test_compiled_blocks_have_room_for_what_goes_back_through_their_weights() -> None:
    wanted = RandomBase("2.3", "tiny").transformer().to(torch.bfloat16)
    net = compiled(torch.bfloat16)
    own, query, inner = rooms(net)
    block = wanted.transformer_blocks[0]
    assert isinstance(block, Block)
    width = wanted.config.width
    assert own is not None
    assert query is not None
    assert inner is not None
    assert len(own) == 3 * width + room_for(3 * RANK + HEADS)
    assert len(query) == width + room_for(RANK + HEADS)
    assert len(inner) == 4 * width + room_for(RANK)
    assert torch.equal(own[:width], block.attn1.to_q.weight)
    assert torch.equal(query[:width], block.attn2.to_q.weight)
    assert not any("room" in name for name in net.state_dict())


@pytest.mark.parametrize(
    ("dtype", "adapted", "fp8"),
    [(torch.float32, True, False), (torch.bfloat16, False, False), (torch.bfloat16, True, True)],
)
def test_where_nothing_is_multiplied_along_there_is_no_room(dtype: torch.dtype, adapted: bool, fp8: bool) -> None:
    assert rooms(compiled(dtype, adapted, fp8)) == [None] * 3


def test_room_is_used_for_as_much_as_it_was_made_for() -> None:
    linear = nn.Linear(3, 16)
    before = linear.weight.detach().clone()
    make_room(linear, 20)
    make_room(linear, 20)  # there already
    room = given(linear).room
    assert torch.equal(linear.weight, before)
    assert spare_columns(room, linear.weight, 20) == spare_columns(room, linear.weight, 24) == 24
    assert spare_columns(room, linear.weight, 16) == spare_columns(None, linear.weight, 20) == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("out", "width", "rank"), [(64, 256, 24), (128, 200, 20), (512, 128, 128)])
def test_the_product_is_that_of_both(out: int, width: int, rank: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    wide, room = random(150, out + room_for(rank)), random(out + room_for(rank), width)
    t, down = random(150, rank + 5)[:, :rank], random(rank, width)
    wanted = wide[:, :out].double() @ room[:out].double() + t.double() @ down.double()
    wide[:, out:] = room[out:] = torch.nan
    found = stacked_product(wide, room, t, down)
    assert float((found - wanted).norm() / wanted.norm()) < 0.005
