"""Compiled blocks give eager velocities and gradients at every activation budget, with LoRA, fp8, attention weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from iclora_train.adapters import lora
from iclora_train.config import Lora
from iclora_train.core.types import Geometry, Tokens
from iclora_train.diffusion.reference import append_reference, target_tokens
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime import save_policy
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.ltx2.runtime.fused_block import FusedBlock
from scripts.synthetic.random_base import RandomBase
from tests.processes import single_process_group

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.compile's own warnings
TARGETS = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"]


def scene(channels: int, size: int = 4) -> Tokens:
    """Tokens of a random target with one reference of the same size."""
    generator = torch.Generator().manual_seed(0)
    target, reference = torch.randn(2, 1, channels, 2, size, size, generator=generator)
    tokens = target_tokens(target, torch.tensor([0.7]), Geometry(channels, 32, 8), 24.0)
    return append_reference(tokens, reference)


def network(fp8: bool = False, targets: Sequence[str] = TARGETS) -> Transformer:
    """A tiny transformer with LoRA whose B is not zero."""
    net = RandomBase("2.3", "tiny").transformer(fp8=fp8)
    for parameter in lora.attach(net, Lora(rank=4, targets=list(targets))):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return net.train()


def step(net: Transformer, tokens: Tokens) -> list[Tensor]:
    """The velocity, and the gradients of LoRA."""
    text = torch.randn(1, 5, net.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    adapter = [p for p in net.parameters() if p.requires_grad]
    velocity = net(tokens, text)
    return [velocity.detach(), *torch.autograd.grad(velocity.square().mean(), adapter)]


def compare(fp8: bool, weighted: bool, budget: float, backend: str) -> None:
    """Compare an eager and a compiled step. weighted: with attention weights. budget: the activation budget."""
    tokens = scene(8)
    if weighted:
        weight = torch.where(tokens.group == 0, 1.0, torch.linspace(0, 1, len(tokens.group)))
        tokens = replace(tokens, weight=weight[None])
    eager, compiled = network(fp8), network(fp8)
    for block in compiled.transformer_blocks:
        block.fused = FusedBlock(block)  # type: ignore[arg-type] # fused linears, as on a GPU
    compile_blocks(compiled, budget, backend)
    for expected, result in zip(step(eager, tokens), step(compiled, tokens), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_compiled_blocks_give_the_same_step() -> None:
    compare(fp8=True, weighted=False, budget=0.5, backend="aot_eager_decomp_partition")


def test_another_activation_budget_is_compiled_anew() -> None:
    """trainer.memory tries several budgets in one process."""
    net, tokens = network(), scene(8)

    def saved_bytes() -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step(net, tokens)
        return sum(sizes.values())

    saved = []
    for budget in (1.0, 0.0, 1.0):
        compile_blocks(net, budget, "aot_eager_decomp_partition")
        saved.append(saved_bytes())
    assert saved[1] < 0.8 * saved[0]
    assert saved[2] == saved[0]
    torch._dynamo.reset()


def test_under_ddp_a_block_is_one_graph(tmp_path: Path) -> None:
    net, tokens, graphs = network(), scene(8), 0
    text = torch.randn(1, 5, net.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))

    def count(graph: fx.GraphModule, _inputs: Sequence[Any]) -> fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    compile_blocks(net, 1.0, count)  # type: ignore[arg-type]
    with single_process_group(tmp_path):
        torch.nn.parallel.DistributedDataParallel(net, bucket_cap_mb=0.001)(tokens, text)
    torch._dynamo.reset()
    assert graphs == 1  # not one per gradient bucket


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fp8", [False, True])
def test_every_activation_budget_gives_the_same_step(fp8: bool, budget: float) -> None:
    compare(fp8, weighted=False, budget=budget, backend="aot_eager_decomp_partition")


@pytest.mark.slow
def test_compiled_blocks_support_attention_weights() -> None:
    compare(fp8=False, weighted=True, budget=1.0, backend="aot_eager_decomp_partition")


@pytest.mark.slow
def test_generated_code_gives_the_same_step(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compare(fp8=False, weighted=False, budget=0.5, backend="inductor")
    assert any(tmp_path.rglob("*.so"))  # cached on disk


@pytest.mark.slow
def test_compiled_code_of_another_version_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def cache_hits() -> int:
        """How often a step loaded compiled code from disk."""
        torch._dynamo.utils.counters.clear()
        net, tokens = network(), scene(8)
        compile_blocks(net)
        step(net, tokens)
        torch._dynamo.reset()
        return torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"]

    assert cache_hits() == 0
    assert cache_hits() > 0
    monkeypatch.setattr(save_policy, "SOURCES", save_policy.SOURCES[1:])
    assert cache_hits() == 0


@pytest.mark.slow
def test_attention_is_not_recomputed(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    net, tokens = network(), scene(8)
    compile_blocks(net, activation_budget=0.3)
    step(net, tokens)
    with torch.profiler.profile() as recorded:
        step(net, tokens)
    calls = [event.name for event in recorded.events()]
    assert calls.count("aten::_scaled_dot_product_flash_attention_for_cpu") == 2 * len(net.transformer_blocks)
    torch._dynamo.reset()
