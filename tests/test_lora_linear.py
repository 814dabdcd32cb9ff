"""Fused linears with LoRA give the results of separate linears; the last block computes only the requested outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.ltx2.kernels import lora_linear
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, quantize
from iclora_train.ltx2.kernels.lora_linear import FusedLinear, cache_transposed, fp8_linears, fused_forward
from iclora_train.ltx2.kernels.lora_product import lora_b_backward
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.fused_block import FusedBlock
from scripts.synthetic.random_base import RandomBase
from tests.test_compiled import network, scene, step


def fuse(net: Transformer) -> Transformer:
    """Give every block its fused linears."""
    for block in net.transformer_blocks:
        block.fused = FusedBlock(block)  # type: ignore[arg-type]
    return net


def attach(net: Transformer, alpha: float | None = None, targets: list[str] | None = None) -> Transformer:
    settings = Lora(rank=4, alpha=alpha, targets=targets or ["video"])
    if targets == ["attn1", "attn2"]:
        settings.rank_pattern = {"to_gate_logits": 1}  # the gates of two heads
    for parameter in lora.attach(net, settings):  # B is not zero
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return net.train()


@pytest.mark.parametrize("targets", [None, ["attn1.to_k", "attn2.to_v"], ["ff.net.2"], ["attn1", "attn2"]])
@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize("fp8", [False, True])
def test_fused_linears_give_the_same_step(fp8: bool, alpha: float | None, targets: list[str] | None) -> None:
    base, tokens = RandomBase("2.3", "tiny"), scene(8)
    separate, fused = (attach(base.transformer(fp8=fp8), alpha, targets) for _ in range(2))
    for expected, result in zip(step(separate, tokens), step(fuse(fused), tokens), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_with_the_adapter_off_only_the_base_computes() -> None:
    tokens, base, net = scene(8), RandomBase("2.3", "tiny"), fuse(network())
    text = torch.randn(1, 5, net.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), lora.adapter_off(net):
        torch.testing.assert_close(net(tokens, text), base.transformer()(tokens, text), rtol=1e-4, atol=1e-5)


def test_fused_weights_share_the_memory_of_the_separate_ones() -> None:
    net = RandomBase("2.3", "tiny").transformer()
    block = fuse(net).transformer_blocks[0]
    q, qkv = block.attn1.to_q.weight, block.fused.qkv.weight  # type: ignore[union-attr]
    assert q.untyped_storage().data_ptr() == qkv.untyped_storage().data_ptr()  # type: ignore[union-attr, operator]
    assert not any("fused" in name for name in net.state_dict())


def test_each_fp8_weight_gets_one_transposed_copy_which_can_be_dropped() -> None:
    net = fuse(RandomBase("2.3", "tiny").transformer(fp8=True))
    plain = RandomBase("2.3", "tiny").transformer(fp8=True)
    assert not fp8_linears(RandomBase("2.3", "tiny").transformer())
    linears = fp8_linears(net)
    assert len(fp8_linears(plain)) > len(linears)
    assert sum(m.weight.numel() for m in fp8_linears(plain)) == sum(m.weight.numel() for m in linears)
    cache_transposed(net, True)
    assert all(torch.equal(m.weight_t.view(torch.uint8), m.weight.t().view(torch.uint8)) for m in linears)  # type: ignore[union-attr]
    assert not any("weight_t" in name for name in net.state_dict())
    cache_transposed(net, False)
    assert all(m.weight_t is None for m in linears)


@pytest.mark.gpu
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
def test_the_kernel_gives_the_results_of_matmuls(fp8: bool, gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    net, block = nn.Module(), nn.Module()
    names = ["to_q", "to_k", "to_v"]
    for name in names:
        linear = nn.Linear(64, 256, device="cuda", dtype=torch.bfloat16)
        block.add_module(name, Fp8Linear(*quantize(linear.weight.data), linear.bias.data) if fp8 else linear)
    net.transformer_blocks = nn.ModuleList([block])
    parameters = lora.attach(net, Lora(rank=16, targets=names))
    for parameter in parameters:
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator, device="cuda")
    layers = [block.get_submodule(name) for name in names]
    gate = nn.Linear(64, 8, device="cuda", dtype=torch.bfloat16) if gated else None
    x = torch.randn(2, 150, 64, generator=generator, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    fused, results = FusedLinear(layers), []
    for with_kernel in (False, True):
        if not with_kernel:
            monkeypatch.setattr(lora_linear, "supports_lora_kernels", lambda *_: False)
        else:
            monkeypatch.undo()
        out = torch.cat(fused_forward(x, layers, fused, gate)[0], -1)
        grad = torch.ones_like(out).cumsum(1) / 75
        results.append([out.detach(), *torch.autograd.grad(out, [x, *parameters], grad)])
    for expected, result in zip(*results, strict=True):
        assert float((result.float() - expected.float()).norm() / expected.float().norm()) < 0.02


def test_fp8_linears_with_different_scales_are_fused() -> None:
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for size in (0.01, 3.0):
        weight, scale = quantize(size * torch.randn(8, 16, generator=generator))
        layers.append(Fp8Linear(weight, scale, None))
    x = torch.randn(3, 16, generator=generator, requires_grad=True)
    expected = [layer(x) for layer in layers]
    results, _ = fused_forward(x, layers, FusedLinear(layers))
    for a, b in zip(expected, results, strict=True):
        torch.testing.assert_close(b, a)
    grads = [torch.autograd.grad(sum(out.square().sum() for out in outs), x)[0] for outs in (expected, results)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_last_block_computes_only_the_requested_outputs(weighted: bool) -> None:
    net, tokens = network(), scene(8)
    if weighted:
        tokens = replace(tokens, weight=torch.where(tokens.group == 0, 1.0, 0.5)[None])
    text = torch.randn(1, 5, net.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    count = int((tokens.group == 0).sum())
    ff_inputs: list[Tensor] = []
    net.transformer_blocks[-1].ff.register_forward_hook(lambda _m, args, _o: ff_inputs.append(args[0]))  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(net(tokens, text, num_outputs=count), net(tokens, text)[:, :count])
    assert [len(x[0]) for x in ff_inputs] == [count, len(tokens.group)]


def test_bf16_loss_is_the_fp32_loss_within_bf16_rounding() -> None:
    tokens = scene(8)
    exact, fused_bf16 = network(), fuse(network().bfloat16())
    text = torch.randn(1, 5, exact.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    expected, loss = (net(tokens, text).detach().float().square().mean() for net in (exact, fused_bf16))
    assert abs(float(loss / expected) - 1) < 2**-8 * 3


@pytest.mark.gpu
@pytest.mark.parametrize(("rank", "layers"), [(16, 1), (32, 3), (64, 3)])
def test_the_backward_pass_of_lora_b_gives_the_results_of_two_matmuls(rank: int, layers: int) -> None:
    """The width is 4096 as in LTX-2.3, the rows do not fill a tile, and u is a slice of a wider tensor."""
    generator = torch.Generator("cuda").manual_seed(0)
    grad = torch.randn(1111, layers * 4096, generator=generator, device="cuda", dtype=torch.bfloat16)
    u = torch.randn(1111, layers * rank + 32, generator=generator, device="cuda", dtype=torch.bfloat16)[:, :-32]
    blocks = torch.randn(layers, 4096, rank, generator=generator, device="cuda", dtype=torch.bfloat16)
    grads = lora_b_backward(grad, u, torch.block_diag(*blocks), layers)
    mask = torch.block_diag(*torch.ones_like(blocks))
    expected = grad.double() @ torch.block_diag(*blocks).double(), (grad.double().t() @ u.double()) * mask
    for ours, exact in zip(grads, expected, strict=True):
        assert float((ours.double() - exact).norm() / exact.norm()) < 2**-8
