"""Combo kernels: small kernels of a compiled block are fused into one, and the block's results stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import sympy
import torch
from torch import Tensor
from torch._inductor.scheduler import BaseSchedulerNode, Scheduler, SchedulerNode

from iclora_train.ltx2.model.transformer import BlockInputs, Transformer
from iclora_train.ltx2.runtime import combo_kernels
from iclora_train.ltx2.runtime.combo_kernels import SMALL, enable_combo_kernels, small_groups
from iclora_train.ltx2.runtime.compile import compile_blocks
from scripts.saved_activations import block_inputs, network

TOKENS = 700


def kernel(outputs: int, reduced: int) -> BaseSchedulerNode:
    """A scheduler node with this number of outputs, each a reduction over `reduced` elements."""
    node = SchedulerNode.__new__(SchedulerNode)
    node.group = (torch.device("cpu"), (sympy.Integer(outputs), sympy.Integer(reduced)))
    return node


def test_only_small_kernels_are_combined(monkeypatch: pytest.MonkeyPatch) -> None:
    small, sums, large, many = kernel(SMALL, 1), kernel(1000, 16), kernel(SMALL + 1, 1), kernel(SMALL // 8, 16)
    other_node = BaseSchedulerNode.__new__(BaseSchedulerNode)
    monkeypatch.setattr(
        combo_kernels, "_default_groups", lambda _scheduler: [[small, large, sums], [many], [other_node, sums]]
    )
    assert small_groups(cast(Scheduler, None)) == [[small, sums], [], [sums]]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler itself
def test_small_kernels_become_one_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    enable_combo_kernels()
    sizes = [1000, 3000, 70_000, 131_072, SMALL + 64, SMALL + 128]
    before = [torch.randn(size, device="cuda") for size in sizes]

    def cast_all(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.bfloat16() * 2 for tensor in tensors]

    compiled = torch.compile(cast_all, dynamic=False)
    compiled(before)
    with torch.profiler.profile() as recorded:
        results = compiled(before)
        torch.cuda.synchronize()
    for value, expected in zip(results, cast_all(before), strict=True):
        torch.testing.assert_close(value, expected)
    kernels = [event.name for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert sum("triton" in name for name in kernels) == 3  # one for the four small casts, and one for each large cast
    torch._dynamo.reset()


def random_network(fp8: bool) -> Transformer:
    """`network` with random weights and adapters, none of which is zero."""
    net, generator = network(fp8, 32), torch.Generator().manual_seed(0)
    for name, parameter in net.transformer_blocks.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.data = ((0.3 * values).exp() if "norm" in name else 0.02 * values).to(parameter.dtype)
    return net


def step(net: Transformer, device: str) -> list[Tensor]:
    """The block's output, and the gradients of its input tokens and its adapters."""
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for tensor in block_inputs(net, TOKENS):
        values = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor.long()
        inputs.append(values.to(device, tensor.dtype))
    inputs[3][:, TOKENS // 2 :] = 1  # the reference tokens' noise level
    angles = inputs[4][0].float()
    inputs[4] = torch.stack([angles.cos(), angles.sin()]).to(inputs[4].dtype)
    inputs[0].requires_grad_()
    trainable = [parameter for parameter in net.transformer_blocks.parameters() if parameter.requires_grad]
    with torch.autocast(device, torch.bfloat16):
        out = net.transformer_blocks[0](inputs[0], BlockInputs(*inputs[1:]))
    return [out.detach(), *torch.autograd.grad(out, [inputs[0], *trainable], inputs[0].detach())]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler itself
@pytest.mark.parametrize(
    ("fp8", "max_error"),
    [(False, 0.03), (True, 0.1)],  # in fp8 the gradients are rounded differently
)
def test_a_compiled_block_of_full_width_agrees_with_eager_execution(
    fp8: bool, max_error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    net = random_network(fp8)
    net.transformer_blocks.to("cuda")
    expected = step(net, "cuda")
    compile_blocks(net, 1.0)
    compiled = step(net, "cuda")
    errors = [
        float((result - reference).norm() / reference.norm())
        for result, reference in zip(compiled, expected, strict=True)
    ]
    assert max(errors) < max_error, errors
    torch._dynamo.reset()
