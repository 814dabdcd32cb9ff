"""Memory plans: which activations a step saves, offloads or recomputes, so that it fits; and activation offload."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from iclora_train.config import ConfigError
from iclora_train.config.settings import RENAMED_KEYS
from iclora_train.data.batch import Batch
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.kernels.lora_linear import fp8_linears
from iclora_train.ltx2.runtime import activation_offload
from iclora_train.ltx2.runtime.activation_offload import ActivationOffload
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.training import memory_measure, memory_search
from iclora_train.training.checkpointing import resume_settings
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import (
    GIB,
    Candidate,
    MemoryLimits,
    MemoryPlan,
    estimate,
    interpolate,
    largest_cost,
    largest_that_fits,
    longest_time,
    memory_limit_gib,
    search,
)
from tests.test_compiled import network, scene, step
from tests.tiny import composed, write_tiny_base

BLOCKS = 48
BATCH = Batch(torch.zeros(1, 8, 2, 4, 4), [], torch.zeros(1, 5, 8), fps=torch.tensor([25.0]), keys=["a"])


class FakeGPU:
    """A GPU on which a step of budget b needs 10 GiB, plus 0.1 + 1.9 b GiB for each block. The smaller b, the longer a
    step takes.

    offload_seconds: extra seconds of a step with all activations offloaded. usable: share of the GPU that works.
    """

    def __init__(
        self, gib: float, bandwidth: float = 50, host: float = 100, usable: float = 1.0, offload_seconds: float = 0.0
    ) -> None:
        self.limits = MemoryLimits(BLOCKS, gib * GIB, bandwidth * GIB, host * GIB)
        self.usable, self.offload_seconds = usable, offload_seconds
        self.measured: list[float] = []
        self.last_plan: MemoryPlan | None = None

    def candidate(self, budget: float) -> Candidate:
        return Candidate(budget, (0.1 + budget * 1.9) * GIB, 10 * GIB, 0.02)

    def measure(self, budget: float) -> Candidate | None:
        self.measured.append(budget)
        return self.candidate(budget)

    def time_step(self, plan: MemoryPlan) -> float | None:
        candidate, self.last_plan = self.candidate(plan.activation_budget), plan
        saved = BLOCKS * candidate.block_bytes * (1 - plan.activation_offload)
        fits = candidate.other_bytes + saved <= self.limits.gpu_bytes * self.usable
        return 2 - plan.activation_budget + self.offload_seconds * plan.activation_offload if fits else None

    def search(self, start: float = 1.0) -> MemoryPlan | Candidate | None:
        return search(self.measure, self.time_step, self.limits, start)


def plan_on(gpu: FakeGPU, start: float = 1.0) -> MemoryPlan:
    plan = gpu.search(start)
    assert isinstance(plan, MemoryPlan)
    assert gpu.last_plan == plan  # the module is left set to the plan
    return plan


def test_everything_is_saved_on_the_gpu_if_it_fits() -> None:
    plan = plan_on(FakeGPU(110))
    assert (plan.activation_budget, plan.activation_offload) == (1.0, 0.0)
    assert plan.gib == pytest.approx(106)


def test_activations_that_the_bus_carries_in_time_are_offloaded() -> None:
    plan = plan_on(FakeGPU(90))  # 16 GiB do not fit; the bus carries 40 GiB
    assert plan.activation_budget == 1.0
    assert 16 <= plan.activation_offload * 2 * (BLOCKS - 3) < 20


@pytest.mark.parametrize(("bandwidth", "host"), [(5, 100), (50, 8)])
@pytest.mark.parametrize(("start", "max_measured"), [(1.0, 3), (0.5, 3), (0.1, 4)])
def test_activations_beyond_bus_and_host_are_recomputed(
    bandwidth: float, host: float, start: float, max_measured: int
) -> None:
    gpu = FakeGPU(65, bandwidth, host)
    plan = plan_on(gpu, start)
    assert 0.4 < plan.activation_budget < 0.7
    assert len(gpu.measured) <= max_measured  # each budget has to be compiled


@pytest.mark.parametrize("start", [0.0, 0.3, 0.6])
def test_the_search_goes_up_from_too_low_a_start(start: float) -> None:
    gpu = FakeGPU(110)
    assert plan_on(gpu, start).activation_budget == 1.0
    assert len(gpu.measured) == 2


def test_the_budget_is_not_raised_if_offloading_takes_longer() -> None:
    gpu = FakeGPU(60, offload_seconds=5.0)
    plan = plan_on(gpu, 0.35)
    assert (plan.activation_budget, plan.activation_offload) == (0.35, 0.0)
    assert max(gpu.measured) > 0.35


@pytest.mark.parametrize(("offload_seconds", "budget"), [(0.0, 1.0), (5.0, 0.8)])
def test_cheap_activations_are_offloaded_only_if_offload_is_faster(offload_seconds: float, budget: float) -> None:
    gpu = FakeGPU(90, offload_seconds=offload_seconds)
    assert plan_on(gpu).activation_budget == budget
    assert gpu.measured == [1.0, 0.8]
    from_cheap = FakeGPU(90, offload_seconds=offload_seconds)
    assert plan_on(from_cheap, 0.8).activation_budget == budget
    assert len(from_cheap.measured) == len(set(from_cheap.measured))


def test_a_plan_that_runs_out_of_memory_is_followed_by_a_smaller_one() -> None:
    assert plan_on(FakeGPU(90, usable=0.9)).activation_offload > plan_on(FakeGPU(90)).activation_offload


def test_too_little_memory_has_no_plan() -> None:
    gpu = FakeGPU(9)
    assert isinstance(gpu.search(), Candidate)
    assert gpu.measured[-1] == 0


def test_a_budget_that_cannot_be_measured_is_followed_by_a_smaller_one() -> None:
    gpu = FakeGPU(90)
    plan = search(lambda budget: gpu.candidate(budget) if budget <= 0.3 else None, gpu.time_step, gpu.limits, 0.6)
    assert isinstance(plan, MemoryPlan)
    assert plan.activation_budget == 0.3


def test_ranks_with_different_gpus_share_the_plan_of_the_smallest() -> None:
    """The costs are those of the rank that needs most, so the plan is one that the smallest GPU finds by itself."""
    gpus = [FakeGPU(110), FakeGPU(90, usable=0.9), FakeGPU(100)]
    limits = FakeGPU(90).limits

    def measure(budget: float) -> Candidate | None:
        return largest_cost([gpu.measure(budget) for gpu in gpus])

    def time_step(plan: MemoryPlan) -> float | None:
        return longest_time([gpu.time_step(plan) for gpu in gpus])

    assert search(measure, time_step, limits, 1.0) == plan_on(FakeGPU(90, usable=0.9))


def test_a_rank_that_runs_out_of_memory_decides_for_all() -> None:
    costs = [Candidate(0.5, 3.0, 7.0, 0.02), Candidate(0.5, 2.0, 9.0, 0.03)]
    assert largest_cost(costs) == Candidate(0.5, 3.0, 9.0, 0.03)
    assert largest_cost([*costs, None]) is None
    assert longest_time([0.5, 0.7]) == 0.7
    assert longest_time([0.5, None]) is None


def test_the_estimate_agrees_with_measurements() -> None:
    """LTX-2.3 in fp8 at 12,240 tokens, blocks and adapter about 15 GiB; figures from docs/log/measurements.md."""
    expected = estimate(12240 * 4096 * 2, 15 * GIB, 0.011)
    starts = [
        largest_that_fits([expected], MemoryLimits(BLOCKS, gib * GIB, 50 * GIB, 50 * GIB))
        for gib in (15, 22.3, 74, 200)
    ]
    assert starts[0] == 0.0
    assert 0.1 <= starts[1] <= 0.3
    assert starts[2] == 1.0  # with activation offload
    assert largest_that_fits([expected], MemoryLimits(BLOCKS, 74 * GIB, 0, 0)) == 0.6  # without
    assert starts[3] == 1.0


def test_a_budget_between_two_candidates_is_interpolated() -> None:
    low, high = Candidate(0.05, 2.0, 7.0, 0.02), Candidate(1.0, 4.0, 7.0, 0.02)
    sizes = [interpolate(budget, [high, low]).block_bytes for budget in (0.05, 0.2, 0.5, 1.0)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[3]) == (2.0, 4.0)
    assert interpolate(0.5, [high]).block_bytes == pytest.approx(4 * 10.2 / 17.2)  # scaled as in LTX-2.3
    assert interpolate(0.5, [low, high]).other_bytes == 7.0


def test_memory_limits() -> None:
    assert memory_limit_gib("auto", 78.0) == 78
    assert memory_limit_gib("low", 78.0) == 24
    assert memory_limit_gib(40, 78.0) == 40
    for setting in ("much", 0, 100, "low"):
        with pytest.raises(ConfigError, match=r"trainer\.memory"):
            memory_limit_gib(setting, 16.0)


def test_a_plan_is_printed_in_plain_words() -> None:
    plan = MemoryPlan(0.8, 0.24, 74.5, cache_transposed=True)
    assert str(plan) == "activation budget 0.8, activation offload 24%, transposed fp8 weights cached: about 74.5 GiB"
    assert str(MemoryPlan(1.0, 0.0, 60.0)) == "activation budget 1: about 60.0 GiB"


def test_memory_settings_may_differ_when_a_run_is_resumed(tmp_path: Path) -> None:
    """run.json holds no memory setting, under its present or an earlier name."""
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    settings = resume_settings(composed("conf=deblur"), base)
    memory_settings = ["activation_budget=0.5", "activation_offload=0.5", "weight_offload=1", "cuda_graphs=false"]
    assert settings == resume_settings(
        composed("conf=deblur", *(f"model.{setting}" for setting in memory_settings)), base
    )
    names = [name.removeprefix("model.") for keys in RENAMED_KEYS.items() for name in keys]
    assert not settings["model"].keys() & set(names)


def test_plans_of_earlier_versions_are_read(tmp_path: Path) -> None:
    file, place = tmp_path / "memory.json", {"device": "a GPU", "torch": "2.11.0", "memory": "auto"}
    assert memory_search.read_plan(file, place) is None
    file.write_text(json.dumps({"place": place, "kept": 0.8, "spill": 0.24, "gib": 74.5, "turned": True}))
    assert memory_search.read_plan(file, place) == MemoryPlan(0.8, 0.24, 74.5, cache_transposed=True)
    assert memory_search.read_plan(file, {**place, "device": "another GPU"}) is None
    file.write_text(json.dumps({"place": place, "kept": 0.8, "spill": 0.24, "gib": 74.5}))  # an older version
    assert memory_search.read_plan(file, place) == MemoryPlan(0.8, 0.24, 74.5)


def test_a_plan_depends_on_the_gpus_and_on_the_ranks_that_share_a_node() -> None:
    single = memory_search.plan_place(["H200"], 1, "auto")
    assert single == {"device": "H200", "torch": torch.__version__, "memory": "auto"}  # as in earlier versions
    eight = memory_search.plan_place(["H200"] * 8, 8, "auto")
    assert eight == {**single, "ranks_per_node": "8"}
    assert memory_search.plan_place(["H200"] * 32, 8, "auto") == eight  # four nodes
    assert memory_search.plan_place(["H200", "H100"], 2, "auto")["device"] == "H100, H200"


@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_step_is_the_same_with_activation_offload(compiled: bool, share: float) -> None:
    tokens, plain, offloading = scene(8), network(), network()
    if compiled:
        for net in (plain, offloading):
            compile_blocks(net, 1.0, "aot_eager_decomp_partition")
    offload = runner_of(offloading).activation_offload = ActivationOffload(share, min_bytes=256)
    for _ in range(2):
        for expected, value in zip(step(plain, tokens), step(offloading, tokens), strict=True):
            assert torch.equal(expected, value)
        assert offload.moved_bytes > 0
    assert not offload.blocks  # all tensors have returned to the GPU
    torch._dynamo.reset()


def test_clips_of_many_sizes_share_one_pinned_memory() -> None:
    net, offload = network(), ActivationOffload(1.0, min_bytes=256)
    runner_of(net).activation_offload, sizes = offload, []
    for size in (4, 2, 3, 4):
        step(net, scene(8, size))
        sizes.append(sum(buffer.numel() for buffer in offload.free))
    assert sizes[0] == sizes[-1] == max(sizes)


def test_little_pinned_memory_is_wasted() -> None:
    """Most tensors are slightly larger than a power of two. Their sizes are not rounded up to the next power of two."""
    offload = ActivationOffload(1.0, min_bytes=256, slab_bytes=2**23)
    weight, results = torch.ones((), requires_grad=True), []
    for number in range(50):
        with offload.block(number, [weight]):
            results += [torch.ones(33_000 * size) * weight for size in (1, 4, 1)]
    torch.stack([result.sum() for result in results]).sum().backward()
    buffers = [*offload.free, *([] if offload.slab is None else [offload.slab])]
    slabs = {buffer.untyped_storage().data_ptr(): buffer.untyped_storage().nbytes() for buffer in buffers}
    assert offload.moved_bytes == 50 * 6 * 33_000 * 4
    assert sum(slabs.values()) < 1.2 * offload.moved_bytes


def test_tensors_of_the_second_last_block_return_before_they_are_needed() -> None:
    """Their copies start when the last block, which moves nothing, begins its backward pass."""
    offload, weight = ActivationOffload(1.0, min_bytes=256), torch.ones((), requires_grad=True)
    still_on_host: list[bool] = []
    with offload.block(0, [weight]):
        first = torch.ones(1000) * weight
    first.register_hook(lambda _: still_on_host.append(0 in offload.blocks))
    with offload.block(1, [weight], last=True):
        second = (first * first).sum()
    assert offload.moved_bytes == 4 * 1000
    second.backward()
    assert still_on_host == [False]
    assert weight.grad == 2000


class NeverDone:
    """A copy stream whose copies never end unless the computation waits for them."""

    def __init__(self) -> None:
        self.sent = self.waited_for = 0

    def context(self) -> AbstractContextManager[object]:
        return nullcontext()

    def wait_for_compute(self) -> None: ...

    def record(self) -> SimpleNamespace:
        self.sent += 1
        return SimpleNamespace(query=lambda: False, number=self.sent)

    def make_compute_wait(self, event: SimpleNamespace) -> None:
        self.waited_for = max(self.waited_for, event.number)


def test_the_computation_does_not_wait_for_copies_while_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved tensors on the GPU and tensors in flight together never exceed the saved tensors that stay on the GPU at
    the end of a forward pass plus MAX_IN_FLIGHT."""
    monkeypatch.setattr(activation_offload, "MAX_IN_FLIGHT", 4 * 1000)
    offload, weight = ActivationOffload(0.5, min_bytes=256), torch.ones((), requires_grad=True)
    copy_stream = NeverDone()
    offload.copy_stream = copy_stream  # type: ignore[assignment]
    waited_for: list[list[int]] = []
    for _ in range(2):
        copy_stream.sent = copy_stream.waited_for = offload.in_flight_bytes = 0
        offload.in_flight.clear()
        waited_for.append([])
        results = []
        for number in range(20):
            with offload.block(number, [weight], last=number == 19):
                results += [torch.ones(1000) * weight for _ in range(4)]
            waited_for[-1].append(copy_stream.waited_for)
            in_flight = sum(tensor.numel() * tensor.element_size() for tensor, _ in offload.in_flight)
            if waited_for[1:]:
                on_gpu = offload.saved_bytes - offload.moved_bytes
                assert on_gpu + in_flight <= offload.peak_kept_bytes + 4 * 1000
    first, second = waited_for
    assert first[-1] == second[-1] == copy_stream.sent - 1  # all copies except the one that may be in flight
    assert second[8] == 0 < first[8]


