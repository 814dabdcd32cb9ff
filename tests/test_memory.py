"""What a step keeps, moves to the host or computes again, so that it fits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from iclora_train.config import ConfigError
from iclora_train.data.batch import Batch
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.kernels.lora_linear import fp8_linears
from iclora_train.ltx2.runtime import activation_offload as spill_module
from iclora_train.ltx2.runtime.activation_offload import ActivationOffload
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.training import memory_search as memory
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import (
    GIB,
    Candidate,
    MemoryLimits,
    MemoryPlan,
    estimate,
    interpolate,
    largest_that_fits,
    memory_limit_gib,
    search,
)
from tests.test_compiled import network, scene, step
from tests.tiny import composed, write_tiny_base

BLOCKS = 48
BATCH = Batch(torch.zeros(1, 8, 2, 4, 4), [], torch.zeros(1, 5, 8), fps=torch.tensor([25.0]), keys=["a"])


class Machine:
    """A GPU on which a level of `kept` takes 10 GiB and, for each block, .1 GiB and kept times 1.9 GiB more; the less
    is kept, the longer a step takes. `haste`: what it takes longer with all on the host."""

    def __init__(
        self, gib: float, bandwidth: float = 50, host: float = 100, honest: float = 1.0, haste: float = 0.0
    ) -> None:
        self.room = MemoryLimits(BLOCKS, gib * GIB, bandwidth * GIB, host * GIB)
        self.honest, self.haste = honest, haste
        self.tried: list[float] = []
        self.left: MemoryPlan | None = None

    def level(self, kept: float) -> Candidate:
        return Candidate(kept, (0.1 + kept * 1.9) * GIB, 10 * GIB, 0.02)

    def measured(self, kept: float) -> Candidate | None:
        self.tried.append(kept)
        return self.level(kept)

    def seconds(self, plan: MemoryPlan) -> float | None:
        level, self.left = self.level(plan.activation_budget), plan
        fits = level.rest + BLOCKS * level.block * (1 - plan.activation_offload) <= self.room.budget * self.honest
        return 2 - plan.activation_budget + self.haste * plan.activation_offload if fits else None

    def found(self, start: float = 1.0) -> MemoryPlan | Candidate | None:
        return search(self.measured, self.seconds, self.room, start)


def plan_on(machine: Machine, start: float = 1.0) -> MemoryPlan:
    found = machine.found(start)
    assert isinstance(found, MemoryPlan)
    assert machine.left == found  # the module is left as planned
    return found


def test_everything_is_kept_where_there_is_room() -> None:
    plan = plan_on(Machine(110))
    assert (plan.activation_budget, plan.activation_offload) == (1.0, 0.0)
    assert plan.gib == pytest.approx(106)


def test_what_the_bus_carries_in_time_goes_to_the_host() -> None:
    plan = plan_on(Machine(90))  # 16 GiB too much; 40 can be carried
    assert plan.activation_budget == 1.0
    assert 16 <= plan.activation_offload * 2 * (BLOCKS - 3) < 20


@pytest.mark.parametrize(("bandwidth", "host"), [(5, 100), (50, 8)])
@pytest.mark.parametrize(("start", "most"), [(1.0, 3), (0.5, 3), (0.1, 4)])
def test_more_than_bus_or_host_take_is_computed_again(bandwidth: float, host: float, start: float, most: int) -> None:
    machine = Machine(65, bandwidth, host)
    plan = plan_on(machine, start)
    assert 0.4 < plan.activation_budget < 0.7
    assert len(machine.tried) <= most  # each has to be compiled


@pytest.mark.parametrize("start", [0.0, 0.3, 0.6])
def test_a_start_that_was_too_careful_is_gone_on_from(start: float) -> None:
    machine = Machine(110)
    assert plan_on(machine, start).activation_budget == 1.0
    assert len(machine.tried) == 2


def test_more_is_not_kept_where_moving_it_takes_longer() -> None:
    machine = Machine(60, haste=5.0)
    plan = plan_on(machine, 0.35)
    assert (plan.activation_budget, plan.activation_offload) == (0.35, 0.0)
    assert max(machine.tried) > 0.35


@pytest.mark.parametrize(("haste", "kept"), [(0.0, 1.0), (5.0, 0.8)])
def test_what_is_cheap_to_compute_is_moved_only_where_that_is_faster(haste: float, kept: float) -> None:
    machine = Machine(90, haste=haste)
    assert plan_on(machine).activation_budget == kept
    assert machine.tried == [1.0, 0.8]
    once = Machine(90, haste=haste)
    assert plan_on(once, 0.8).activation_budget == kept
    assert len(once.tried) == len(set(once.tried))


def test_what_was_planned_too_tightly_is_planned_again() -> None:
    assert plan_on(Machine(90, honest=0.9)).activation_offload > plan_on(Machine(90)).activation_offload


def test_nothing_fits_into_too_little() -> None:
    machine = Machine(9)
    assert isinstance(machine.found(), Candidate)
    assert machine.tried[-1] == 0


def test_what_cannot_be_measured_is_tried_with_less() -> None:
    machine = Machine(90)
    plan = search(lambda kept: machine.level(kept) if kept <= 0.3 else None, machine.seconds, machine.room, 0.6)
    assert isinstance(plan, MemoryPlan)
    assert plan.activation_budget == 0.3


def test_the_first_guess_is_what_was_measured() -> None:
    """For LTX-2.3 in fp8 at 12,240 tokens, whose blocks and adapter take some 15 GiB: from docs/log/measurements.md."""
    near = estimate(12240 * 4096 * 2, 15 * GIB, 0.011)
    starts = [
        largest_that_fits([near], MemoryLimits(BLOCKS, gib * GIB, 50 * GIB, 50 * GIB)) for gib in (15, 22.3, 74, 200)
    ]
    assert starts[0] == 0.0
    assert 0.1 <= starts[1] <= 0.3
    assert starts[2] == 1.0  # with a share on the host
    assert largest_that_fits([near], MemoryLimits(BLOCKS, 74 * GIB, 0, 0)) == 0.6  # without
    assert starts[3] == 1.0


def test_a_level_between_two_is_foreseen_by_both() -> None:
    few, all_of_it = Candidate(0.05, 2.0, 7.0, 0.02), Candidate(1.0, 4.0, 7.0, 0.02)
    found = [interpolate(kept, [all_of_it, few]).block for kept in (0.05, 0.2, 0.5, 1.0)]
    assert found == sorted(found)
    assert (found[0], found[3]) == (2.0, 4.0)
    assert interpolate(0.5, [all_of_it]).block == pytest.approx(4 * 10.2 / 17.2)  # by what LTX-2.3 keeps
    assert interpolate(0.5, [few, all_of_it]).rest == 7.0


def test_budgets() -> None:
    assert memory_limit_gib("auto", 78.0) == 78
    assert memory_limit_gib("low", 78.0) == 24
    assert memory_limit_gib(40, 78.0) == 40
    for wrong in ("much", 0, 100, "low"):
        with pytest.raises(ConfigError, match=r"trainer\.memory"):
            memory_limit_gib(wrong, 16.0)


@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_step_is_the_same_with_activations_on_the_host(compiled: bool, share: float) -> None:
    tokens, plain, spilling = scene(8), network(), network()
    if compiled:
        for net in (plain, spilling):
            compile_blocks(net, 1.0, "aot_eager_decomp_partition")
    runner_of(spilling).activation_offload = ActivationOffload(share, least=256)
    for _ in range(2):
        for wanted, found in zip(step(plain, tokens), step(spilling, tokens), strict=True):
            assert torch.equal(wanted, found)
        assert runner_of(spilling).activation_offload.moved > 0
    assert not runner_of(spilling).activation_offload.blocks  # all came back
    torch._dynamo.reset()


def test_clips_of_many_sizes_share_one_pinned_memory() -> None:
    net, spill = network(), ActivationOffload(1.0, least=256)
    runner_of(net).activation_offload, taken = spill, []
    for size in (4, 2, 3, 4):
        step(net, scene(8, size))
        taken.append(sum(memory.numel() for memory in spill.free))
    assert taken[0] == taken[-1] == max(taken)


def test_little_pinned_memory_is_taken_beyond_what_moves() -> None:
    """Tensors a little larger than a power of two, as most are, are not rounded up each."""
    spill, weight, results = ActivationOffload(1.0, least=256, slab=2**23), torch.ones((), requires_grad=True), []
    for number in range(50):
        with spill.block(number, [weight]):
            results += [torch.ones(33_000 * size) * weight for size in (1, 4, 1)]
    torch.stack([result.sum() for result in results]).sum().backward()
    given = [*spill.free, *([] if spill.left is None else [spill.left])]
    slabs = {memory.untyped_storage().data_ptr(): memory.untyped_storage().nbytes() for memory in given}
    assert spill.moved == 50 * 6 * 33_000 * 4
    assert sum(slabs.values()) < 1.2 * spill.moved


def test_what_the_block_before_the_last_moved_is_back_when_it_is_needed() -> None:
    """Its copies start when the last block, all of which stays, begins its backward pass."""
    spill, weight, on_the_host = ActivationOffload(1.0, least=256), torch.ones((), requires_grad=True), []
    with spill.block(0, [weight]):
        first = torch.ones(1000) * weight
    first.register_hook(lambda _: on_the_host.append(0 in spill.blocks))
    with spill.block(1, [weight], last=True):
        second = (first * first).sum()
    assert spill.moved == 4 * 1000
    second.backward()
    assert on_the_host == [False]
    assert weight.grad == 2000


class Slow:
    """A copy_stream on which nothing ever arrives unless the computation waits for it."""

    def __init__(self) -> None:
        self.sent = self.held = 0

    def context(self) -> AbstractContextManager[object]:
        return nullcontext()

    def wait_for_compute(self) -> None: ...

    def record(self) -> SimpleNamespace:
        self.sent += 1
        return SimpleNamespace(query=lambda: False, number=self.sent)

    def make_compute_wait(self, moment: SimpleNamespace) -> None:
        self.held = max(self.held, moment.number)


def test_nobody_waits_for_copies_while_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays and what is on its way never take more than what stays in the end, and what may be on its way then."""
    monkeypatch.setattr(spill_module, "MAX_IN_FLIGHT", 4 * 1000)
    spill, weight, copy_stream = ActivationOffload(0.5, least=256), torch.ones((), requires_grad=True), Slow()
    spill.copy_stream = copy_stream  # type: ignore[assignment]
    waited: list[list[int]] = []
    for _ in range(2):
        copy_stream.sent = copy_stream.held = spill.waiting = 0
        spill.leaving.clear()
        waited.append([])
        results = []
        for number in range(20):
            with spill.block(number, [weight], last=number == 19):
                results += [torch.ones(1000) * weight for _ in range(4)]
            waited[-1].append(copy_stream.held)
            on_the_way = sum(tensor.numel() * tensor.element_size() for tensor, _ in spill.leaving)
            if waited[1:]:
                assert spill.seen - spill.moved + on_the_way <= spill.most + 4 * 1000
    first, second = waited
    assert first[-1] == second[-1] == copy_stream.sent - 1  # all but what may be on its way
    assert second[8] == 0 < first[8]


