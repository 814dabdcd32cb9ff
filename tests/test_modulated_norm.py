"""Modulated norms give the same result with and without rstd; the backward kernel of norm, residual and gate."""

from __future__ import annotations

import pytest
import torch

from iclora_train.ltx2.kernels.modulated_norm import ModulatedNorm, modulated_norm, norm_back


@pytest.mark.parametrize(("clips", "levels"), [(1, 1), (3, 2), (2, 3)])
def test_a_norm_that_returns_rstd_gives_the_same_result(clips: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clips, 30, 16, generator=generator, requires_grad=True)
    norm = ModulatedNorm(*torch.randn(2, clips, levels, 16, generator=generator), 1e-6)
    level = torch.randint(levels, (clips, 30), generator=generator)
    normed, rstd = modulated_norm(x, norm, level)
    torch.testing.assert_close(normed, norm(x, level))
    torch.testing.assert_close(rstd, x.square().mean(-1, keepdim=True).rsqrt())
    torch.testing.assert_close(*(torch.autograd.grad(h.square().sum(), x)[0] for h in (normed, norm(x, level))))


@pytest.mark.gpu
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("width", [256, 4096])
def test_the_backward_kernel_of_norm_residual_and_gate(width: int, fp8: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x, grad_norm, grad_residual = torch.randn(3, 2, 77, width, generator=generator, device="cuda", dtype=torch.bfloat16)
    scale, shift, gates = torch.randn(3, 2, 2, width, generator=generator, device="cuda", dtype=torch.bfloat16)
    level = torch.randint(2, (2, 77), generator=generator, device="cuda")
    weight_scale = torch.tensor(3.0, device="cuda") if fp8 else None
    rstd = modulated_norm(x, ModulatedNorm(scale, shift, 1e-6), level)[1]
    grad_x, rows, values, row_scale = norm_back(grad_norm, grad_residual, x, rstd, scale, level, gates, weight_scale)
    exact = x.double().requires_grad_()
    normed = ModulatedNorm(scale.double(), shift.double(), 1e-6)(exact, level)
    expected = torch.autograd.grad([normed, exact.clone()], exact, [grad_norm.double(), grad_residual.double()])[0]
    gated = (expected * gates.double().gather(1, level[..., None].expand(-1, -1, width))).flatten(0, 1)
    results = [(grad_x, expected, 2**-8), (rows, gated, 2**-7)]
    results += [(values.double() * row_scale[:, None] / 3, gated, 0.04)] if fp8 else []
    for result, reference, bound in results:
        assert float((result.double() - reference).norm() / reference.norm()) < bound