def test_the_offloaded_share_is_the_requested_share() -> None:
    tokens, moved_bytes = scene(8), {}
    for share in (0.25, 0.5, 1.0):
        net = network()
        offload = runner_of(net).activation_offload = ActivationOffload(share, min_bytes=256)
        step(net, tokens)
        moved_bytes[share] = offload.moved_bytes
    assert moved_bytes[0.25] == pytest.approx(moved_bytes[1.0] / 4, rel=0.1)
    assert moved_bytes[0.5] == pytest.approx(moved_bytes[1.0] / 2, rel=0.1)


@pytest.mark.parametrize("share", [0.07, 0.2, 0.34, 0.5])
def test_large_and_strided_tensors_do_not_change_the_offloaded_share(share: float) -> None:
    """As in a real block, one tensor is four times as large, and three slices of a fused product stay on the GPU."""
    qkv = torch.ones(8, 3 * 64)
    saved = [torch.ones(8, 64), *qkv.split(64, -1), *(torch.ones(8, 64) for _ in range(4)), torch.ones(8, 256)]
    weight, offload, results = torch.ones((), requires_grad=True), ActivationOffload(share, min_bytes=256), []
    for number in range(47):
        with offload.block(number, [weight]):
            results += [tensor * weight for tensor in saved]
    total = 47 * 4 * sum(tensor.numel() for tensor in saved)
    assert offload.moved_bytes / total == pytest.approx(share, abs=0.01)
    torch.stack([result.sum() for result in results]).sum().backward()
    assert weight.grad == total / 4


