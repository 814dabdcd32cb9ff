"""Chooses which activations a training step saves on the GPU, moves to host memory, or recomputes.

The choice is made from measured costs (`Candidate`) and limits (`MemoryLimits`); `memory_search` measures them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from iclora_train.config import ConfigError
from iclora_train.core.records import Flag, PositiveNumber, Share
from iclora_train.ltx2.runtime.activation_offload import MAX_IN_FLIGHT

GIB = 2**30
LOW = 24.0  # GiB of `trainer.memory=low`
MARGIN = 0.04  # share of the limit for memory that the allocator cannot use, and for validation and saving
BUS_SHARE = 0.85  # share of the measured bandwidth that copies reach while the GPU computes
# Values of model.activation_budget to try. Below NO_MATMULS the backward pass recomputes matmuls, more of them the
# lower the budget. At NO_MATMULS it recomputes norms, which takes less time than moving them. At 1 it recomputes
# nothing that needs a separate kernel.
BUDGETS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8, 1.0)
NO_MATMULS = 0.8
# (budget, bytes of a block's saved activations as a multiple of its input in bf16), for LTX-2.3 with rank 32; the same
# in bf16 and in fp8. TEMPORARY_INPUTS: a guess, in the same unit, of the bytes that a step needs besides saved
# activations and weights. Both only decide which budgets are tried first.
SAVED_INPUTS = ((0.0, 1.0), (0.05, 3.3), (0.3, 7.3), (0.5, 10.2), (0.7, 13.3), (0.8, 13.3), (1.0, 17.2))
TEMPORARY_INPUTS = 16
MIN_GAIN = 0.04  # a higher budget is compiled and tried only if it is higher by at least this


@dataclass(frozen=True)
class Candidate:
    """Cost of one activation budget: bytes saved per block, all other bytes, forward seconds of one block."""

    activation_budget: float
    block_bytes: float
    other_bytes: float
    seconds: float


@dataclass(frozen=True)
class MemoryLimits:
    """Number of blocks, bytes on the GPU, bytes per second from GPU to host, and bytes that may be pinned there."""

    blocks: int
    gpu_bytes: float
    bandwidth: float
    host_bytes: float


@dataclass(frozen=True)
class MemoryPlan:
    """Values for model.activation_budget and model.activation_offload, the GiB that a step should then use, and whether
    transposed copies of the fp8 weights are cached for the backward pass."""

    activation_budget: Share
    activation_offload: Share
    gib: PositiveNumber
    cache_transposed: Flag = False

    def __str__(self) -> str:
        offload = f", activation offload {self.activation_offload:.0%}" if self.activation_offload else ""
        transposed = ", transposed fp8 weights cached" if self.cache_transposed else ""
        return f"activation budget {self.activation_budget:g}{offload}{transposed}: about {self.gib:.1f} GiB"


def largest_cost(costs: Sequence[Candidate | None]) -> Candidate | None:
    """The cost of one activation budget on the rank that needs most. None if any rank ran out of memory."""
    measured = [cost for cost in costs if cost is not None]
    if len(measured) < len(costs):
        return None
    names = ("block_bytes", "other_bytes", "seconds")
    return replace(measured[0], **{name: max(getattr(cost, name) for cost in measured) for name in names})


def longest_time(seconds: Sequence[float | None]) -> float | None:
    """The seconds of a step on the slowest rank. None if any rank ran out of memory."""
    measured = [value for value in seconds if value is not None]
    return max(measured) if len(measured) == len(seconds) else None


def memory_limit_gib(memory: str | float, free_gib: float) -> float:
    """GiB of GPU memory that a step may use for trainer.memory: all that is free (auto), LOW (low), or a number."""
    gib = {"auto": free_gib, "low": LOW}.get(memory) if isinstance(memory, str) else float(memory)
    if gib is None or not gib > 0:
        raise ConfigError(f"trainer.memory={memory} must be auto, low ({LOW:g} GiB), a number of GiB, or null")
    if gib > free_gib:
        raise ConfigError(f"trainer.memory={memory} is more than the {free_gib:.1f} GiB that this GPU has free")
    return gib


def estimate(input_bytes: float, used_bytes: float, seconds: float) -> Candidate:
    """The candidate for a budget of 1 before anything is measured.

    input_bytes: a block's input in bf16. used_bytes: GPU memory in use. seconds: expected forward time of a block.
    """
    return Candidate(1.0, _saved_inputs(1.0) * input_bytes, used_bytes + TEMPORARY_INPUTS * input_bytes, seconds)


def _saved_inputs(budget: float) -> float:
    """SAVED_INPUTS, interpolated linearly."""
    for (low, low_inputs), (high, high_inputs) in pairwise(SAVED_INPUTS):
        if budget <= high:
            return low_inputs + (high_inputs - low_inputs) * (budget - low) / (high - low)
    return SAVED_INPUTS[-1][1]


def plan_within(candidate: Candidate, limits: MemoryLimits) -> MemoryPlan | None:
    """The plan with this candidate's budget and the smallest sufficient activation offload. None if it cannot fit."""
    saved = candidate.block_bytes * limits.blocks
    excess = candidate.other_bytes + saved - limits.gpu_bytes
    if excess <= 0:
        return MemoryPlan(candidate.activation_budget, 0.0, (candidate.other_bytes + saved) / GIB)
    # The last block's tensors stay on the GPU; in backward the tensors of two more blocks are back on it at a time.
    movable = candidate.block_bytes * max(limits.blocks - 3, 0)
    excess += MAX_IN_FLIGHT
    bus = BUS_SHARE * limits.bandwidth * candidate.seconds * limits.blocks
    if excess > min(bus, limits.host_bytes, movable):
        return None
    share = min(1.0, excess / movable)
    return MemoryPlan(candidate.activation_budget, round(share + 0.005, 2), limits.gpu_bytes / GIB)


