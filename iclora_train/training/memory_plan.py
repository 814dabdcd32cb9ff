"""Which activations are kept, moved to the host or computed again: the choice, given what each would cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from iclora_train.config import ConfigError
from iclora_train.ltx2.runtime.activation_offload import MAX_IN_FLIGHT

GIB = 2**30
LOW = 24.0  # GiB of `trainer.memory=low`
MARGIN = 0.04  # of the budget: what the allocator cannot use, and what validation and saving take beside a step
BUS = 0.85  # of the measured bandwidth that copies get beside the computation
# Values of model.activation_budget to try. Below CHEAP, matmuls are computed again, more of them the lower the budget;
# at CHEAP norms are, in less time than they move; at 1 nothing that takes a kernel of its own is.
BUDGETS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8, 1.0)
CHEAP = 0.8
# What a block keeps at a level, as multiples of its tokens in bf16 (LTX-2.3, rank 32, in bf16 as in fp8), and a guess
# of what a step takes beside that and its weights. Only which levels are tried rests on them.
SHAPE = ((0.0, 1.0), (0.05, 3.3), (0.3, 7.3), (0.5, 10.2), (0.7, 13.3), (0.8, 13.3), (1.0, 17.2))
PASSING = 16
WORTH = 0.04  # how much more is worth another compilation


@dataclass(frozen=True)
class Candidate:
    """Cost of one activation budget: bytes saved per block, all other bytes, forward seconds of one block."""

    activation_budget: float
    block: float
    rest: float
    seconds: float


@dataclass(frozen=True)
class MemoryLimits:
    """What there is: blocks, bytes on the GPU, bytes per second of the bus, bytes that may be taken on the host."""

    blocks: int
    budget: float
    bandwidth: float
    host: float


@dataclass(frozen=True)
class MemoryPlan:
    """Values for model.activation_budget and model.activation_offload, the expected GiB of a step, and whether
    transposed copies of the fp8 weights are cached for the backward pass."""

    activation_budget: float
    activation_offload: float
    gib: float
    cached_transposed: bool = False

    def __str__(self) -> str:
        away = f", {self.activation_offload:.0%} of them on the host" if self.activation_offload else ""
        twice = ", fp8 weights twice" if self.cached_transposed else ""
        return f"activations: kept {self.activation_budget:g}{away}{twice}; about {self.gib:.1f} GiB"


def memory_limit_gib(memory: str | float, room: float) -> float:
    """GiB that a step may take: all there is (auto), LOW, or so many."""
    wanted = {"auto": room, "low": LOW}.get(memory) if isinstance(memory, str) else float(memory)
    if wanted is None or not wanted > 0:
        raise ConfigError(f"trainer.memory={memory} must be auto, low ({LOW:g} GiB), a number of GiB, or null")
    if wanted > room:
        raise ConfigError(f"trainer.memory={memory} is more than the {room:.1f} GiB that this GPU has free")
    return wanted


def estimate(tokens: float, taken: float, seconds: float) -> Candidate:
    """The level of 1 before anything is measured: `tokens` bytes that the tokens are in a block, `taken` bytes on the
    GPU, `seconds` that a block may take forwards."""
    return Candidate(1.0, _shape(1.0) * tokens, taken + PASSING * tokens, seconds)


def _shape(kept: float) -> float:
    """SHAPE between its points."""
    for (below, least), (above, most) in pairwise(SHAPE):
        if kept <= above:
            return least + (most - least) * (kept - below) / (above - below)
    return SHAPE[-1][1]


def plan_within(level: Candidate, room: MemoryLimits) -> MemoryPlan | None:
    """The plan at this level, if there is one: the least share of the activations on the host that suffices."""
    whole = level.block * room.blocks
    over = level.rest + whole - room.budget
    if over <= 0:
        return MemoryPlan(level.activation_budget, 0.0, (level.rest + whole) / GIB)
    away = max(room.blocks - 3, 0)  # the last stays, and two are back at a time
    over += MAX_IN_FLIGHT
    most = min(BUS * room.bandwidth * level.seconds * room.blocks, room.host, level.block * away)
    if over > most:
        return None
    share = min(1.0, over / (level.block * away))
    return MemoryPlan(level.activation_budget, round(share + 0.005, 2), room.budget / GIB)


def interpolate(kept: float, known: Sequence[Candidate]) -> Candidate:
    """A level that was not measured, by those that were: between two of them, or by the nearest."""
    under = max(
        (level for level in known if level.activation_budget <= kept),
        key=lambda level: level.activation_budget,
        default=None,
    )
    over = min(
        (level for level in known if level.activation_budget >= kept),
        key=lambda level: level.activation_budget,
        default=None,
    )
    near = under or over
    assert near is not None
    if under and over and _shape(over.activation_budget) > _shape(under.activation_budget):
        share = (_shape(kept) - _shape(under.activation_budget)) / (
            _shape(over.activation_budget) - _shape(under.activation_budget)
        )
        return replace(near, activation_budget=kept, block=under.block + share * (over.block - under.block))
    return replace(near, activation_budget=kept, block=near.block * _shape(kept) / _shape(near.activation_budget))


def largest_that_fits(known: Sequence[Candidate], room: MemoryLimits, below: float = math.inf) -> float:
    """The largest of BUDGETS under `below` that should fit, going by levels that are known; 0 if none should."""
    fitting = (kept for kept in reversed(BUDGETS) if kept < below and plan_within(interpolate(kept, known), room))
    return next(fitting, 0.0)


def search(
    measured: Callable[[float], Candidate | None],
    seconds: Callable[[MemoryPlan], float | None],
    room: MemoryLimits,
    start: float,
) -> MemoryPlan | Candidate | None:
    """The fastest of the plans that work; if none does, the level of 0 that does not fit.

    measured: what a level costs, None if it cannot even be measured. seconds: of a step of a plan, None if it does not
    work. Each level has to be compiled, so few are tried, from `start` on: the next is interpolate from the one before.
    Where the best keeps more than CHEAP by moving it, that is tried too. The last plan that `seconds` is asked for is
    the one that is given.
    """
    kept, below = start, math.inf
    best: tuple[MemoryPlan, float] | None = None
    known: list[Candidate] = []
    while True:
        level = measured(kept)
        if level is not None:
            known.append(level)
        found = None if level is None else _working(level, seconds, room)
        if found is None and kept == 0:
            return level
        if found is None:
            below = kept
        elif best is None or found[1] < best[1]:
            best = found
        else:
            break
        kept = largest_that_fits(known, room, below) if known else max(step for step in BUDGETS if step <= kept / 2)
        if best is not None and kept - best[0].activation_budget < WORTH:
            break
    assert best is not None
    if (
        best[0].activation_budget > CHEAP
        and best[0].activation_offload > 0
        and all(level.activation_budget != CHEAP for level in known)
    ):
        level = measured(CHEAP)
        found = None if level is None else _working(level, seconds, room)
        best = found if found is not None and found[1] < best[1] else best
    if best is not found:
        seconds(best[0])  # it is what is left set
    return best[0]


def _working(
    level: Candidate, seconds: Callable[[MemoryPlan], float | None], room: MemoryLimits
) -> tuple[MemoryPlan, float] | None:
    """The plan of a level that moves least of those that work, and the seconds of its step."""
    while (plan := plan_within(level, room)) is not None:
        if (taken := seconds(plan)) is not None:
            return plan, taken
        room = replace(room, budget=room.budget * (1 - MARGIN))
    return None
