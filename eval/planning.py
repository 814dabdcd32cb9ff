"""Apply a budget: choose what is sampled from the measured cost, store the choice, and print it.

`plan.json` in the folder of results holds the plan, so that a resumed evaluation with the same budget has the same one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.budget import Plan, Request, choose, interval_factor
from eval.clips.conditions import at_strength, batches, judged_row
from eval.clips.cost import ClipCost
from eval.clips.sampled import SampledClips
from eval.clips.windows import HeldOut
from eval.metrics import Suite
from eval.metrics.extra import ClipFeatures
from eval.scoring.measuring_time import NOT_MEASURED, MeasuringTime, measure_measuring
from eval.scoring.scorer import print_lines
from iclora_train.config.durations import duration_text
from iclora_train.core.atomic_files import write_json
from iclora_train.core.fingerprint import plain
from iclora_train.core.records import DamagedFileError, read_json
from iclora_train.core.results_folder import requested
from iclora_train.core.scores import read_scores

NAME = "plan.json"


@dataclass(frozen=True)
class StoredPlan:
    """The content of plan.json. key: what the plan was made for; another key needs a new plan. Metrics do not: clips
    that are sampled can be measured with others. measuring: absent in a file of an earlier version."""

    key: dict[str, Any]
    plan: Plan
    cost: ClipCost
    measuring: MeasuringTime = NOT_MEASURED


def apply_budget(
    source: SampledClips,
    folder: Path,
    budget: float,
    processes: int,
    probes: int,
    suite: Suite,
    features: ClipFeatures | None,
    console: Console,
) -> tuple[dict[str, Any], tuple[ClipCost, MeasuringTime]]:
    """Restrict the source to what fits `budget` seconds with so many processes, and print the plan.

    probes: number of clips of synthetic probes. suite, features: what measures the clips. Returns the entry `plan` of
    scores.json, and the measured costs of sampling and of measuring.
    """
    config, key = source.config, _key(source, budget, processes)
    stored = _read(folder / NAME)
    if stored is not None and stored.key == key:
        plan, cost, measuring = stored.plan, stored.cost, stored.measuring
        request = _request(source, probes, cost, processes, measuring)
    else:
        cost = source.measure_cost(batches(source.held_out.windows, source.seeds, config.eval.batch_size)[0])
        measuring = measure_measuring(source, suite, features)
        request = _request(source, probes, cost, processes, measuring)
        plan = choose(request, budget)
        write_json(folder / NAME, asdict(StoredPlan(key, plan, cost, measuring)))
    factor = interval_factor(request.windows, plan.windows, len({w.source for w in source.held_out.windows}))
    _print(request, plan, budget, factor, _earlier_width(folder, suite.primary), console)
    entry = {
        "budget": budget,
        "requested": key["requested"],
        **plain(asdict(plan)),
        "seconds": round(request.seconds(plan), 1),
        "interval_factor": None if isnan(factor) else round(factor, 3),
    }
    _restrict(source, plan)
    return entry, (cost, measuring)


def follow_plan(source: SampledClips, folder: Path, budget: float, processes: int) -> bool:
    """Restrict the source of another process to the plan that the first one has stored. False if it has none yet."""
    stored = _read(folder / NAME)
    if stored is None or stored.key != _key(source, budget, processes):
        return False
    _restrict(source, stored.plan)
    return True


def _key(source: SampledClips, budget: float, processes: int) -> dict[str, Any]:
    shards = source.held_out.fingerprint["latents"]
    key: dict[str, Any] = plain(
        {"budget": budget * processes, "requested": requested(source.config), "latents": shards}
    )
    return key


def _request(source: SampledClips, probes: int, cost: ClipCost, processes: int, measuring: MeasuringTime) -> Request:
    windows, steps = len(source.held_out.windows), len(source.sigmas) - 1
    fixed = source.config.sample.schedule == "distilled"
    seeds = tuple(source.seeds)
    return Request(source.conditions, windows, seeds, steps, probes, cost, fixed, processes, measuring)


def _read(path: Path) -> StoredPlan | None:
    """The plan in a folder of results; None without one, or if it is damaged: then another one is made."""
    if not path.exists():
        return None
    try:
        return read_json(path, StoredPlan, "")
    except DamagedFileError:
        return None


def _restrict(source: SampledClips, plan: Plan) -> None:
    """Let the source sample no more than the plan."""
    config, held_out = source.config, source.held_out
    strengths = [s for s in config.eval.strengths if at_strength(s, config.task.has_reference).name in plan.conditions]
    settings = replace(config.eval, seeds=list(plan.seeds), strengths=strengths)
    if plan.windows < len(held_out.windows):
        settings = replace(settings, windows=plan.windows)
    sampling = replace(config.sample, steps=plan.steps)
    config = replace(config, eval=settings, sample=sampling)
    if plan.windows < len(held_out.windows):
        held_out = HeldOut.open(config, source.base)
    source.restrict(config, held_out, plan.conditions)


def _earlier_width(folder: Path, primary: str) -> tuple[float, int, int] | None:
    """Half of the 95 % interval of the primary metric in the newest results of this run, and its numbers of windows and
    recordings."""
    paths = sorted(folder.parent.glob("eval*/scores.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(paths):
        try:
            scores = read_scores(path)
        except DamagedFileError:
            continue
        value, clips = scores["cells"].get(judged_row(scores["cells"]), {}).get(primary) or {}, scores["clips"]
        if value.get("low") is not None:
            recordings = len({clip.get("source") for clip in clips})
            return (value["high"] - value["low"]) / 2, value.get("n") or len(clips), recordings
    return None


def _print(
    request: Request,
    plan: Plan,
    budget: float,
    factor: float,
    earlier: tuple[float, int, int] | None,
    console: Console,
) -> None:
    """The plan as a table, and what it leaves out."""
    table = Table(title=f"eval.budget: {duration_text(budget)}")
    for column in ("condition", "clips", "time", ""):
        table.add_column(column)
    for condition in request.conditions:
        taken = condition.name in plan.conditions
        windows, seeds = (plan.windows, plan.seeds) if taken else (request.windows, request.seeds)
        count = windows * len(seeds)
        time = duration_text(count * request.cost.of(condition, plan.steps if taken else request.steps))
        table.add_row(condition.name, str(count), time, "" if taken else "left out")
    probes = duration_text(
        request.probes * request.cost.of(at_strength(1), plan.steps if plan.probes else request.steps)
    )
    table.add_row("synthetic probes", str(request.probes), probes, "" if plan.probes else "left out")
    table.add_row("metrics", "", duration_text(request.seconds_of_metrics(plan)), "")
    console.print(table)
    width = ""
    if earlier is not None:
        half, windows, recordings = earlier
        expected = half * interval_factor(windows, plan.windows, recordings)
        width = f"; ±{expected:.3g} expected from earlier results of this run"
    seconds, of_seeds = request.seconds(plan), f"{len(plan.seeds)} of {len(request.seeds)} seeds"
    print_lines(
        console,
        f"{plan.windows} of {request.windows} windows, {of_seeds}, {plan.steps} of {request.steps} steps: "
        f"{plan.clips:,} clips, about {duration_text(seconds)}",
    )
    if not isnan(factor):
        line = f"95 % intervals about {factor:.2f} times as wide as with {request.windows} windows{width}"
        print_lines(console, line)
    if seconds > budget:
        print_lines(
            console,
            f"warning: this exceeds eval.budget, because fewer clips decide no claim. The full protocol takes "
            f"{duration_text(request.seconds(request.everything))} (eval.budget=null)",
        )
    elif plan != request.everything:
        everything = duration_text(request.seconds(request.everything))
        print_lines(console, f"eval.budget=null measures everything, in about {everything}")