def interpolate(budget: float, measured: Sequence[Candidate]) -> Candidate:
    """A candidate that was not measured, interpolated between two that were, or scaled from the nearest one."""
    below = [c for c in measured if c.activation_budget <= budget]
    above = [c for c in measured if c.activation_budget >= budget]
    low = max(below, key=lambda c: c.activation_budget, default=None)
    high = min(above, key=lambda c: c.activation_budget, default=None)
    near = low or high
    assert near is not None
    inputs, near_inputs = _saved_inputs(budget), _saved_inputs(near.activation_budget)
    if low and high and (high_inputs := _saved_inputs(high.activation_budget)) > near_inputs:
        share = (inputs - near_inputs) / (high_inputs - near_inputs)
        block_bytes = low.block_bytes + share * (high.block_bytes - low.block_bytes)
    else:
        block_bytes = near.block_bytes * inputs / near_inputs
    return replace(near, activation_budget=budget, block_bytes=block_bytes)


def largest_that_fits(measured: Sequence[Candidate], limits: MemoryLimits, below: float = math.inf) -> float:
    """The largest of BUDGETS under `below` that should fit, judged by measured candidates; 0 if none should."""
    fitting = (b for b in reversed(BUDGETS) if b < below and plan_within(interpolate(b, measured), limits))
    return next(fitting, 0.0)


def search(
    measure: Callable[[float], Candidate | None],
    time_step: Callable[[MemoryPlan], float | None],
    limits: MemoryLimits,
    start: float,
) -> MemoryPlan | Candidate | None:
    """The fastest plan that works. If none works, the candidate of budget 0, which does not fit.

    measure: the cost of a budget; None if it cannot even be measured. time_step: seconds of a step of a plan; None if
    it runs out of memory. Each budget must be compiled, so few are tried: the first is `start`, and the next one is
    predicted from those measured. If the best plan offloads activations that could be recomputed cheaply (budget above
    NO_MATMULS), NO_MATMULS is tried too. The returned plan is the last one that `time_step` was called with.
    """
    budget, below = start, math.inf
    best: tuple[MemoryPlan, float] | None = None
    measured: list[Candidate] = []
    while True:
        candidate = measure(budget)
        if candidate is not None:
            measured.append(candidate)
        timed = None if candidate is None else _first_that_works(candidate, time_step, limits)
        if timed is None and budget == 0:
            return candidate
        if timed is None:
            below = budget
        elif best is None or timed[1] < best[1]:
            best = timed
        else:
            break
        budget = largest_that_fits(measured, limits, below) if measured else max(b for b in BUDGETS if b <= budget / 2)
        if best is not None and budget - best[0].activation_budget < MIN_GAIN:
            break
    assert best is not None
    plan = best[0]
    untried = all(candidate.activation_budget != NO_MATMULS for candidate in measured)
    if plan.activation_budget > NO_MATMULS and plan.activation_offload > 0 and untried:
        candidate = measure(NO_MATMULS)
        timed = None if candidate is None else _first_that_works(candidate, time_step, limits)
        best = timed if timed is not None and timed[1] < best[1] else best
    if best is not timed:
        time_step(best[0])  # leaves the module set to the best plan
    return best[0]


def _first_that_works(
    candidate: Candidate, time_step: Callable[[MemoryPlan], float | None], limits: MemoryLimits
) -> tuple[MemoryPlan, float] | None:
    """The candidate's plan with the least activation offload that works, and the seconds of its step."""
    while (plan := plan_within(candidate, limits)) is not None:
        if (seconds := time_step(plan)) is not None:
            return plan, seconds
        limits = replace(limits, gpu_bytes=limits.gpu_bytes * (1 - MARGIN))
    return None
