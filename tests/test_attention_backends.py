"""Attention backends: the arguments of flash-attn-4, the choice of a backend, and on a GPU the results."""

from __future__ import annotations

import logging
import math
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iclora_train.ltx2.kernels import attention_backends
from iclora_train.ltx2.kernels import flash_attention as flash
from iclora_train.ltx2.kernels.attention_backends import (
    BACKENDS,
    CpuBackend,
    CudnnBackend,
    EfficientBackend,
    attention_note,
    backend_for,
    saved_ops,
)
from iclora_train.ltx2.kernels.flash_attention import FlashBackend, flash_attention, flash_backward, flash_forward
from iclora_train.ltx2.model import attention
from iclora_train.ltx2.model.attention import attend
from iclora_train.ltx2.model.weighted_attention import AttentionBias
from iclora_train.ltx2.runtime import save_policy
from iclora_train.ltx2.runtime.compile import compile_blocks
from tests.test_compiled import network, scene, step

GPU = torch.device("cuda", 0)


def _logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return torch.einsum("bnhd,bmhd->bhnm", q.float(), k.float()) * scale


def _forward(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, return_lse: bool) -> tuple[Any, ...]:
    """The package's `_flash_attn_fwd` in plain PyTorch: tensors (B,N,heads,D) -> output, LSE, and unused values."""
    assert return_lse
    logits = _logits(q, k, softmax_scale)
    out = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v.float()).to(q.dtype)
    return out.contiguous(), logits.logsumexp(-1), None, None, None


def _backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, *, softmax_scale: float,
    dq: Tensor, dk: Tensor, dv: Tensor, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The package's `_flash_attn_bwd` in plain PyTorch."""
    assert lse.is_contiguous()
    probs = (_logits(q, k, softmax_scale) - lse[..., None]).exp()
    grad, delta = dout.float(), (dout.float() * out.float()).sum(-1).transpose(1, 2)[..., None]
    dlogits = probs * (torch.einsum("bnhd,bmhd->bhnm", grad, v.float()) - delta) * softmax_scale
    dq.copy_(torch.einsum("bhnm,bmhd->bnhd", dlogits, k.float()))
    dk.copy_(torch.einsum("bhnm,bnhd->bmhd", dlogits, q.float()))
    dv.copy_(torch.einsum("bhnm,bnhd->bmhd", probs, grad))
    return dq, dk, dv


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's functions in plain PyTorch, on a CPU."""
    functions = SimpleNamespace(_flash_attn_fwd=_forward, _flash_attn_bwd=_backward)
    monkeypatch.setattr(flash, "_load", lambda: functions)


def tensors(
    n: int, m: int, dtype: torch.dtype = torch.float32, device: str = "cpu", head_dim: int = 16
) -> list[Tensor]:
    """q of n tokens, k and v of m tokens."""
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 3, count, head_dim, generator=generator) for count in (n, m, m)]
    return [tensor.to(device, dtype).requires_grad_() for tensor in qkv]


