"""What a step keeps, moves to the host or computes again, so that it fits."""

from __future__ import annotations

import pytest
import torch

from iclora_train.config import ConfigError
from iclora_train.ltx2.compiled import compile_blocks
from iclora_train.ltx2.spill import Spill
from iclora_train.memory import GIB, Level, budget_of, choose
from tests.test_compiled import network, scene, step

BLOCKS = 48
LEVELS = [Level(0.6, 2 * GIB, 10 * GIB, 0.02), Level(0.0, GIB // 10, 10 * GIB, 0.02)]


def test_everything_is_kept_where_there_is_room() -> None:
    plan = choose(LEVELS, BLOCKS, 110 * GIB, bandwidth=50 * GIB, host=100 * GIB)
    assert plan is not None
    assert (plan.kept, plan.spill) == (0.6, 0.0)
    assert plan.gib == 106


def test_what_the_bus_carries_in_time_goes_to_the_host() -> None:
    plan = choose(LEVELS, BLOCKS, 90 * GIB, bandwidth=50 * GIB, host=100 * GIB)  # 16 GiB too much; 40 can be carried
    assert plan is not None
    assert plan.kept == 0.6
    assert 16 <= plan.spill * 2 * (BLOCKS - 3) < 18


@pytest.mark.parametrize(("bandwidth", "host"), [(10 * GIB, 100 * GIB), (50 * GIB, 8 * GIB)])
def test_more_than_bus_or_host_take_is_computed_again(bandwidth: float, host: float) -> None:
    plan = choose(LEVELS, BLOCKS, 90 * GIB, bandwidth, host)
    assert plan is not None
    assert (plan.kept, plan.spill) == (0.0, 0.0)


def test_nothing_fits_into_too_little() -> None:
    assert choose(LEVELS, BLOCKS, 9 * GIB, bandwidth=50 * GIB, host=100 * GIB) is None


def test_budgets() -> None:
    assert budget_of("auto", 78.0) == 78
    assert budget_of("low", 78.0) == 24
    assert budget_of(40, 78.0) == 40
    for wrong in ("much", 0, 100, "low"):
        with pytest.raises(ConfigError, match=r"trainer\.memory"):
            budget_of(wrong, 16.0)


@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_step_is_the_same_with_activations_on_the_host(compiled: bool, share: float) -> None:
    tokens, plain, spilling = scene(8), network(), network()
    if compiled:
        for net in (plain, spilling):
            compile_blocks(net, 1.0, "aot_eager_decomp_partition")
    spilling.spill = Spill(share, least=256)
    for _ in range(2):
        for wanted, found in zip(step(plain, tokens), step(spilling, tokens), strict=True):
            assert torch.equal(wanted, found)
        assert spilling.spill.moved > 0
    assert not spilling.spill.blocks  # all came back
    torch._dynamo.reset()


def test_the_share_that_moves_is_the_share_that_was_asked_for() -> None:
    tokens, moved = scene(8), {}
    for share in (0.25, 0.5, 1.0):
        net = network()
        net.spill = Spill(share, least=256)
        step(net, tokens)
        moved[share] = net.spill.moved
    assert moved[0.25] == pytest.approx(moved[1.0] / 4, rel=0.1)
    assert moved[0.5] == pytest.approx(moved[1.0] / 2, rel=0.1)
