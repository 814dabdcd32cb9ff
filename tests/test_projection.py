"""Linears with adapters: computed apart or together, the same; what the last block leaves out is not looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.ltx2.kernels import lora_linear as projection
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, quantize
from iclora_train.ltx2.kernels.lora_linear import FusedLinear, cache_transposed, fp8_linears, together
from iclora_train.ltx2.kernels.lora_product import low_rank_back
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.fused_block import FusedBlock
from scripts.synthetic.random_base import RandomBase
from tests.test_compiled import network, scene, step


def joined(net: Transformer) -> Transformer:
    for block in net.transformer_blocks:
        block.fused = FusedBlock(block)  # type: ignore[arg-type]
    return net


def adapter(net: Transformer, alpha: float | None = None, targets: list[str] | None = None) -> Transformer:
    settings = Lora(rank=4, alpha=alpha, targets=targets) if targets else Lora(rank=4, alpha=alpha)
    for parameter in lora.attach(net, settings):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return net.train()


@pytest.mark.parametrize("targets", [None, ["attn1.to_k", "attn2.to_v"], ["ff.net.2"]])
@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize("fp8", [False, True])
def test_together_is_the_same_as_one_by_one(fp8: bool, alpha: float | None, targets: list[str] | None) -> None:
    base, tokens = RandomBase("2.3", "tiny"), scene(8)
    apart, one = (adapter(base.transformer(fp8=fp8), alpha, targets) for _ in range(2))
    for wanted, found in zip(step(apart, tokens), step(joined(one), tokens), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_with_the_adapter_off_only_the_base_computes() -> None:
    tokens, base, net = scene(8), RandomBase("2.3", "tiny"), joined(network())
    text = torch.randn(1, 5, net.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), lora.adapter_off(net):
        torch.testing.assert_close(net(tokens, text), base.transformer()(tokens, text), rtol=1e-4, atol=1e-5)


def test_joined_weights_take_no_more_memory() -> None:
    net = RandomBase("2.3", "tiny").transformer()
    block = joined(net).transformer_blocks[0]
    q, joint = block.attn1.to_q.weight, block.fused.qkv.weight  # type: ignore[union-attr]
    assert q.untyped_storage().data_ptr() == joint.untyped_storage().data_ptr()  # type: ignore[union-attr, operator]
    assert not any("joint" in name for name in net.state_dict())


def test_fp8_weights_are_turned_once_each_and_back() -> None:
    net = joined(RandomBase("2.3", "tiny").transformer(fp8=True))
    plain = RandomBase("2.3", "tiny").transformer(fp8=True)
    assert not fp8_linears(RandomBase("2.3", "tiny").transformer())
    parts = fp8_linears(net)
    assert len(fp8_linears(plain)) > len(parts)
    assert sum(part.weight.numel() for part in fp8_linears(plain)) == sum(part.weight.numel() for part in parts)
    cache_transposed(net, True)
    assert all(torch.equal(part.weight_t.view(torch.uint8), part.weight.t().view(torch.uint8)) for part in parts)  # type: ignore[union-attr]
    assert not any("weight_t" in name for name in net.state_dict())
    cache_transposed(net, False)
    assert all(part.weight_t is None for part in parts)


@pytest.mark.gpu
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
def test_the_kernel_gives_what_products_give(fp8: bool, gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    holder, block = nn.Module(), nn.Module()
    names = ["to_q", "to_k", "to_v"]
    for name in names:
        linear = nn.Linear(64, 256, device="cuda", dtype=torch.bfloat16)
        block.add_module(name, Fp8Linear(*quantize(linear.weight.data), linear.bias.data) if fp8 else linear)
    holder.transformer_blocks = nn.ModuleList([block])
    adapters = lora.attach(holder, Lora(rank=16, targets=names))
    for parameter in adapters:
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator, device="cuda")
    layers = [block.get_submodule(name) for name in names]
    gate = nn.Linear(64, 8, device="cuda", dtype=torch.bfloat16) if gated else None
    x = torch.randn(2, 150, 64, generator=generator, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    joint, results = FusedLinear(layers), []
    for allowed in (False, True):
        if not allowed:
            monkeypatch.setattr(projection, "has_kernel", lambda *_: False)
        else:
            monkeypatch.undo()
        out = torch.cat(together(x, layers, joint, gate)[0], -1)
        grad = torch.ones_like(out).cumsum(1) / 75
        results.append([out.detach(), *torch.autograd.grad(out, [x, *adapters], grad)])
    for wanted, found in zip(*results, strict=True):
        assert float((found.float() - wanted.float()).norm() / wanted.float().norm()) < 0.02


def test_linears_of_two_scales_are_one_fp8_product() -> None:
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for size in (0.01, 3.0):
        weight, scale = quantize(size * torch.randn(8, 16, generator=generator))
        layers.append(Fp8Linear(weight, scale, None))
    x = torch.randn(3, 16, generator=generator, requires_grad=True)
    wanted = [layer(x) for layer in layers]
    found, _ = together(x, layers, FusedLinear(layers))
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(b, a)
    grads = [torch.autograd.grad(sum(out.square().sum() for out in outs), x)[0] for outs in (wanted, found)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_not_asked_for_is_not_computed_and_changes_nothing(weighted: bool) -> None:
    net, tokens = network(), scene(8)
    if weighted:
        tokens = replace(tokens, weight=torch.where(tokens.group == 0, 1.0, 0.5)[None])
    text = torch.randn(1, 5, net.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    count = int((tokens.group == 0).sum())
    shapes: list[Tensor] = []
    net.transformer_blocks[-1].ff.register_forward_hook(lambda _m, given, _o: shapes.append(given[0]))  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(net(tokens, text, num_outputs=count), net(tokens, text)[:, :count])
    assert [len(given[0]) for given in shapes] == [count, len(tokens.group)]


def test_bf16_loss_is_the_fp32_loss_within_bf16_rounding() -> None:
    tokens = scene(8)
    exact, half = network(), joined(network().bfloat16())
    text = torch.randn(1, 5, exact.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    wanted, found = (net(tokens, text).detach().float().square().mean() for net in (exact, half))
    assert abs(float(found / wanted) - 1) < 2**-8 * 3


@pytest.mark.gpu
@pytest.mark.parametrize(("rank", "layers"), [(16, 1), (32, 3), (64, 3)])
def test_both_gradients_of_an_up_are_those_of_products(rank: int, layers: int) -> None:
    """At the real width, for rows that fill no tile, and inner activations that lie beside others."""
    generator = torch.Generator("cuda").manual_seed(0)
    grad = torch.randn(1111, layers * 4096, generator=generator, device="cuda", dtype=torch.bfloat16)
    u = torch.randn(1111, layers * rank + 32, generator=generator, device="cuda", dtype=torch.bfloat16)[:, :-32]
    blocks = torch.randn(layers, 4096, rank, generator=generator, device="cuda", dtype=torch.bfloat16)
    found = low_rank_back(grad, u, torch.block_diag(*blocks), layers)
    places = torch.block_diag(*torch.ones_like(blocks))
    wanted = grad.double() @ torch.block_diag(*blocks).double(), (grad.double().t() @ u.double()) * places
    for ours, exact in zip(found, wanted, strict=True):
        assert float((ours.double() - exact).norm() / exact.norm()) < 2**-8