def compare(attention: Callable[..., Tensor], qkv: list[Tensor], bias: Tensor | None, bound: float) -> None:
    """Compare output and gradients with a softmax that is written out in fp32."""
    q, k, v = (tensor.detach().float().cpu().requires_grad_() for tensor in qkv)
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + (0 if bias is None else bias.cpu())
    expected, out = logits.softmax(-1) @ v, attention(*qkv)
    assert torch.allclose(out.detach().float().cpu(), expected, atol=bound)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(out, qkv, grad.to(out.device, out.dtype))
    for ours, reference in zip(grads, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        assert torch.allclose(ours.float().cpu(), reference, atol=4 * bound)


def with_bias(bias: Tensor) -> Callable[..., Tensor]:
    """Attention with a bias of the keys."""
    return lambda q, k, v: flash_attention(q, k, v, bias)


@pytest.mark.usefixtures("package")
def test_flash_attention_is_attention_with_its_gradients() -> None:
    compare(flash_attention, tensors(7, 5), None, 1e-5)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_bias_of_keys_is_a_product_of_extra_channels(dtype: torch.dtype, bound: float) -> None:
    bias = torch.linspace(-7, 0.5, 10).reshape(2, 1, 1, 5)
    compare(with_bias(bias), tensors(7, 5, dtype), bias, bound)


@pytest.mark.parametrize("value", [-6.9077554, -1000.0, 0.3])
def test_in_half_precision_a_bias_is_as_exact_as_in_fp32(value: float) -> None:
    q, k = (torch.zeros(1, 1, 1, 16, dtype=torch.bfloat16) for _ in range(2))
    q_bias, k_bias = flash._append_bias(q, k, torch.full((1, 1, 1, 1), value))
    assert (q_bias.double() * k_bias.double()).sum().item() / 4 == pytest.approx(value, rel=1e-7)


@pytest.mark.usefixtures("package")
def test_the_fake_operators_match_the_real_ones() -> None:
    q, k, v = (tensor.detach() for tensor in tensors(7, 5))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(flash_forward, (q, k, v, 0.25), test_utils=checks)
    out, lse = flash_forward(q, k, v, 0.25)
    torch.library.opcheck(flash_backward, (out, q, k, v, out, lse, 0.25), test_utils=checks)


def test_on_a_cpu_attention_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_load", lambda: pytest.fail("the package was imported"))
    monkeypatch.setattr(flash, "INSTALLED_VERSION", "4")
    q, k, v = tensors(7, 5, torch.bfloat16, head_dim=flash.HEAD_DIM)
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert isinstance(backend_for(q), CpuBackend)


def test_the_save_policy_has_the_operators_of_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert saved_ops() == frozenset().union(*(backend.saved_ops for backend in BACKENDS))
    assert torch.ops.iclora_train.flash_forward.default in saved_ops()
    assert torch.ops.aten._scaled_dot_product_cudnn_attention.default in saved_ops()
    another = SimpleNamespace(saved_ops=frozenset({torch.ops.aten.mm.default}))
    monkeypatch.setattr(attention_backends, "BACKENDS", (another, *BACKENDS))
    assert torch.ops.aten.mm.default in saved_ops()
    assert torch.ops.aten.mm.default in save_policy.must_save()


def test_a_run_names_its_attention_backend_where_there_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_is_hopper", lambda device: device == 0)
    monkeypatch.setattr(flash, "_load", SimpleNamespace)
    for version, text in (("4.0.0b36", "attention: flash-attn-4 4.0.0b36"), ("", "pip install 'iclora_train[flash]'")):
        monkeypatch.setattr(flash, "INSTALLED_VERSION", version)
        assert text in str(attention_note(GPU, torch.bfloat16, flash.HEAD_DIM))
        assert attention_note(torch.device("cpu"), torch.bfloat16, flash.HEAD_DIM) is None
        assert attention_note(torch.device("cuda", 1), torch.bfloat16, flash.HEAD_DIM) is None
        assert attention_note(GPU, torch.float32, flash.HEAD_DIM) is None
        assert attention_note(GPU, torch.bfloat16, 64) is None


BROKEN = {
    "raise ImportError('libcute.so: cannot open')": "ImportError: libcute.so: cannot open",
    "raise OSError('undefined symbol:\\n  cuFoo')": "OSError: undefined symbol: cuFoo",
    "raise RuntimeError('CUDA 12 is too old')": "RuntimeError: CUDA 12 is too old",
    "_flash_attn_fwd = None": "_flash_attn_bwd",  # a version without the function
}


@pytest.fixture
def fresh_import() -> Iterator[None]:
    """The package is imported anew inside the test and forgotten after it."""

    def forget() -> None:
        flash._load.cache_clear()
        for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
            del sys.modules[name]

    forget()
    yield
    forget()


@pytest.mark.usefixtures("fresh_import")
@pytest.mark.parametrize("source", BROKEN)
def test_a_package_that_cannot_be_loaded_is_reported_once_and_the_next_backend_is_used(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package, metadata = tmp_path / "flash_attn" / "cute", tmp_path / "flash_attn_4-9.8.7.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn-4\nVersion: 9.8.7\n")
    for file in (package.parent / "__init__.py", package / "__init__.py"):
        file.touch()
    (package / "interface.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(flash, "_is_hopper", lambda _: True)
    monkeypatch.setattr(flash, "INSTALLED_VERSION", flash._installed())
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    q = cast(Tensor, SimpleNamespace(device=GPU, dtype=torch.bfloat16, shape=(1, 2, 3, flash.HEAD_DIM)))
    with caplog.at_level(logging.WARNING):
        assert isinstance(backend_for(q), EfficientBackend)
        assert isinstance(backend_for(q), EfficientBackend)
    (line,) = caplog.messages
    for part in ("flash-attn-4 9.8.7", BROKEN[source], "pip install 'iclora_train[flash]'", flash.PINNED):
        assert part in line
    assert "\n" not in line
    assert "flash-attn-4 is faster" in str(attention_note(GPU, torch.bfloat16, flash.HEAD_DIM))


@pytest.mark.usefixtures("package")
def test_a_package_that_loads_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_is_hopper", lambda _: True)
    monkeypatch.setattr(flash, "INSTALLED_VERSION", flash.PINNED)
    q = cast(Tensor, SimpleNamespace(device=GPU, dtype=torch.bfloat16, shape=(1, 2, 3, flash.HEAD_DIM)))
    assert isinstance(backend_for(q), FlashBackend)


def test_the_pinned_version_is_the_one_in_pyproject() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (requirement,) = project["optional-dependencies"]["flash"]
    assert requirement.startswith(f"flash-attn-4[cu13]=={flash.PINNED};")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own warnings
@pytest.mark.usefixtures("package")
def test_in_compiled_blocks_flash_attention_gives_the_same_step_and_is_not_recomputed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    net, tokens = network(), scene(8)
    expected = step(net, tokens)
    monkeypatch.setattr(flash, "supports_flash", lambda q: True)
    compile_blocks(net, activation_budget=0.3)
    step(net, tokens)
    with torch.profiler.profile() as recorded:
        results = step(net, tokens)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-5)
    calls = [event.name for event in recorded.events()]
    for name in ("forward", "backward"):
        assert calls.count(f"iclora_train::flash_{name}") == 2 * len(net.transformer_blocks)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # torch.compile's own warnings
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("n", "m"), [(7, 5), (333, 1024), (2000, 1999)])
def test_on_a_hopper_gpu_the_package_computes_attention(n: int, m: int, compiled: bool) -> None:
    qkv = tensors(n, m, torch.bfloat16, "cuda", flash.HEAD_DIM)
    if not flash.supports_flash(qkv[0]):
        pytest.skip("needs a Hopper GPU and the package flash-attn-4")
    compare(torch.compile(flash_attention) if compiled else flash_attention, qkv, None, 1e-2)
    bias = torch.linspace(-7, 0.5, 2 * m, device="cuda").reshape(2, 1, 1, m)
    compare(with_bias(bias), qkv, bias, 1e-2)


