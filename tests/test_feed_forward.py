"""The feed-forward's own kernels compute what the plain layers do, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, quantize
from iclora_train.ltx2.kernels.fused_feed_forward import fused_feed_forward
from iclora_train.ltx2.kernels.lora_linear import cache_transposed, frozen, roomy
from iclora_train.ltx2.kernels.modulation import GatedResidual
from iclora_train.ltx2.model.feed_forward import FeedForward

WIDTH, WIDE, ROWS = 256, 1024, 333


def layer(bias: bool, fp8: bool, device: str, rank: int = 16, width: int = WIDTH) -> FeedForward:
    """A feed-forward in bf16 (its weights in fp8), with fp32 adapters that do something."""
    generator = torch.Generator().manual_seed(0)
    block = nn.Module()
    block.ff = FeedForward(width, bias)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    block = block.to(device, torch.bfloat16)
    if fp8:
        for name in ("ff.net.0.proj", "ff.net.2"):
            linear = block.get_submodule(name)
            given = linear.bias if bias else None
            block.set_submodule(name, Fp8Linear(*quantize(linear.weight), given))  # type: ignore[arg-type]
    holder = nn.Module()
    holder.transformer_blocks = nn.ModuleList([block])
    for parameter in lora.attach(holder, Lora(rank=rank, targets=["ff.net.0.proj", "ff.net.2"])):
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    ff = block.ff
    assert isinstance(ff, FeedForward)
    return ff


def step(ff: FeedForward, device: str, fused: bool = False) -> list[Tensor]:
    """What it gives, and the gradients of its input, of what it adds to, and of its adapters."""
    generator = torch.Generator().manual_seed(1)
    width = frozen(ff.net[2]).out_features
    x, before, grad = torch.randn(3, 1, ROWS, width, generator=generator).to(device, torch.bfloat16)
    gates = torch.randn(1, 2, width, generator=generator).to(device, torch.bfloat16)
    level = (torch.rand(1, ROWS, generator=generator) > 0.3).long().to(device)
    x.requires_grad_()
    adapter = [p for p in ff.parameters() if p.requires_grad]
    onto = GatedResidual(before.requires_grad_(), gates, level)
    found = fused_feed_forward(x, *ff.linears, onto) if fused else None
    out = onto.add(ff(x)) if found is None else found
    return [out.detach(), *torch.autograd.grad(out, [x, before, *adapter], grad)]


@pytest.mark.gpu
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("rank", [16, 32, 64])
@pytest.mark.parametrize("width", [WIDTH, WIDE])  # a program's channels are one tile, and several
def test_the_kernels_give_what_the_layers_give(width: int, rank: int, fp8: bool, bias: bool) -> None:
    ff = layer(bias, fp8, "cuda", rank, width)
    plain = step(ff, "cuda")
    apart = step(ff, "cuda", True)
    roomy(ff.linears[0])
    for found in (apart, step(ff, "cuda", True)):
        for one, wanted in zip(found, plain, strict=True):
            assert one.dtype == wanted.dtype
            assert float((one.float() - wanted.float()).norm() / wanted.float().norm()) < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
def test_a_weight_that_is_kept_turned_gives_the_same_bits(fused: bool) -> None:
    ff = layer(True, True, "cuda")
    plain = step(ff, "cuda", fused)
    cache_transposed(ff, True)
    for wanted, found in zip(plain, step(ff, "cuda", fused), strict=True):
        assert torch.equal(wanted, found)


def test_where_there_is_no_kernel_the_layers_compute() -> None:
    ff = layer(True, False, "cpu")
    plain = step(ff, "cpu")
    for wanted, found in zip(plain, step(ff, "cpu", True), strict=True):
        assert torch.equal(wanted, found)
