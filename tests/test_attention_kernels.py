"""The fused kernels around attention give the results of matmuls, norms and rotations, forward and backward."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.ltx2.kernels import flash_attention as flash
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, quantize
from iclora_train.ltx2.kernels.modulated_norm import ModulatedNorm
from iclora_train.ltx2.kernels.modulation import GatedResidual
from iclora_train.ltx2.model.rope import rope_table
from iclora_train.ltx2.model.transformer import Block, TransformerConfig
from iclora_train.ltx2.runtime import fused_block
from iclora_train.ltx2.runtime.fused_block import FusedBlock, add_to_residual

WIDTH, HEADS, TOKENS, TEXT_TOKENS = 256, 4, 150, 40
FLASH_HEADS = WIDTH // flash.HEAD_DIM  # heads of the head_dim that flash-attn-4 supports
LINEARS = ["to_q", "to_k", "to_v", "to_out.0"]


def build_block(
    fp8: bool, spread: float, rank: int = 16, text: bool = False, heads: int = HEADS, device: str = "cuda"
) -> Block:
    """A block in bf16 whose self-attention, or text attention, has LoRA in fp32 with a B that is not zero.

    fp8: the linears of that attention are in fp8. spread: standard deviation of the logs of the norms' weights.
    """
    generator = torch.Generator().manual_seed(0)
    config = TransformerConfig(
        num_attention_heads=heads, attention_head_dim=WIDTH // heads, cross_attention_dim=WIDTH,
        apply_gated_attention=True,
    )  # fmt: skip
    block = Block(config)
    attn = block.attn2 if text else block.attn1
    for parameter in attn.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    for norm in (attn.q_norm, attn.k_norm):
        norm.weight.data = (spread * torch.randn(WIDTH, generator=generator)).exp()
    block = block.to(device, torch.bfloat16)
    for name in LINEARS if fp8 else []:
        linear = cast(nn.Linear, attn.get_submodule(name))
        attn.set_submodule(name, Fp8Linear(*quantize(linear.weight.detach()), linear.bias.detach()))
    holder = nn.Module()
    holder.transformer_blocks = nn.ModuleList([block])
    targets = [f"{'attn2' if text else 'attn1'}.{name}" for name in LINEARS]
    for parameter in lora.attach(holder, Lora(rank=rank, targets=targets)):
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    block.fused = FusedBlock(block)
    return block


def step(block: Block, dtype: torch.dtype, text: bool = False) -> list[Tensor]:
    """For two clips: the residual stream after attention and the norm of that, and the gradients of attention's input,
    of the residual stream before it, and of LoRA."""
    fused, attn = cast(FusedBlock, block.fused), block.attn2 if text else block.attn1
    device = attn.q_norm.weight.device
    generator = torch.Generator().manual_seed(1)
    x, stream, *grads = torch.randn(4, 2, TOKENS, WIDTH, generator=generator).to(device, torch.bfloat16).to(dtype)
    gates, scale, shift = torch.randn(3, 2, 2, WIDTH, generator=generator).to(device, torch.bfloat16).to(dtype)
    level = (torch.rand(2, TOKENS, generator=generator) > 0.3).long().to(device)
    position = torch.rand(2, 3, TOKENS, 2, generator=generator).to(device)
    rope = rope_table(position, WIDTH, attn.heads, 10000.0, (20, 2048, 2048)).to(torch.bfloat16).to(dtype)
    x.requires_grad_()
    adapter = [p for p in block.parameters() if p.requires_grad]
    context = torch.randn(2, TEXT_TOKENS, WIDTH, generator=generator).to(device, torch.bfloat16).to(dtype)
    residual = GatedResidual(stream.requires_grad_(), gates, level)
    out, logits = fused.attend_text(attn, x, context) if text else fused.attend_self(attn, x, rope, None, None)
    x_out, normed = add_to_residual(attn, out, logits, residual, ModulatedNorm(scale, shift, 1e-6))
    gradients = torch.autograd.grad([x_out, normed], [x, stream, *adapter], grads)
    return [x_out.detach(), normed.detach(), *gradients]


def error(result: Tensor, expected: Tensor) -> float:
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def disable_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("supports_qkv", "supports_query", "supports_attention_out"):
        monkeypatch.setattr(fused_block, name, lambda *_: False)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [HEADS, FLASH_HEADS])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(("spread", "rank"), [(0.0, 16), (1.0, 64)])
@pytest.mark.parametrize("fp8", [False, True])
def test_the_kernels_are_as_exact_as_the_layers(
    fp8: bool, spread: float, rank: int, text: bool, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = build_block(fp8, spread, rank, text, heads)
    calls: set[str] = set()

    def count(name: str) -> None:
        real = getattr(fused_block, name)
        monkeypatch.setattr(fused_block, name, lambda *args: calls.add(name) or real(*args))  # type: ignore[func-returns-value]

    count("fused_query" if text else "fused_qkv")
    count("fused_attention_out")
    results = step(block, torch.bfloat16, text)
    assert len(calls) == 2
    disable_kernels(monkeypatch)
    unfused = step(block, torch.bfloat16, text)
    exact = step(build_block(fp8, spread, rank, text, heads).double(), torch.float64, text)
    for fused, layers, expected in zip(results, unfused, exact, strict=True):
        assert fused.dtype == layers.dtype
        assert error(fused, expected) <= 1.1 * error(layers, expected)


@pytest.mark.parametrize("text", [False, True])
def test_the_layers_in_bf16_are_close_to_fp64(text: bool) -> None:
    """The layers are the reference of the GPU tests; this test runs on any device."""
    plain = step(build_block(False, 0.0, text=text, device="cpu"), torch.bfloat16, text)
    exact = step(build_block(False, 0.0, text=text, device="cpu").double(), torch.float64, text)
    for result, expected in zip(plain, exact, strict=True):
        assert error(result, expected) < 0.05


@pytest.mark.gpu
def test_norm_weights_of_almost_zero_have_correct_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    block = build_block(False, 0.0)
    for norm in (block.attn1.q_norm, block.attn1.k_norm):
        norm.weight.data[3], norm.weight.data[WIDTH // HEADS + 5] = 0, 1e-6
    results = step(block, torch.bfloat16)
    disable_kernels(monkeypatch)
    for fused, unfused in zip(results, step(block, torch.bfloat16), strict=True):
        assert error(fused, unfused) < 0.02
