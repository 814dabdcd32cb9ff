"""The memory planner's table of saved activations agrees with the compiler's choices, traced as on a GPU."""

from __future__ import annotations

import pytest

from iclora_train.training import memory_plan
from iclora_train.training.memory_plan import BUDGETS, NO_MATMULS
from scripts.saved_activations import network, saved_activations

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of torch.compile
M = 12240  # tokens of 960x544x89 with a reference of that size


def predicted(budget: float) -> float:
    """Saved activations of a block by the planner's table, as a multiple of its input."""
    return memory_plan.interpolate(budget, [memory_plan.estimate(1.0, 0.0, 0.0)]).block_bytes


@pytest.mark.parametrize("fp8", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_block_saves_as_predicted_and_recomputes_no_matmul_from_the_stated_budget_on(fp8: bool) -> None:
    net = network(fp8, 32)
    saved = {budget: saved_activations(net, M, budget) for budget in (0.05, 0.3, NO_MATMULS, 1.0)}
    for budget, activations in saved.items():
        assert activations.inputs == pytest.approx(predicted(budget), rel=0.1)
    assert saved[NO_MATMULS].matmuls == saved[1.0].matmuls < saved[0.3].matmuls
    assert all(activations.calls["iclora_train.flash_backward"] == 2 for activations in saved.values())
    assert not any("iclora_train.flash_forward" in activations.calls for activations in saved.values())  # no recompute


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [4704, 16720])
@pytest.mark.parametrize("fp8", [False, True])
def test_every_budget_of_the_search_saves_as_predicted(fp8: bool, tokens: int) -> None:
    net = network(fp8, 32)
    for budget in BUDGETS:
        assert saved_activations(net, tokens, budget).inputs == pytest.approx(predicted(budget), abs=0.9)
