"""The kernel benchmark calls every kernel as a training step does, and counts the bytes that a kernel moves."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from iclora_train.ltx2.kernels import feed_forward_ops, fused_attention_out, lora_product
from scripts.benchmark_kernels import WIDTH, Case, bytes_moved, cases, input_grad_cases, set_tile

TOKENS = 16720
ACTIVATION = TOKENS * WIDTH * 2


@pytest.mark.parametrize("fp8", [False, True])
def test_every_kernel_moves_the_expected_number_of_activations(fp8: bool) -> None:
    with FakeTensorMode():
        moved = {case.name: bytes_moved(case) / ACTIVATION for case in cases(TOKENS, 32, fp8, "cpu")}
    quantized = 0.5 if fp8 else 0.0  # an fp8 copy of an activation
    expected = {
        "add_low_rank": 6,
        "norm_rotate": 5,
        "norm_rotate_back": 9 + 3 * quantized,
        "norm_alone": 2,
        "norm_alone_back": 3 + quantized,
        "add_thin": 2,
        "halves_back": 1,
        "halves_back of q, k, v": 4,  # one of them is fp32 partial sums
        "add_gated": 3,
        "gate_back": 3,
        "norm_back": 5 + quantized,
        "gelu_up": 12 - 4 * quantized,
        "gelu_back": 12 - 4 * quantized,
    }
    assert moved.keys() == expected.keys()
    for name, activations in expected.items():
        assert moved[name] == pytest.approx(activations, abs=0.55), name


def test_both_ways_to_an_input_gradient_give_the_same_shape() -> None:
    with FakeTensorMode():
        for first, second in input_grad_cases(TOKENS, 32, "cpu"):
            assert first().shape == second().shape == (TOKENS, WIDTH)


def test_another_tile_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((fused_attention_out, "BACK_TILE"), (lora_product, "PARTS"), (feed_forward_ops, "SUMS")):
        monkeypatch.setattr(module, name, getattr(module, name))
    set_tile("fused_attention_out.BACK_TILE=16,4,3")
    set_tile("lora_product.PARTS=8")
    set_tile("feed_forward_ops.SUMS=32,64,4,4")
    assert (fused_attention_out.BACK_TILE, lora_product.PARTS) == ((16, 4, 3), 8)
    assert feed_forward_ops.Tile(32, 64, 4, 4) == feed_forward_ops.SUMS


def test_an_argument_that_is_passed_twice_is_counted_twice() -> None:
    assert bytes_moved(Case("sum", torch.add, (torch.ones(3), torch.ones(3)))) == 36
