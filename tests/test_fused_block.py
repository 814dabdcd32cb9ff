"""Fused blocks compute the same as plain blocks, bit for bit on a CPU in fp32: outputs and training gradients."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.core.types import Tokens
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.compile import fuse_blocks
from scripts.synthetic.random_base import RandomBase
from tests.test_compiled import scene


def network(version: str) -> Transformer:
    """A tiny transformer with an adapter on every linear that IC-LoRAs train. B is not zero."""
    net = RandomBase(version, "tiny").transformer()
    for seed, parameter in enumerate(lora.attach(net, Lora(rank=4))):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed))
    return net.train()


def step(
    net: Transformer, tokens: Tokens, perturbed: tuple[int, ...], num_outputs: int | None, adapter: bool
) -> list[Tensor]:
    """The velocity, and the gradients of the latent and, with the adapter on, of the adapter's parameters."""
    text = torch.randn(1, 5, net.config.text_width, generator=torch.Generator().manual_seed(1))
    tokens = replace(tokens, latent=tokens.latent.clone().requires_grad_())
    inputs = [tokens.latent, *(p for p in net.parameters() if p.requires_grad and adapter)]
    with nullcontext() if adapter else lora.adapter_off(net):
        velocity = net(tokens, text, perturbed=perturbed, num_outputs=num_outputs)
        grads = torch.autograd.grad(velocity.square().mean(), inputs, allow_unused=True, materialize_grads=True)
    return [velocity.detach(), *grads]


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter on", "adapter off"])
@pytest.mark.parametrize("weighted", [False, True], ids=["no attention weights", "attention weights"])
@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
def test_fused_blocks_equal_plain_blocks_bit_for_bit(version: str, weighted: bool, adapter: bool) -> None:
    plain, fused, tokens = network(version), network(version), scene(8)
    if weighted:
        weight = torch.where(tokens.group == 0, 1.0, torch.linspace(0, 1, len(tokens.group)))
        tokens = replace(tokens, weight=weight[None])
    fuse_blocks(fused)
    assert all(block.fused is not None for block in fused.transformer_blocks)
    for perturbed in ((), (0,)):  # with (0,), spatio-temporal guidance in block 0
        for num_outputs in (None, 16):
            expected = step(plain, tokens, perturbed, num_outputs, adapter)
            results = step(fused, tokens, perturbed, num_outputs, adapter)
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
            assert bool(expected[-1].any())
