"""What a step keeps, moves to the host or computes again, so that it fits."""

from __future__ import annotations

import pytest
import torch

from iclora_train.budget import GIB, MOST, Level, Plan, budget_of, find
from iclora_train.config import ConfigError
from iclora_train.ltx2.compiled import compile_blocks
from iclora_train.ltx2.spill import Spill
from tests.test_compiled import network, scene, step

BLOCKS = 48


class Machine:
    """A GPU on which a level of `kept` takes 10 GiB and, for each block, .1 GiB and kept times 3 1/6 GiB more."""

    def __init__(self, room: float, bandwidth: float = 50, host: float = 100, honest: float = 1.0) -> None:
        self.room, self.honest, self.tried = room * GIB, honest, list[float]()
        self.limits = BLOCKS, room * GIB, bandwidth * GIB, host * GIB

    def measured(self, kept: float) -> Level | None:
        self.tried.append(kept)
        return Level(kept, int((0.1 + kept * 19 / 6) * GIB), 10 * GIB, 0.02)

    def works(self, plan: Plan) -> bool:
        level = self.measured(plan.kept)
        assert level is not None
        self.tried.pop()
        return level.rest + BLOCKS * level.block * (1 - plan.spill) <= self.room * self.honest

    def found(self) -> Plan | Level | None:
        return find(self.measured, self.works, *self.limits)


def plan_on(machine: Machine) -> Plan:
    found = machine.found()
    assert isinstance(found, Plan)
    return found


def test_everything_is_kept_where_there_is_room() -> None:
    plan = plan_on(Machine(110))
    assert (plan.kept, plan.spill) == (MOST, 0.0)
    assert plan.gib == pytest.approx(106)


def test_what_the_bus_carries_in_time_goes_to_the_host() -> None:
    plan = plan_on(Machine(90))  # 16 GiB too much; 40 can be carried
    assert plan.kept == MOST
    assert 16 <= plan.spill * 2 * (BLOCKS - 3) < 20


@pytest.mark.parametrize(("bandwidth", "host"), [(5, 100), (50, 8)])
def test_more_than_bus_or_host_take_is_computed_again(bandwidth: float, host: float) -> None:
    machine = Machine(60, bandwidth, host)
    plan = plan_on(machine)
    assert 0.2 < plan.kept < MOST
    assert len(machine.tried) <= 3  # each has to be compiled


def test_what_was_planned_too_tightly_is_planned_again() -> None:
    assert plan_on(Machine(90, honest=0.9)).spill > plan_on(Machine(90)).spill


def test_nothing_fits_into_too_little() -> None:
    machine = Machine(9)
    assert isinstance(machine.found(), Level)
    assert machine.tried[-1] == 0


def test_what_cannot_be_measured_is_tried_with_less() -> None:
    machine = Machine(90)
    levels = {kept: machine.measured(kept) for kept in (0.3, 0.15)}
    plan = find(levels.get, machine.works, *machine.limits)
    assert isinstance(plan, Plan)
    assert plan.kept == 0.3


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
