"""Which activations are kept, moved to the host or computed again: the choice, given what each would cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from iclora_train.errors import ConfigError
from iclora_train.ltx2.spill import ON_THE_WAY

GIB = 2**30
LOW = 24.0  # GiB of `trainer.memory=low`
MARGIN = 0.07  # of the budget: what the allocator cannot use, and what validation and saving take beside a step
MOST = 0.6  # of model.kept: computes nothing again that costs a product
STEP = 0.05  # of model.kept, between levels that are tried
BUS = 0.85  # of the measured bandwidth that copies get beside the computation


@dataclass(frozen=True)
class Level:
    """What one value of model.kept costs: bytes that a block keeps, bytes of all else, seconds of a block forwards."""

    kept: float
    block: int
    rest: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """model.kept and model.spill, and the GiB that a step is then expected to take."""

    kept: float
    spill: float
    gib: float

    def __str__(self) -> str:
        away = f", {self.spill:.0%} of them on the host" if self.spill else ""
        return f"activations: kept {self.kept:g}{away}; about {self.gib:.1f} GiB"


def budget_of(memory: str | float, room: float) -> float:
    """GiB that a step may take: all there is (auto), LOW, or so many."""
    wanted = {"auto": room, "low": LOW}.get(memory) if isinstance(memory, str) else float(memory)
    if wanted is None or not wanted > 0:
        raise ConfigError(f"trainer.memory={memory} must be auto, low ({LOW:g} GiB), a number of GiB, or null")
    if wanted > room:
        raise ConfigError(f"trainer.memory={memory} is more than the {room:.1f} GiB of this GPU")
    return wanted


def fits(level: Level, blocks: int, budget: float, bandwidth: float, host: float) -> Plan | None:
    """The plan at this level, if there is one: the least share of the activations on the host that suffices.

    budget: bytes; bandwidth: of the bus in bytes per second; host: bytes that may be taken there.
    """
    whole = level.block * blocks
    over = level.rest + whole - budget
    if over <= 0:
        return Plan(level.kept, 0.0, (level.rest + whole) / GIB)
    away = max(blocks - 3, 0)  # the last stays, and two are back at a time
    over += ON_THE_WAY
    most = min(BUS * bandwidth * level.seconds * blocks, host, level.block * away)
    if over > most:
        return None
    share = min(1.0, over / (level.block * away))
    return Plan(level.kept, round(share + 0.005, 2), budget / GIB)


def lower(level: Level, blocks: int, budget: float, bandwidth: float, host: float) -> float:
    """The model.kept to try after a level that does not fit: the share of its activations that there is room for."""
    if level.block <= 0:
        return halved(level.kept)
    hidden = min(BUS * bandwidth * level.seconds * blocks, host)
    share = (budget - level.rest + hidden) / (level.block * blocks)
    wanted = math.floor(min(share * level.kept, 0.8 * level.kept) / STEP) * STEP
    return round(max(wanted, 0.0), 2)


def halved(kept: float) -> float:
    """The model.kept to try after one that could not even be measured."""
    return round(kept / 2, 2) if kept >= 2 * STEP else 0.0


def find(
    measured: Callable[[float], Level | None],
    works: Callable[[Plan], bool],
    blocks: int,
    budget: float,
    bandwidth: float,
    host: float,
) -> Plan | Level | None:
    """The fastest plan that works, from MOST downwards; if there is none, the level of 0 that does not fit.

    measured: what a level costs, None if it cannot even be measured. Each level has to be compiled, so few are tried.
    """
    kept = MOST
    while True:
        level, left = measured(kept), budget
        while level is not None and (plan := fits(level, blocks, left, bandwidth, host)) is not None:
            if works(plan):
                return plan
            left *= 1 - MARGIN
        if kept == 0:
            return level
        kept = lower(level, blocks, left, bandwidth, host) if level is not None else halved(kept)
