"""Small kernels of a compiled block run as one, and what the block computes stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import sympy
import torch
from torch import Tensor
from torch._inductor.scheduler import BaseSchedulerNode, Scheduler, SchedulerNode

from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime import combo_kernels as combine
from iclora_train.ltx2.runtime.combo_kernels import SMALL, enable_combo_kernels, small_groups
from iclora_train.ltx2.runtime.compile import compile_blocks
from scripts.saved_activations import given, network

TOKENS = 700


def kernel(made: int, summed: int) -> BaseSchedulerNode:
    """A kernel of the compiler's that makes so many numbers, each a sum of so many."""
    node = SchedulerNode.__new__(SchedulerNode)
    node.group = (torch.device("cpu"), (sympy.Integer(made), sympy.Integer(summed)))
    return node


def test_of_what_could_be_combined_only_the_small_is(monkeypatch: pytest.MonkeyPatch) -> None:
    small, sums, large, many = kernel(SMALL, 1), kernel(1000, 16), kernel(SMALL + 1, 1), kernel(SMALL // 8, 16)
    no_kernel = BaseSchedulerNode.__new__(BaseSchedulerNode)
    monkeypatch.setattr(combine, "_every", lambda _scheduler: [[small, large, sums], [many], [no_kernel, sums]])
    assert small_groups(cast(Scheduler, None)) == [[small, sums], [], [sums]]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
def test_on_a_gpu_small_kernels_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    enable_combo_kernels()
    sizes = [1000, 3000, 70_000, 131_072, SMALL + 64, SMALL + 128]
    before = [torch.randn(size, device="cuda") for size in sizes]

    def cast_all(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.bfloat16() * 2 for tensor in tensors]

    compiled = torch.compile(cast_all, dynamic=False)
    compiled(before)
    with torch.profiler.profile() as recorded:
        found = compiled(before)
        torch.cuda.synchronize()
    for ours, wanted in zip(found, cast_all(before), strict=True):
        torch.testing.assert_close(ours, wanted)
    kernels = [event.name for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert sum("triton" in name for name in kernels) == 3  # the four small ones, and each of the others
    torch._dynamo.reset()


def filled(fp8: bool) -> Transformer:
    """A block of LTX-2.3 whose weights and adapters all do something, as `network`."""
    net, generator = network(fp8, 32), torch.Generator().manual_seed(0)
    for name, parameter in net.transformer_blocks.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.data = ((0.3 * values).exp() if "norm" in name else 0.02 * values).to(parameter.dtype)
    return net


def step(net: Transformer, device: str) -> list[Tensor]:
    """What the block makes of some tokens, the gradient of those, and of its adapters."""
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for tensor in given(net, TOKENS):
        real = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor.long()
        inputs.append(real.to(device, tensor.dtype))
    inputs[3][:, TOKENS // 2 :] = 1  # the level of the reference
    angle = inputs[4][0].float()
    inputs[4] = torch.stack([angle.cos(), angle.sin()]).to(inputs[4].dtype)
    inputs[0].requires_grad_()
    learned = [part for part in net.transformer_blocks.parameters() if part.requires_grad]
    with torch.autocast(device, torch.bfloat16):
        found = net.transformer_blocks[0](*inputs)
    return [found.detach(), *torch.autograd.grad(found, [inputs[0], *learned], inputs[0].detach())]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
@pytest.mark.parametrize(("fp8", "apart"), [(False, 0.03), (True, 0.1)])  # rounding of gradients differs in fp8
def test_a_compiled_block_of_full_width_is_as_exact_as_its_layers(
    fp8: bool, apart: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    net = filled(fp8)
    net.transformer_blocks.to("cuda")
    wanted = step(net, "cuda")
    compile_blocks(net, 1.0)
    found = step(net, "cuda")
    errors = [float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True)]
    assert max(errors) < apart, errors
    torch._dynamo.reset()
