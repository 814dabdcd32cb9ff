"""Stop sampling when every gate is decided, with intervals and p that hold although one looks several times.

Recordings are sampled in a random order, in groups. After each group the gates are judged on what there is, by the
tests of `statistics.sequential`. When all of them hold or fail, the other conditions are sampled on the same windows
only. The unit is the recording, so a group has all windows of its recordings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.budget import core_of
from eval.clips.conditions import Item, batches
from eval.clips.cost import ClipCost
from eval.clips.sampled import SampledClips
from eval.clips.sampling_ranks import Samplers
from eval.clips.windows import HeldOut
from eval.estimate import estimate_sampling
from eval.judging.stopping import look_line
from eval.judging.verdicts import MIN_RECORDINGS, MIN_WINDOWS
from eval.looks import Announcement, Look, announce, looks_key, looks_of
from eval.metrics import Clip, GroundTruth, Measurement, Suite
from eval.ranks import sample_together, start_samplers
from eval.scores import assemble
from eval.scoring.measuring_time import measure_measuring
from eval.scoring.results import Results
from eval.scoring.scorer import MODEL_FREE, Scorer, print_lines

METHOD = "t tests over recordings, O'Brien-Fleming spending (Lan and DeMets 1983)"


@dataclass(frozen=True)
class Work:
    """What is sampled and measured: the batches, the metrics, and of a sequential evaluation the measured cost of a
    clip, `sequential` of scores.json and the rows without a model, which are measured already."""

    batches: list[tuple[Item, ...]]
    suite: Suite
    cost: ClipCost | None = None
    sequential: dict[str, Any] | None = None
    known: Results | None = None


@dataclass(frozen=True)
class MeasuredOnce(Suite):
    """A suite that measures no clip twice: a look measures all clips up to then."""

    known: dict[bytes, Measurement] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def like(cls, suite: Suite) -> MeasuredOnce:
        """The same metrics."""
        return cls(**{f.name: getattr(suite, f.name) for f in fields(suite)})

    def measure(self, output: Clip, truth: GroundTruth) -> Measurement:
        """As `Suite.measure`."""
        hashed = hashlib.sha256()
        for clip in (output, truth.target, truth.shuffled, *([] if truth.reference is None else [truth.reference])):
            hashed.update(clip.tobytes())
        key = hashed.digest()
        if key not in self.known:
            self.known[key] = super().measure(output, truth)
        return self.known[key]


def sample_until_decided(
    source: SampledClips, suite: Suite, folder: Path, samplers: Samplers, console: Console
) -> Work:
    """Sample and judge the gates look by look, and restrict the source to the windows up to the look that decides.

    folder: of the results, where other processes learn which look is next."""
    config, conditions = source.config, source.conditions
    ordered = source.held_out.in_random_order(config.seed)
    looks, once = looks_of(ordered, source.seeds, config.eval.batch_size), MeasuredOnce.like(suite)
    key = looks_key(source, ordered)
    entry = _entry(config.seed, ordered, looks)
    cost = _print_plan(source, looks, suite, samplers.count, console)

    def tell_others(number: int, is_last: bool) -> None:
        if samplers.count > 1:
            announce(folder, Announcement(key, number, is_last))

    tell_others(0, is_last=len(looks) == 1)
    if cost is not None:
        start_samplers(samplers, console)
    rows = _without_a_model(source, ordered, once, console)
    work: list[tuple[Item, ...]] = []
    for number, look in enumerate(looks):
        tell_others(number, is_last=look is looks[-1])
        work += look.batches
        source.conditions = conditions
        source.restrict(config, ordered.first(look.windows), core_of([condition.name for condition in conditions]))
        sample_together(source, look.batches, samplers, console)
        results = Scorer(source, work, once).run(console, known=_first(rows, look.windows))
        entry["looks"].append({"recordings": look.recordings, "windows": look.windows, "undecided": []})
        undecided = _undecided(assemble(config, source, once, results, entry))
        entry["looks"][-1]["undecided"] = undecided
        print_lines(console, look_line(entry))
        if not undecided:
            break
    tell_others(number, is_last=True)
    source.conditions = conditions
    source.restrict(config, ordered.first(look.windows), [condition.name for condition in conditions])
    entry["stopped_early"] = look.windows < len(ordered.windows)
    return Work(work, once, cost, entry, _first(rows, look.windows))


def _entry(seed: int, ordered: HeldOut, looks: Sequence[Look]) -> dict[str, Any]:
    """`sequential` of scores.json before the first look."""
    return {
        "method": METHOD,
        "order_seed": seed,
        "planned_recordings": looks[-1].recordings,
        "planned_windows": len(ordered.windows),
        "planned_looks": [look.recordings for look in looks],
        "looks": [],
        "stopped_early": False,
    }


def _print_plan(
    source: SampledClips, looks: Sequence[Look], suite: Suite, processes: int, console: Console
) -> ClipCost | None:
    """Print the looks and what all of them cost. Returns the measured cost, None if all clips are sampled already."""
    if len(looks) == 1:
        few = f"a claim needs {MIN_RECORDINGS} recordings and {MIN_WINDOWS} windows, so these cannot stop early"
        print_lines(console, f"eval.sequential: one look, at all {looks[0].recordings} recordings: {few}")
    else:
        numbers = ", ".join(str(look.recordings) for look in looks)
        print_lines(console, f"eval.sequential: the gates are judged after {numbers} recordings. At most:")
    work, measuring = [batch for look in looks for batch in look.batches], measure_measuring(source, suite, None)
    return estimate_sampling(source, work, 0, console, processes=processes, measuring=measuring).cost


def _without_a_model(source: SampledClips, ordered: HeldOut, suite: Suite, console: Console) -> Results:
    """The rows without a model of all planned windows. So the classic filter does not depend on where one stops."""
    source.restrict(source.config, ordered, [])
    work = batches(ordered.windows, source.seeds, source.config.eval.batch_size)
    return Scorer(source, work, suite).run(console)


def _first(rows: Results, count: int) -> Results:
    """The rows without a model, of the first windows."""
    return Results(
        rows={
            name: {metric: values[:count] for metric, values in row.items()}
            for name, row in rows.rows.items()
            if name in MODEL_FREE
        },
        equal_frames={name: shares[:count] for name, shares in rows.equal_frames.items() if name in MODEL_FREE},
        classic=rows.classic,
    )


def _undecided(scores: dict[str, Any]) -> list[str]:
    """Names of the gates that neither hold nor fail."""
    gates = [verdict for verdict in scores["verdicts"] if verdict["kind"] == "gate"]
    names = [gate["name"] for gate in gates if gate["outcome"] == "inconclusive"]
    return names + scores["gates"]["not_measured"]