def test_cudnn_gets_output_and_gradient_in_the_strides_of_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch keeps a cuDNN graph per strides of q, k and v, so these must determine all other strides."""
    strides: list[tuple[int, ...]] = []

    def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, *_: Any) -> tuple[Tensor, ...]:
        strides.extend((grad.stride(), out.stride()))
        assert torch.equal(grad, expected)
        assert torch.equal(out, 2 * expected)
        return q, k, v

    monkeypatch.setattr(
        attention_backends, "_ops", SimpleNamespace(_scaled_dot_product_cudnn_attention_backward=backward)
    )
    by_token = torch.randn(2, 8, 3, 4).transpose(1, 2)  # (B,heads,N,D), as the model's queries
    by_head = by_token.contiguous()
    for q in (by_token, by_token[:, :, :5], by_token[:, :, 3:], by_head):
        rows = slice(0, q.shape[2])
        for grad in (by_token[:, :, rows], by_head[:, :, rows], by_head[:, :, rows].clone()):
            expected = grad
            lse = torch.zeros(q.shape[:3])
            CudnnBackend().backward(grad, q, q, q, 2 * grad, lse, None, [None, None, 8, 8, None, None, None])
        assert set(strides) == {q.stride()}
        strides.clear()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("num_outputs", [None, 3, 5])
def test_the_gradient_of_attention_has_one_layout_in_all_blocks(
    num_outputs: int | None, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts: list[bool] = []

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor) -> Tensor:
            return q.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            layouts.append(grad.transpose(1, 2).is_contiguous())
            return grad

    monkeypatch.setattr(attention, "attend", lambda q, k, v, bias: Recorded.apply(q))
    bias = AttentionBias(torch.tensor([[1.0, 1, 1, 0.5, 0.5]]), torch.tensor([0, 0, 0, 1, 1])) if weighted else None
    layer = attention.Attention(8, 8, 2, 1e-6, gated=True)
    layer(torch.randn(1, 5, 8, requires_grad=True), None, None, bias, num_outputs).sum().backward()
    assert layouts == [True]


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [slice(0, 192), slice(192, 384)])
def test_gradients_of_a_gpu_do_not_depend_on_the_layout_of_an_earlier_gradient(rows: slice) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (
        torch.randn(8, 384, 5, 64, generator=generator).bfloat16().cuda().transpose(1, 2) for _ in range(4)
    )
    backend = backend_for(q)
    part = [tensor[:, :, rows] for tensor in (q, k, v)]
    out, lse, state = backend.forward(*part, None)
    whole = torch.zeros_like(q)
    whole[:, :, rows] = out
    expected = torch.autograd.grad(
        F.scaled_dot_product_attention(*(inputs := [tensor.float().requires_grad_() for tensor in part])),
        inputs,
        grad[:, :, rows].float(),
    )
    for layout in (grad.contiguous(), grad):
        results = backend.backward(layout[:, :, rows], *part, whole[:, :, rows], lse, None, state)
        for result, reference in zip(results, expected, strict=True):
            assert float((result.float() - reference).norm() / reference.norm()) < 0.02