def test_the_share_that_moves_is_the_share_that_was_asked_for() -> None:
    tokens, moved = scene(8), {}
    for share in (0.25, 0.5, 1.0):
        net = network()
        runner_of(net).activation_offload = ActivationOffload(share, least=256)
        step(net, tokens)
        moved[share] = runner_of(net).activation_offload.moved
    assert moved[0.25] == pytest.approx(moved[1.0] / 4, rel=0.1)
    assert moved[0.5] == pytest.approx(moved[1.0] / 2, rel=0.1)


@pytest.mark.parametrize("share", [0.07, 0.2, 0.34, 0.5])
def test_what_a_real_block_keeps_moves_in_that_share_too(share: float) -> None:
    """One tensor is four times the others, and three lie in a shared product, which is no single copy."""
    joint = torch.ones(8, 3 * 64)
    kept = [torch.ones(8, 64), *joint.split(64, -1), *(torch.ones(8, 64) for _ in range(4)), torch.ones(8, 256)]
    weight, spill, results = torch.ones((), requires_grad=True), ActivationOffload(share, least=256), []
    for number in range(47):
        with spill.block(number, [weight]):
            results += [tensor * weight for tensor in kept]
    everything = 47 * 4 * sum(tensor.numel() for tensor in kept)
    assert spill.moved / everything == pytest.approx(share, abs=0.01)
    torch.stack([result.sum() for result in results]).sum().backward()
    assert weight.grad == everything / 4


