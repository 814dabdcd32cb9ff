"""The fused feed-forward gives the results of the unfused layers, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, quantize
from iclora_train.ltx2.kernels.fused_feed_forward import fused_feed_forward
from iclora_train.ltx2.kernels.lora_linear import base_linear, cache_transposed, reserve_spare_rows
from iclora_train.ltx2.kernels.modulation import GatedResidual
from iclora_train.ltx2.model.feed_forward import FeedForward

WIDTH, WIDE, ROWS = 256, 1024, 333


def layer(bias: bool, fp8: bool, device: str, rank: int = 16, width: int = WIDTH) -> FeedForward:
    """A feed-forward in bf16, with its weights in fp8 if `fp8`, and LoRA in fp32 whose B is not zero."""
    generator = torch.Generator().manual_seed(0)
    block = nn.Module()
    block.ff = FeedForward(width, bias)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    block = block.to(device, torch.bfloat16)
    if fp8:
        for name in ("ff.net.0.proj", "ff.net.2"):
            linear = block.get_submodule(name)
            linear_bias = linear.bias if bias else None
            block.set_submodule(name, Fp8Linear(*quantize(linear.weight), linear_bias))  # type: ignore[arg-type]
    holder = nn.Module()
    holder.transformer_blocks = nn.ModuleList([block])
    for parameter in lora.attach(holder, Lora(rank=rank, targets=["ff.net.0.proj", "ff.net.2"])):
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    ff = block.ff
    assert isinstance(ff, FeedForward)
    return ff


def step(ff: FeedForward, device: str, fused: bool = False) -> list[Tensor]:
    """The output, and the gradients of the input, of the residual stream, and of LoRA."""
    generator = torch.Generator().manual_seed(1)
    width = base_linear(ff.net[2]).out_features
    x, stream, grad = torch.randn(3, 1, ROWS, width, generator=generator).to(device, torch.bfloat16)
    gates = torch.randn(1, 2, width, generator=generator).to(device, torch.bfloat16)
    level = (torch.rand(1, ROWS, generator=generator) > 0.3).long().to(device)
    x.requires_grad_()
    adapter = [p for p in ff.parameters() if p.requires_grad]
    residual = GatedResidual(stream.requires_grad_(), gates, level)
    out = fused_feed_forward(x, *ff.linears, residual) if fused else None
    out = residual.add(ff(x)) if out is None else out
    return [out.detach(), *torch.autograd.grad(out, [x, stream, *adapter], grad)]


@pytest.mark.gpu
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("rank", [16, 32, 64])
@pytest.mark.parametrize("width", [WIDTH, WIDE])  # one tile of channels per program, or several
def test_the_kernels_give_the_results_of_the_layers(width: int, rank: int, fp8: bool, bias: bool) -> None:
    ff = layer(bias, fp8, "cuda", rank, width)
    unfused = step(ff, "cuda")
    fused = step(ff, "cuda", True)
    reserve_spare_rows(ff.linears[0])
    for results in (fused, step(ff, "cuda", True)):  # without and with the stacked weight
        for result, expected in zip(results, unfused, strict=True):
            assert result.dtype == expected.dtype
            assert float((result.float() - expected.float()).norm() / expected.float().norm()) < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
def test_a_cached_transposed_weight_gives_the_same_bits(fused: bool) -> None:
    ff = layer(True, True, "cuda")
    unfused = step(ff, "cuda", fused)
    cache_transposed(ff, True)
    for expected, result in zip(unfused, step(ff, "cuda", fused), strict=True):
        assert torch.equal(result, expected)


def test_without_kernels_the_layers_are_used() -> None:
    ff = layer(True, False, "cpu")
    unfused = step(ff, "cpu")
    for expected, result in zip(unfused, step(ff, "cpu", True), strict=True):
        assert torch.equal(result, expected)
