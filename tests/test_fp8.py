"""A base model whose linears stay in fp8: its results, its weights, and LoRA training on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.core.types import Geometry, Tokens
from iclora_train.diffusion.reference import append_reference, target_tokens
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.kernels.fp8_linear import E4M3, Fp8Linear, quantize
from scripts.synthetic_checkpoint import write_checkpoint

QUERY = "transformer_blocks.1.attn1.to_q"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The same tiny base model as an official fp8 file (True) and in bf16 (False)."""
    folder = tmp_path_factory.mktemp("fp8")
    return {fp8: write_checkpoint(folder / str(fp8), "2.3", fp8=fp8) for fp8 in (True, False)}


def scene(channels: int, width: int) -> tuple[Tokens, Tensor]:
    """Tokens of a target and a reference, and text features."""
    generator = torch.Generator().manual_seed(0)
    target, reference = torch.randn(2, 1, channels, 2, 2, 2, generator=generator)
    tokens = target_tokens(target, torch.tensor([0.7]), Geometry(channels, 32, 8), 24.0)
    return append_reference(tokens, reference), torch.randn(1, 5, width, generator=generator)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


@torch.no_grad()
def test_an_fp8_file_gives_the_same_results_dequantized_at_loading_or_at_use(files: dict[bool, Path]) -> None:
    base = BaseModel.open(str(files[True]))
    fp8, dequantized = base.transformer(fp8=True), base.transformer()
    tokens, text = scene(8, 32)
    assert relative_error(fp8(tokens, text), dequantized(tokens, text)) < 1e-6
    assert fp8.get_submodule(QUERY).weight.dtype == E4M3
    linear_of_block_0 = fp8.get_submodule(QUERY.replace(".1.", ".0."))  # the file has this block in bf16
    assert not isinstance(linear_of_block_0, Fp8Linear)


@torch.no_grad()
def test_a_bf16_file_is_quantized_while_loading(files: dict[bool, Path]) -> None:
    base = BaseModel.open(str(files[False]))
    quantized, bf16 = base.transformer(fp8=True), base.transformer()
    tokens, text = scene(8, 32)
    assert 1e-3 < relative_error(quantized(tokens, text), bf16(tokens, text)) < 0.1
    linears = [m for name, m in quantized.named_modules() if isinstance(m, nn.Linear) and "blocks" in name]
    for linear in linears:
        is_gate = linear.out_features == bf16.config.num_attention_heads
        assert isinstance(linear, Fp8Linear) != is_gate


def test_quantize_uses_the_whole_range_of_fp8() -> None:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    values, scale = quantize(weight)
    assert float(values.float().abs().max()) == torch.finfo(E4M3).max
    assert torch.allclose(values.float() * scale, weight, rtol=2**-4, atol=float(scale) * 2**-9)
    assert torch.equal(quantize(torch.zeros(2, 2))[0].float(), torch.zeros(2, 2))


def test_input_gradients_equal_those_of_the_dequantized_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    values, scale = quantize(torch.randn(6, 5, generator=generator))
    bias = torch.randn(6, generator=generator)
    x = torch.randn(2, 3, 5, generator=generator, requires_grad=True)
    expected = nn.functional.linear(x, values.float() * scale, bias)
    out = Fp8Linear(values, scale, bias)(x)
    assert torch.allclose(out, expected, atol=1e-6)
    grad = torch.randn(2, 3, 6, generator=generator)
    assert torch.allclose(*(torch.autograd.grad(y, x, grad)[0] for y in (out, expected)), atol=1e-6)


def test_an_adapter_trains_in_fp32_on_an_fp8_base_and_loads_again(files: dict[bool, Path], tmp_path: Path) -> None:
    base = BaseModel.open(str(files[True]))
    net = base.transformer(fp8=True)
    parameters = lora.attach(net, Lora(rank=4))
    assert {p.dtype for p in parameters} == {torch.float32}
    lora_a = dict(lora.layers(net))[QUERY].lora_A["default"].weight
    assert len(lora_a.unique()) == lora_a.numel()  # drawn in fp32: fp8 has few values this small
    tokens, text = scene(8, 32)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    target = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(5):
        loss = (net(tokens, text) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    path = tmp_path / "adapter.safetensors"
    lora.save(path, lora.Adapter(lora.adapter_weights(net), {"reference_downscale_factor": "1"}))
    reloaded = base.transformer(fp8=True)
    lora.load_adapter(reloaded, lora.read(path))
    with torch.no_grad():
        assert relative_error(reloaded(tokens, text), net(tokens, text)) < 1e-6