def test_the_module_is_left_as_the_plan_says(tmp_path, monkeypatch) -> None:
    """On a machine that is pretended: each of 12 blocks takes 1 GiB and kept times 10 GiB, all else 5 GiB."""
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    module = ICLoRA(composed("conf=deblur", "model.compile=true", "model.activation_checkpointing=true"), base)
    module.transformer.transformer_blocks = nn.ModuleList([*module.transformer.transformer_blocks] * 6)
    blocks = list(module.transformer.transformer_blocks)
    tried: list[tuple[int, float, float]] = []

    def pretended(module: ICLoRA, batch: Batch, chosen: nn.ModuleList) -> tuple[int, float, float]:
        net, count = module.transformer, len(chosen)
        spill = 0.0 if runner_of(net).activation_offload is None else runner_of(net).activation_offload.share
        tried.append((count, runner_of(net).activation_budget or 0.0, spill))
        net.transformer_blocks = chosen
        taken = (5 + count * (1 + 10 * (runner_of(net).activation_budget or 0.0)) * (1 - spill)) * GIB
        if taken > 41 * GIB and count == len(blocks):
            raise torch.OutOfMemoryError
        return int(taken), 0.001 * count, (0.003 - 0.001 * (runner_of(net).activation_budget or 0.0)) * count

    monkeypatch.setattr(memory, "_step", pretended)
    monkeypatch.setattr(memory, "limit_gpu_memory", lambda wanted, device: 41.0)
    monkeypatch.setattr(memory, "measure_bandwidth", lambda device: 0.0)
    plan = memory.search_memory_plan(module, BATCH, "auto", print)
    assert runner_of(module.transformer).activation_budget == plan.activation_budget
    assert len(blocks) == 12
    assert 5 + len(blocks) * (1 + 10 * plan.activation_budget) <= 41
    assert plan.activation_budget >= 0.1
    assert {count for count, _, _ in tried} == {3, 6, 12}
    assert runner_of(module.transformer).activation_offload is None
    assert list(module.transformer.transformer_blocks) == blocks
    assert tried[-1] == (len(blocks), plan.activation_budget, 0.0)  # a whole step was seen


