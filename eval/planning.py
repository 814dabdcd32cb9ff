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
from eval.clips.conditions import ADAPTER_REFERENCE, at_strength, batches
from eval.clips.cost import ClipCost
from eval.clips.sampled import SampledClips
from eval.clips.windows import HeldOut
from eval.scoring.scorer import print_lines
from iclora_train.config.durations import duration_text
from iclora_train.core.atomic_files import write_json
from iclora_train.core.fingerprint import plain
from iclora_train.core.records import DamagedFileError, read_json
from iclora_train.core.results_folder import requested

NAME = "plan.json"


@dataclass(frozen=True)
class StoredPlan:
    """The content of plan.json. key: what the plan was made for; another key needs a new plan."""

    key: dict[str, Any]
    plan: Plan
    cost: ClipCost


def apply_budget(
    source: SampledClips, folder: Path, budget: float, processes: int, probes: int, primary: str, console: Console
) -> tuple[dict[str, Any], ClipCost]:
    """Restrict the source to what fits `budget` seconds of each of the processes, and print the plan.

    probes: number of clips of synthetic probes. primary: the metric whose expected interval is printed. Returns the
    entry `plan` of scores.json, and the measured cost.
    """
    config, key = source.config, _key(source, budget, processes)
    stored = _read(folder / NAME)
    if stored is not None and stored.key == key:
        plan, cost = stored.plan, stored.cost
    else:
        cost = source.measure_cost(batches(source.held_out.windows, source.seeds, config.eval.batch_size)[0])
        plan = choose(_request(source, probes, cost), budget * processes)
        write_json(folder / NAME, asdict(StoredPlan(key, plan, cost)))
    request = _request(source, probes, cost)
    factor = interval_factor(request.windows, plan.windows, len({w.source for w in source.held_out.windows}))
    _print(request, plan, budget, processes, factor, _earlier_width(folder, primary), console)
    entry = {
        "budget": budget,
        "requested": key["requested"],
        **plain(asdict(plan)),
        "seconds": round(request.seconds(plan) / processes, 1),
        "interval_factor": None if isnan(factor) else round(factor, 3),
    }
    _restrict(source, plan)
    return entry, cost


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


def _request(source: SampledClips, probes: int, cost: ClipCost) -> Request:
    windows, steps = len(source.held_out.windows), len(source.sigmas) - 1
    fixed = source.config.sample.schedule == "distilled"
    return Request(source.conditions, windows, tuple(source.seeds), steps, probes, cost, fixed)


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
    strengths = [s for s in config.eval.strengths if at_strength(s).name in plan.conditions]
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
            scores = read_json(path, dict[str, Any], "")
        except DamagedFileError:
            continue
        value = scores.get("cells", {}).get(ADAPTER_REFERENCE, {}).get(primary) or {}
        if value.get("low") is not None:
            return (value["high"] - value["low"]) / 2, value["n"], len({clip["source"] for clip in scores["clips"]})
    return None


def _print(
    request: Request,
    plan: Plan,
    budget: float,
    processes: int,
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
    console.print(table)
    width = ""
    if earlier is not None:
        half, windows, recordings = earlier
        expected = half * interval_factor(windows, plan.windows, recordings)
        width = f"; ±{expected:.3g} expected from earlier results of this run"
    seconds, of_seeds = request.seconds(plan) / processes, f"{len(plan.seeds)} of {len(request.seeds)} seeds"
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
            f"{duration_text(request.seconds(request.everything) / processes)} (eval.budget=null)",
        )
    elif plan != request.everything:
        everything = duration_text(request.seconds(request.everything) / processes)
        print_lines(console, f"eval.budget=null measures everything, in about {everything}")