def budget_of(module: ICLoRA) -> float:
    return runner_of(module.transformer).activation_budget or 0.0


def test_the_module_is_left_set_to_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a simulated GPU, each of 12 blocks takes 1 + 10 * budget GiB, and everything else takes 5 GiB."""
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    module = ICLoRA(composed("conf=deblur", "model.compile=true", "model.activation_checkpointing=true"), base)
    module.transformer.transformer_blocks = nn.ModuleList([*module.transformer.transformer_blocks] * 6)
    blocks = list(module.transformer.transformer_blocks)
    steps: list[tuple[int, float, float]] = []  # blocks, budget, offload

    def simulated_step(module: ICLoRA, batch: Batch, subset: nn.ModuleList) -> tuple[int, float, float]:
        runner, count, budget = runner_of(module.transformer), len(subset), budget_of(module)
        offload = 0.0 if runner.activation_offload is None else runner.activation_offload.share
        steps.append((count, budget, offload))
        module.transformer.transformer_blocks = subset
        used = (5 + count * (1 + 10 * budget) * (1 - offload)) * GIB
        if used > 41 * GIB and count == len(blocks):
            raise torch.OutOfMemoryError
        return int(used), 0.001 * count, (0.003 - 0.001 * budget) * count

    monkeypatch.setattr(memory_measure, "_step", simulated_step)
    monkeypatch.setattr(memory_search, "limit_gpu_memory", lambda memory, device: 41.0)
    monkeypatch.setattr(memory_search, "measure_bandwidth", lambda device: 0.0)
    plan = memory_search.search_memory_plan(module, BATCH, "auto", print)
    assert runner_of(module.transformer).activation_budget == plan.activation_budget
    assert len(blocks) == 12
    assert 5 + len(blocks) * (1 + 10 * plan.activation_budget) <= 41
    assert plan.activation_budget >= 0.1
    assert {count for count, _, _ in steps} == {3, 6, 12}
    assert runner_of(module.transformer).activation_offload is None
    assert list(module.transformer.transformer_blocks) == blocks
    assert steps[-1] == (len(blocks), plan.activation_budget, 0.0)  # a step through all blocks was tried


@pytest.mark.parametrize(("gib_per_block", "transposed"), [(0.1, True), (10.0, False)])
def test_transposed_fp8_weights_are_cached_only_if_all_activations_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib_per_block: float, transposed: bool
) -> None:
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    module = ICLoRA(composed("conf=deblur", "model.precision=fp8", "model.compile=true"), base)
    num_blocks = len(module.transformer.transformer_blocks)

    def simulated_step(module: ICLoRA, batch: Batch, subset: nn.ModuleList) -> tuple[int, float, float]:
        module.transformer.transformer_blocks = subset
        used = (1 + len(subset) * gib_per_block * (0.1 + budget_of(module))) * GIB
        return int(used), 0.001, 0.003 - 0.001 * budget_of(module)

    monkeypatch.setattr(memory_measure, "_step", simulated_step)
    monkeypatch.setattr(memory_search, "limit_gpu_memory", lambda memory, device: 1 + 6.0 * num_blocks)
    monkeypatch.setattr(memory_search, "measure_bandwidth", lambda device: 0.0)
    plan = memory_search.search_memory_plan(module, BATCH, "auto", print)
    assert plan.cache_transposed == transposed == (plan.activation_budget == 1)
    assert {linear.weight_t is not None for linear in fp8_linears(module.transformer)} == {transposed}


def test_trainer_memory_is_refused_where_it_has_no_effect(tmp_path: Path) -> None:
    config = composed("conf=deblur", "trainer.memory=low")
    module = ICLoRA(config, BaseModel.open(str(write_tiny_base(tmp_path))))
    with pytest.raises(ConfigError, match=r"trainer\.memory=low has no effect here"):
        memory_search.plan_memory(config, module, None, tmp_path, print)  # type: ignore[arg-type]
    assert memory_search.plan_memory(composed("conf=deblur"), module, None, tmp_path, print) is None  # type: ignore[arg-type]