@pytest.mark.parametrize(("per_block", "turned"), [(0.1, True), (10.0, False)])
def test_fp8_weights_are_kept_twice_only_where_everything_is_kept(tmp_path, monkeypatch, per_block, turned) -> None:
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    module = ICLoRA(composed("conf=deblur", "model.precision=fp8", "model.compile=true"), base)
    count = len(module.transformer.transformer_blocks)

    def pretended(module: ICLoRA, batch: Batch, chosen: nn.ModuleList) -> tuple[int, float, float]:
        module.transformer.transformer_blocks = chosen
        taken = (1 + len(chosen) * per_block * (0.1 + (runner_of(module.transformer).activation_budget or 0.0))) * GIB
        return int(taken), 0.001, 0.003 - 0.001 * (runner_of(module.transformer).activation_budget or 0.0)

    monkeypatch.setattr(memory, "_step", pretended)
    monkeypatch.setattr(memory, "limit_gpu_memory", lambda wanted, device: 1 + 6.0 * count)
    monkeypatch.setattr(memory, "measure_bandwidth", lambda device: 0.0)
    plan = memory.search_memory_plan(module, BATCH, "auto", print)
    assert plan.cached_transposed == turned == (plan.activation_budget == 1)
    assert {part.weight_t is not None for part in fp8_linears(module.transformer)} == {turned}


def test_a_memory_that_cannot_be_held_to_is_refused(tmp_path) -> None:
    config = composed("conf=deblur", "trainer.memory=low")
    module = ICLoRA(config, BaseModel.open(str(write_tiny_base(tmp_path))))
    with pytest.raises(ConfigError, match=r"trainer\.memory=low has no effect here"):
        memory.plan_memory(config, module, None, tmp_path, print)  # type: ignore[arg-type]
    assert memory.plan_memory(composed("conf=deblur"), module, None, tmp_path, print) is None  # type: ignore[arg-type]
