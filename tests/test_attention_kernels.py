"""Attention's own kernels compute what products, norms and rotations do, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.ltx2.kernels import flash_attention as flash
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, quantize
from iclora_train.ltx2.kernels.modulated_norm import Norm
from iclora_train.ltx2.kernels.modulation import GatedResidual
from iclora_train.ltx2.model import attention
from iclora_train.ltx2.model.attention import Attention
from iclora_train.ltx2.model.rope import rope_table

WIDTH, HEADS, TOKENS, WORDS = 256, 4, 150, 40
FLASH_HEADS = WIDTH // flash.HEAD_DIM  # as few as have the channels that flash-attn-4 is used for
NAMES = ["to_q", "to_k", "to_v", "to_out.0"]


def layer(fp8: bool, spread: float, rank: int = 16, text: bool = False, heads: int = HEADS) -> Attention:
    """Self-attention, or attention to a text, in bf16 (products in fp8), with fp32 adapters that do something, and
    norms whose weights' logs are spread so far."""
    generator = torch.Generator().manual_seed(0)
    attn = Attention(WIDTH, WIDTH, heads, 1e-6, gated=True)
    for parameter in attn.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    for norm in (attn.q_norm, attn.k_norm):
        norm.weight.data = (spread * torch.randn(WIDTH, generator=generator)).exp()
    attn = attn.to("cuda", torch.bfloat16)
    for name in NAMES if fp8 else []:
        linear = attn.get_submodule(name)
        attn.set_submodule(name, Fp8Linear(*quantize(linear.weight), linear.bias))  # type: ignore[arg-type]
    holder, block = nn.Module(), nn.Module()
    block.attn1 = attn
    holder.transformer_blocks = nn.ModuleList([block])
    for parameter in lora.attach(holder, Lora(rank=rank, targets=[f"attn1.{name}" for name in NAMES])):
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    attn.join(own=not text)
    attn.fused = True
    return attn


def step(attn: Attention, dtype: torch.dtype, text: bool = False) -> list[Tensor]:
    """What two clips are with what it adds to them, each with a text or none, and the norm of that; and the gradients
    of its input, of what it adds to, and of its adapters."""
    generator = torch.Generator().manual_seed(1)
    x, before, *grads = torch.randn(4, 2, TOKENS, WIDTH, generator=generator).to("cuda", torch.bfloat16).to(dtype)
    gates, scale, shift = torch.randn(3, 2, 2, WIDTH, generator=generator).to("cuda", torch.bfloat16).to(dtype)
    level = (torch.rand(2, TOKENS, generator=generator) > 0.3).long().to("cuda")
    position = torch.rand(2, 3, TOKENS, 2, generator=generator).to("cuda")
    rope = rope_table(position, WIDTH, attn.heads, 10000.0, (20, 2048, 2048)).to(torch.bfloat16).to(dtype)
    x.requires_grad_()
    adapter = [p for p in attn.parameters() if p.requires_grad]
    words = torch.randn(2, WORDS, WIDTH, generator=generator).to("cuda", torch.bfloat16).to(dtype)
    looked_at = {"context": words} if text else {"rope": rope}
    onto = GatedResidual(before.requires_grad_(), gates, level)
    found, normed = attn.added(x, onto, Norm(scale, shift, 1e-6), **looked_at)
    back = torch.autograd.grad([found, normed], [x, before, *adapter], grads)
    return [found.detach(), normed.detach(), *back]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernels from now on."""
    for name in ("takes_qkv", "takes_query", "takes_out"):
        monkeypatch.setattr(attention, name, lambda *_: False)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [HEADS, FLASH_HEADS])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(("spread", "rank"), [(0.0, 16), (1.0, 64)])
@pytest.mark.parametrize("fp8", [False, True])
def test_the_kernels_round_no_more_than_the_layers_do(
    fp8: bool, spread: float, rank: int, text: bool, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attn = layer(fp8, spread, rank, text, heads)
    calls: set[str] = set()

    def counted(name: str) -> None:
        real = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *given: calls.add(name) or real(*given))  # type: ignore[func-returns-value]

    counted("normed_query" if text else "rotated_qkv")
    counted("gated_out")
    found = step(attn, torch.bfloat16, text)
    assert len(calls) == 2
    without(monkeypatch)
    plain = step(attn, torch.bfloat16, text)
    exact = step(layer(fp8, spread, rank, text, heads).double(), torch.float64, text)
    for ours, theirs, wanted in zip(found, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert error(ours, wanted) <= 1.1 * error(theirs, wanted)


@pytest.mark.gpu
def test_a_norm_whose_weights_are_next_to_nothing_has_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    attn = layer(False, 0.0)
    for norm in (attn.q_norm, attn.k_norm):
        norm.weight.data[3], norm.weight.data[WIDTH // HEADS + 5] = 0, 1e-6
    found = step(attn, torch.bfloat16)
    without(monkeypatch)
    for ours, plain in zip(found, step(attn, torch.bfloat16), strict=True):
        assert error(ours, plain) < 0.02
