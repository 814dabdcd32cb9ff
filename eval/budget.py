"""Keep an evaluation to a budget: choose the conditions, windows, seeds and steps that fit, the most telling first.

Every claim needs adapter+reference; base+reference shows what the adapter adds, swapped whether the reference is used.
These three on as many windows as a verdict needs are always sampled. Then, as far as the budget reaches: each of
several references swapped alone, then left out, the base alone (control gain), strength 0 with the null test, the
video stream alone (whether the audio stream shows), the other strengths, masks, the empty prompt, the synthetic probes,
more windows, more seeds. Only if the three do not fit, with fewer steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt

from eval.clips.conditions import (
    ADAPTER_ONLY,
    ADAPTER_REFERENCE,
    BASE,
    BASE_REFERENCE,
    EMPTY_PROMPT,
    FADE_MASK,
    HALF_MASK,
    SWAPPED,
    VIDEO_ALONE,
    Condition,
    at_strength,
    is_of_one_reference,
)
from eval.clips.cost import ClipCost
from eval.judging.claims import COARSE_STRENGTHS
from eval.judging.verdicts import MIN_WINDOWS
from eval.scoring.measuring_time import NOT_MEASURED, MeasuringTime
from eval.statistics.student_t import two_sided_quantile

CORE = (ADAPTER_REFERENCE, BASE_REFERENCE, SWAPPED)  # sampled under every budget
CORE_PLAIN = (ADAPTER_ONLY, BASE)  # the same in a task without references
SAMPLING_SHARE = 0.9  # of the budget; the rest is for what was not measured before, and for the report
ICC = 0.45  # likeness of the windows of a recording: 0.37 to 0.51 in evaluations on nano
MIN_STEPS = 8  # the steps are never reduced below this, nor below half


@dataclass(frozen=True)
class Plan:
    """What is sampled: names of conditions, number of windows, seeds, steps, and whether the synthetic probes run."""

    conditions: tuple[str, ...]
    windows: int
    seeds: tuple[int, ...]
    steps: int
    probes: bool

    @property
    def clips(self) -> int:
        """Clips of windows."""
        return len(self.conditions) * self.windows * len(self.seeds)


@dataclass(frozen=True)
class Request:
    """What the settings ask for, and what it costs. probes: number of probe clips. fixed_steps: the noise schedule has
    a given number of steps. processes: number of those that sample at the same time.
    measuring: the time of the metrics."""

    conditions: Sequence[Condition]
    windows: int
    seeds: tuple[int, ...]
    steps: int
    probes: int
    cost: ClipCost
    fixed_steps: bool = False
    processes: int = 1
    measuring: MeasuringTime = NOT_MEASURED

    @property
    def everything(self) -> Plan:
        """The plan without a budget."""
        names = tuple(condition.name for condition in self.conditions)
        return Plan(names, self.windows, self.seeds, self.steps, probes=True)

    def seconds(self, plan: Plan) -> float:
        """Seconds of sampling and measuring a plan, with the round trips of the targets through the VAE.

        The round trips are those of one process.
        """
        kept = [condition for condition in self.conditions if condition.name in plan.conditions]
        clip_of_each = sum(self.cost.of(condition, plan.steps) for condition in kept)
        probes = self.probes * self.cost.of(at_strength(1), plan.steps) if plan.probes else 0.0
        sampling = (plan.windows * len(plan.seeds) * clip_of_each + probes) / self.processes
        sampling += plan.windows * self.cost.decoding
        return self.measuring.wall(sampling, self.seconds_of_metrics(plan), self.processes)

    def seconds_of_metrics(self, plan: Plan) -> float:
        """Seconds of measuring the clips of a plan."""
        return self.measuring.of(plan.conditions, plan.windows, len(plan.seeds))


def choose(request: Request, budget: float) -> Plan:
    """The plan for a budget in seconds. It exceeds the budget only if even its smallest form does."""
    limit = SAMPLING_SHARE * budget
    everything = request.everything
    if request.seconds(everything) <= limit:
        return everything
    windows = min(MIN_WINDOWS, request.windows)
    plan = replace(
        everything, conditions=core_of(everything.conditions), windows=windows, seeds=request.seeds[:1], probes=False
    )
    if request.seconds(plan) > limit:
        return _with_fewer_steps(request, plan, limit)
    for group in _groups(request.conditions):
        larger = replace(plan, conditions=(*plan.conditions, *group))
        if request.seconds(larger) > limit:
            return _in_order(request, plan)
        plan = larger
    if request.seconds(replace(plan, probes=True)) <= limit:
        plan = replace(plan, probes=True)
    for count in range(request.windows, windows, -1):
        if request.seconds(replace(plan, windows=count)) <= limit:
            plan = replace(plan, windows=count)
            break
    for count in range(len(request.seeds), 1, -1):
        if request.seconds(replace(plan, seeds=request.seeds[:count])) <= limit:
            plan = replace(plan, seeds=request.seeds[:count])
            break
    return _in_order(request, plan)


def core_of(conditions: Sequence[str]) -> tuple[str, ...]:
    """The conditions that are sampled under every budget, by name."""
    return CORE if ADAPTER_REFERENCE in conditions else CORE_PLAIN


def interval_factor(requested: int, windows: int, recordings: int) -> float:
    """How many times wider an interval is with `windows` than with `requested` windows of so many recordings.

    Windows are spread evenly, so fewer windows than recordings are of as many recordings.
    """
    return half_width(windows, min(windows, recordings)) / half_width(requested, min(requested, recordings))


def half_width(windows: int, recordings: int) -> float:
    """Half of a 95 % interval over recordings, in standard deviations of a window: Student's t times the standard error
    sqrt(ICC / recordings + (1 - ICC) / windows) of a mean of clusters (Kish 1965). Infinite for one recording."""
    if recordings < 2:
        return inf
    error = sqrt(ICC / recordings + (1 - ICC) / windows)
    return two_sided_quantile(0.95, recordings - 1) * error


def _with_fewer_steps(request: Request, plan: Plan, limit: float) -> Plan:
    """The plan with as many steps as fit, at least half of them and MIN_STEPS."""
    fewest = request.steps if request.fixed_steps else min(request.steps, max(MIN_STEPS, ceil(request.steps / 2)))
    fitting = [n for n in range(fewest, request.steps + 1) if request.seconds(replace(plan, steps=n)) <= limit]
    return replace(plan, steps=max(fitting, default=fewest))


def _groups(conditions: Sequence[Condition]) -> list[tuple[str, ...]]:
    """The conditions that are added to CORE, in order; those of a group say something only together."""
    available = [condition.name for condition in conditions]
    strengths = [c.strength for c in conditions if c.name.startswith("strength ") and c.strength > 0]
    order = sorted(strengths, key=lambda s: (s not in COARSE_STRENGTHS, -s))
    of_one = [(name,) for name in available if is_of_one_reference(name)]
    groups = [*of_one, (BASE,), (at_strength(0).name, ADAPTER_ONLY), (VIDEO_ALONE,)]
    groups += [(at_strength(s).name,) for s in order]
    groups += [(HALF_MASK,), (FADE_MASK,), (EMPTY_PROMPT,)]
    if ADAPTER_REFERENCE not in available:
        groups = [(name,) for group in groups for name in group if name not in CORE_PLAIN]
    return [group for group in groups if set(group) <= set(available)]


def _in_order(request: Request, plan: Plan) -> Plan:
    """The plan with its conditions in the order of the request."""
    names = (condition.name for condition in request.conditions)
    return replace(plan, conditions=tuple(name for name in names if name in plan.conditions))
