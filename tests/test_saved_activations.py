"""What is known of the compiler's choices, for planning: traced as for a GPU, it still makes them."""

from __future__ import annotations

import pytest

from iclora_train.training import memory_plan as budget
from iclora_train.training.memory_plan import BUDGETS, NO_MATMULS
from scripts.saved_activations import kept, network

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
M = 12240  # tokens of 960x544x89 with a reference of that size


def interpolate(level: float) -> float:
    """Activations that a block is thought to keep."""
    return budget.interpolate(level, [budget.estimate(1.0, 0.0, 0.0)]).block_bytes


@pytest.mark.parametrize("fp8", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_block_keeps_what_is_foreseen_and_computes_no_product_again_where_that_is_said(fp8: bool) -> None:
    net = network(fp8, 32)
    found = {level: kept(net, M, level) for level in (0.05, 0.3, NO_MATMULS, 1.0)}
    for level, seen in found.items():
        assert seen.activations == pytest.approx(interpolate(level), rel=0.1)
    assert found[NO_MATMULS].products == found[1.0].products < found[0.3].products
    assert all(seen.calls["iclora_train.flash_backward"] == 2 for seen in found.values())
    assert not any("iclora_train.flash_forward" in seen.calls for seen in found.values())  # never computed twice


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [4704, 16720])
@pytest.mark.parametrize("fp8", [False, True])
def test_so_it_is_at_every_level_that_is_tried(fp8: bool, tokens: int) -> None:
    net = network(fp8, 32)
    for level in BUDGETS:
        assert kept(net, tokens, level).activations == pytest.approx(interpolate(level), abs=0.9)
