"""The kernels' benchmark calls each of them as a step does, and counts what it reads and writes."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from iclora_train.ltx2.kernels import feed_forward_ops
from iclora_train.ltx2.kernels import fused_attention_out as gated_out
from iclora_train.ltx2.kernels import lora_product as low_rank
from scripts.benchmark_kernels import WIDTH, Case, cases, moved, products, set_tile

TOKENS = 16720
ACTIVATION = TOKENS * WIDTH * 2


@pytest.mark.parametrize("fp8", [False, True])
def test_every_kernel_moves_so_many_activations(fp8: bool) -> None:
    with FakeTensorMode():
        found = {case.name: moved(case) / ACTIVATION for case in cases(TOKENS, 32, fp8, "cpu")}
    rounded = 0.5 if fp8 else 0.0  # of an activation beside it, in fp8
    wanted = {
        "add_low_rank": 6,
        "norm_rotate": 5,
        "norm_rotate_back": 9 + 3 * rounded,
        "norm_alone": 2,
        "norm_alone_back": 3 + rounded,
        "add_thin": 2,
        "halves_back": 1,
        "halves_back of q, k, v": 4,  # one of them in parts, in fp32
        "add_gated": 3,
        "gate_back": 3,
        "norm_back": 5 + rounded,
        "gelu_up": 12 - 4 * rounded,
        "gelu_back": 12 - 4 * rounded,
    }
    assert found.keys() == wanted.keys()
    for name, activations in wanted.items():
        assert found[name] == pytest.approx(activations, abs=0.55), name


def test_both_ways_back_give_the_same_shape() -> None:
    with FakeTensorMode():
        for one, apart in products(TOKENS, 32, "cpu"):
            assert one().shape == apart().shape == (TOKENS, WIDTH)


def test_another_tile_can_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((gated_out, "BACK"), (low_rank, "PARTS"), (feed_forward_ops, "SUMS")):
        monkeypatch.setattr(module, name, getattr(module, name))
    set_tile("fused_attention_out.BACK=16,4,3")
    set_tile("lora_product.PARTS=8")
    set_tile("feed_forward_ops.SUMS=32,64,4,4")
    assert (gated_out.BACK, low_rank.PARTS) == ((16, 4, 3), 8)
    assert feed_forward_ops.Tile(32, 64, 4, 4) == feed_forward_ops.SUMS


def test_what_is_given_twice_is_counted_twice() -> None:
    assert moved(Case("sum", torch.add, (torch.ones(3), torch.ones(3)))) == 36
