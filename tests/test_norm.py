"""Modulated norms: the two ways to compute one are the same, forwards and backwards."""

from __future__ import annotations

import pytest
import torch

from iclora_train.ltx2.kernels.modulated_norm import Norm, modulated, norm_back


@pytest.mark.parametrize(("clips", "levels"), [(1, 1), (3, 2), (2, 3)])
def test_with_its_inverse_a_norm_is_the_same(clips: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clips, 30, 16, generator=generator, requires_grad=True)
    norm = Norm(*torch.randn(2, clips, levels, 16, generator=generator), 1e-6)
    level = torch.randint(levels, (clips, 30), generator=generator)
    found, inverse = modulated(x, norm, level)
    torch.testing.assert_close(found, norm(x, level))
    torch.testing.assert_close(inverse, x.square().mean(-1, keepdim=True).rsqrt())
    torch.testing.assert_close(*(torch.autograd.grad(h.square().sum(), x)[0] for h in (found, norm(x, level))))


@pytest.mark.gpu
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("width", [256, 4096])
def test_what_goes_back_through_a_norm_a_sum_and_a_gate(width: int, fp8: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x, of_normed, of_x = torch.randn(3, 2, 77, width, generator=generator, device="cuda", dtype=torch.bfloat16)
    scale, shift, gates = torch.randn(3, 2, 2, width, generator=generator, device="cuda", dtype=torch.bfloat16)
    level = torch.randint(2, (2, 77), generator=generator, device="cuda")
    behind = torch.tensor(3.0, device="cuda") if fp8 else None
    inverse = modulated(x, Norm(scale, shift, 1e-6), level)[1]
    found, rows, values, factor = norm_back(of_normed, of_x, x, inverse, scale, level, gates, behind)
    exact = x.double().requires_grad_()
    normed = Norm(scale.double(), shift.double(), 1e-6)(exact, level)
    wanted = torch.autograd.grad([normed, exact.clone()], exact, [of_normed.double(), of_x.double()])[0]
    gated = (wanted * gates.double().gather(1, level[..., None].expand(-1, -1, width))).flatten(0, 1)
    results = [(found, wanted, 2**-8), (rows, gated, 2**-7)]
    results += [(values.double() * factor[:, None] / 3, gated, 0.04)] if fp8 else []
    for ours, theirs, bound in results:
        assert float((ours.double() - theirs).norm() / theirs.norm()) < bound
