"""Weighted attention equals attention with a dense bias, in both passes, in O(N) memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from iclora_train.ltx2.model.attention import attend
from iclora_train.ltx2.model.weighted_attention import AttentionBias

HEADS, WIDTH = 3, 16
MIXED = [0.5, 0.0, 1.0, 0.1, 0.9, 0.0]
WEIGHTS = {  # attention weights of references with 3 tokens each
    "one strength": [[0.3] * 3],
    "off": [[0.0] * 3],
    "mask": [MIXED[:3]],
    "two strengths": [[0.3] * 3 + [0.0] * 3],
    "two masks": [MIXED],
    "a strength per clip": [[0.3] * 3, [1.0] * 3],
    "a mask per clip": [MIXED, MIXED[::-1]],
}


def scene(weights: list[list[float]], dtype: torch.dtype, width: int = WIDTH) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k, v with requires_grad, weights (B,N) and groups (N,) of 4 target tokens and references of 3 tokens each."""
    weight = torch.tensor([[1.0] * 4 + row for row in weights])
    group = torch.tensor([0] * 4 + [1 + i // 3 for i in range(len(weights[0]))])
    generator = torch.Generator().manual_seed(0)
    shape = (len(weight), HEADS, len(group), width)
    qkv = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    return qkv, weight, group


def dense_bias(weight: Tensor, group: Tensor, between: str) -> Tensor:
    """The dense attention bias (B,N,N)."""
    batch, n = weight.shape
    bias = torch.zeros(batch, n, n)
    for b in range(batch):
        for i in range(n):
            for j in range(n):
                if (group[i] == 0) != (group[j] == 0):
                    w = float(weight[b, j] if group[j] > 0 else weight[b, i])
                    bias[b, i, j] = math.log(w) if w > 0 else -math.inf
                elif between == "ltx" and group[i] != group[j]:
                    bias[b, i, j] = -math.inf
    return bias


def compare(
    weights: list[list[float]], between: str, dtype: torch.dtype, bound: float, device: str, width: int = WIDTH
) -> None:
    """Compare output and gradients of `attend` on a device with a softmax of the dense bias."""
    (q, k, v), weight, group = scene(weights, dtype, width)
    inputs = [tensor.detach().to(device).requires_grad_() for tensor in (q, k, v)]
    out = attend(*inputs, AttentionBias(weight.to(device), group.to(device), between))
    logits = q.float() @ k.float().transpose(-1, -2) / math.sqrt(width) + dense_bias(weight, group, between)[:, None]
    expected = logits.softmax(-1) @ v.float()
    assert torch.allclose(out.float().cpu(), expected, atol=bound)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(out, inputs, grad.to(device, dtype))
    for value, reference in zip(grads, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        assert torch.allclose(value.float().cpu(), reference.float(), atol=4 * bound)


CASES = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
BETWEEN = pytest.mark.parametrize("between", ["comfyui", "ltx"])


@BETWEEN
@CASES
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_output_and_gradients_match_a_dense_bias(
    weights: list[list[float]], between: str, dtype: torch.dtype, bound: float
) -> None:
    compare(weights, between, dtype, bound, "cpu")


@pytest.mark.gpu
@BETWEEN
@CASES
@pytest.mark.parametrize("width", [WIDTH, 128])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_gpu_kernels_match_a_dense_bias(
    weights: list[list[float]], between: str, dtype: torch.dtype, bound: float, width: int
) -> None:
    compare(weights, between, dtype, bound, "cuda", width)


ABSENT = {  # references of 3 tokens that a clip does not have
    "the second of three": [[False, True, False]],
    "the same in every clip": [[True, False, False]] * 2,
    "others in every clip": [[False, True, False], [False, False, False], [True, False, True]],
}


@pytest.mark.parametrize("gone", ABSENT.values(), ids=ABSENT.keys())
def test_no_reference_attends_to_one_that_its_clip_does_not_have(gone: list[list[bool]]) -> None:
    absent = torch.tensor([[False] * 4 + [of for of in row for _ in range(3)] for row in gone])
    (q, k, v), weight, group = scene([[0.5] * 9] * len(gone), torch.float32)
    weight = torch.where(absent, 0.0, weight)
    bias = dense_bias(weight, group, "comfyui")
    hidden = absent[:, None] & (group[:, None] != group)
    bias = torch.where(hidden, -torch.inf, bias)
    out = attend(q, k, v, AttentionBias(weight, group, absent=absent))
    expected = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH) + bias[:, None]).softmax(-1) @ v
    assert torch.allclose(out, expected, atol=1e-5)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    grads = (torch.autograd.grad(result, (q, k, v), grad) for result in (out, expected))
    for value, reference in zip(*grads, strict=True):
        assert torch.allclose(value, reference, atol=4e-5)


def test_reference_tokens_of_weight_0_have_no_effect_on_the_target() -> None:
    (q, k, v), weight, group = scene([[0.0, 0.0, 0.0, 0.0, 0.5, 0.0]], torch.float32)
    bias = AttentionBias(weight, group)
    off = (weight[0] == 0)[:, None]
    first = attend(q, k, v, bias)
    changed = attend(q, torch.where(off, 100 * k, k), torch.where(off, -v, v), bias)
    assert torch.equal(first[:, :, :4], changed[:, :, :4])


class LargestStorage(TorchDispatchMode):
    """Records the largest storage among the outputs of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, tuple) else (result,):
            if isinstance(output, Tensor):
                self.bytes = max(self.bytes, output.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("masked", [False, True])
def test_40000_tokens_need_no_attention_matrix(masked: bool) -> None:
    n, width = 40_000, 8
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, width, generator=generator) for _ in range(3))
    group = (torch.arange(n) >= n // 2).long()
    weight = torch.where(group > 0, torch.rand(n, generator=generator) if masked else 0.5, 1.0)[None]
    with LargestStorage() as largest:
        out = attend(q, k, v, AttentionBias(weight, group))
    assert largest.bytes <= out.nbytes
    rows = torch.tensor([0, 17, n // 2 + 5])  # rows to compare with a dense softmax
    logits = q[0, 0, rows] @ k[0, 0].T / math.sqrt(width)
    crosses = group[rows][:, None] != group
    logits += torch.where(crosses, torch.where(group[rows][:, None] > 0, weight[0, rows][:, None], weight).log(), 0)
    assert torch.allclose(out[0, 0, rows], logits.softmax(-1) @ v[0, 0], atol=1e-5)


def test_an_unknown_mode_between_references_is_refused() -> None:
    with pytest.raises(ValueError, match="between='none' is not one of comfyui, ltx"):
        AttentionBias(torch.ones(1, 2), torch.tensor([0, 1]), "none")
