"""FlashAttention of the package flash-attn-4: what we give it and take from it, and on a GPU what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.ltx2.kernels import flash_attention as flash
from iclora_train.ltx2.kernels.attention_backends import OnCPU, kernel_for
from iclora_train.ltx2.kernels.flash_attention import attention_note, flash_attention, flash_backward, flash_forward
from iclora_train.ltx2.model import attention
from iclora_train.ltx2.model.attention import attend
from iclora_train.ltx2.runtime.compile import compile_blocks
from tests.test_compiled import network, scene, step


def _shares(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return torch.einsum("bnhd,bmhd->bhnm", q.float(), k.float()) * scale


def _forward(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, return_lse: bool) -> tuple[Any, ...]:
    """What the package's function of that name gives for tensors (B,N,heads,D): out, log-sum-exps, and more."""
    assert return_lse
    logits = _shares(q, k, softmax_scale)
    out = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v.float()).to(q.dtype)
    return out.contiguous(), logits.logsumexp(-1), None, None, None


def _backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, *, softmax_scale: float,
    dq: Tensor, dk: Tensor, dv: Tensor, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    assert lse.is_contiguous()
    shares = (_shares(q, k, softmax_scale) - lse[..., None]).exp()
    grad, minus = dout.float(), (dout.float() * out.float()).sum(-1).transpose(1, 2)[..., None]
    back = shares * (torch.einsum("bnhd,bmhd->bhnm", grad, v.float()) - minus) * softmax_scale
    dq.copy_(torch.einsum("bhnm,bmhd->bnhd", back, k.float()))
    dk.copy_(torch.einsum("bhnm,bnhd->bmhd", back, q.float()))
    dv.copy_(torch.einsum("bhnm,bnhd->bmhd", shares, grad))
    return dq, dk, dv


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as one would write its functions down, on a CPU."""
    functions = SimpleNamespace(_flash_attn_fwd=_forward, _flash_attn_bwd=_backward)
    monkeypatch.setattr(flash, "_library", lambda: functions)


def tensors(n: int, m: int, dtype: torch.dtype = torch.float32, device: str = "cpu", width: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 3, count, width, generator=generator) for count in (n, m, m)]
    return [tensor.to(device, dtype).requires_grad_() for tensor in made]


def compared(ours: Callable[..., Tensor], given: list[Tensor], bias: Tensor | None, bound: float) -> None:
    """Output and gradients against softmax written down in fp32."""
    q, k, v = (tensor.detach().float().cpu().requires_grad_() for tensor in given)
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + (0 if bias is None else bias.cpu())
    wanted, found = logits.softmax(-1) @ v, ours(*given)
    assert torch.allclose(found.detach().float().cpu(), wanted, atol=bound)
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    back = torch.autograd.grad(found, given, grad.to(found.device, found.dtype))
    for mine, theirs in zip(back, torch.autograd.grad(wanted, (q, k, v), grad), strict=True):
        assert torch.allclose(mine.float().cpu(), theirs, atol=4 * bound)


def biased(bias: Tensor) -> Callable[..., Tensor]:
    """Attention with a bias of keys."""
    return lambda q, k, v: flash_attention(q, k, v, bias)


@pytest.mark.usefixtures("package")
def test_what_is_given_to_the_package_is_attention_and_its_gradients() -> None:
    compared(flash_attention, tensors(7, 5), None, 1e-5)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_bias_of_keys_is_a_product_with_more_channels(dtype: torch.dtype, bound: float) -> None:
    bias = torch.linspace(-7, 0.5, 10).reshape(2, 1, 1, 5)
    compared(biased(bias), tensors(7, 5, dtype), bias, bound)


@pytest.mark.parametrize("value", [-6.9077554, -1000.0, 0.3])
def test_in_half_precision_a_bias_is_as_exact_as_in_fp32(value: float) -> None:
    q, k = (torch.zeros(1, 1, 1, 16, dtype=torch.bfloat16) for _ in range(2))
    more_q, more_k = flash._biased(q, k, torch.full((1, 1, 1, 1), value))
    assert (more_q.double() * more_k.double()).sum().item() / 4 == pytest.approx(value, rel=1e-7)


@pytest.mark.usefixtures("package")
def test_the_operators_are_what_a_compiler_takes_them_for() -> None:
    q, k, v = (tensor.detach() for tensor in tensors(7, 5))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(flash_forward, (q, k, v, 0.25), test_utils=checks)
    out, total = flash_forward(q, k, v, 0.25)
    torch.library.opcheck(flash_backward, (out, q, k, v, out, total, 0.25), test_utils=checks)


def test_without_the_package_or_a_gpu_attention_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_library", lambda: pytest.fail("the package was asked for"))
    monkeypatch.setattr(flash, "INSTALLED", "4")
    q, k, v = tensors(7, 5, torch.bfloat16, width=flash.WIDTH)
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert isinstance(kernel_for(q), OnCPU)


def test_a_run_says_what_computes_attention_where_there_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, heads = torch.device("cuda", 0), (torch.bfloat16, flash.WIDTH)
    monkeypatch.setattr(flash, "_is_hopper", lambda device: device == 0)
    for version, said in (("4.0.0b36", "attention: flash-attn-4 4.0.0b36"), ("", "pip install 'iclora_train[flash]'")):
        monkeypatch.setattr(flash, "INSTALLED", version)
        assert said in str(attention_note(gpu, *heads))
        assert attention_note(torch.device("cpu"), *heads) is None
        assert attention_note(torch.device("cuda", 1), *heads) is None
        assert attention_note(gpu, torch.float32, flash.WIDTH) is None
        assert attention_note(gpu, torch.bfloat16, 64) is None


def test_a_package_that_cannot_be_loaded_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libcute.so is not there")

    monkeypatch.setattr(flash.importlib, "import_module", broken)
    with pytest.raises(ConfigError, match=r"flash-attn-4 .*libcute\.so is not there.*uninstall it, or pip install"):
        flash_forward(*(tensor.detach() for tensor in tensors(7, 5)), 0.25)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
@pytest.mark.usefixtures("package")
def test_in_compiled_blocks_it_gives_the_same_step_and_is_never_computed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    net, tokens = network(), scene(8)
    wanted = step(net, tokens)
    monkeypatch.setattr(attention, "has_flash", lambda q: True)
    compile_blocks(net, activation_budget=0.3)
    step(net, tokens)
    with torch.profiler.profile() as recorded:
        found = step(net, tokens)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    calls = [event.name for event in recorded.events()]
    for name in ("forward", "backward"):
        assert calls.count(f"iclora_train::flash_{name}") == 2 * len(net.transformer_blocks)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("n", "m"), [(7, 5), (333, 1024), (2000, 1999)])
def test_on_a_hopper_gpu_the_package_computes_attention(n: int, m: int, compiled: bool) -> None:
    given = tensors(n, m, torch.bfloat16, "cuda", flash.WIDTH)
    if not flash.has_flash(given[0]):
        pytest.skip("needs a Hopper GPU and the package flash-attn-4")
    compared(torch.compile(flash_attention) if compiled else flash_attention, given, None, 1e-2)
    bias = torch.linspace(-7, 0.5, 2 * m, device="cuda").reshape(2, 1, 1, m)
    compared(biased(bias), given, bias, 1e-2)
