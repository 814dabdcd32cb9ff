"""Stop sampling when every gate is decided, with intervals and p that hold although one looks several times.

Recordings are sampled in a random order, in groups. After each group the gates are judged on what there is, by the
tests of `statistics.sequential`. When all of them hold or fail, the other conditions are sampled on the same windows
only. The unit is the recording, so a group has all windows of its recordings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rich.console import Console

from eval.budget import CORE
from eval.clips.conditions import Item, batches
from eval.clips.sampled import SampledClips
from eval.clips.windows import HeldOut, Window
from eval.estimate import estimate_sampling
from eval.judging.stopping import look_line
from eval.judging.verdicts import MIN_RECORDINGS, MIN_WINDOWS
from eval.metrics import Clip, GroundTruth, Measurement, Suite
from eval.scores import assemble
from eval.scoring.measuring_time import measure_measuring
from eval.scoring.results import Results
from eval.scoring.scorer import MODEL_FREE, Scorer, print_lines

MOST_LOOKS = 5  # more would cost power and save little
METHOD = "t tests over recordings, O'Brien-Fleming spending (Lan and DeMets 1983)"


@dataclass(frozen=True)
class Work:
    """What is sampled and measured: the batches, the metrics, and of a sequential evaluation `sequential` of
    scores.json and the rows without a model, which are measured already."""

    batches: list[tuple[Item, ...]]
    suite: Suite
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
        for clip in (output, truth.target, truth.shuffled, truth.reference):
            hashed.update(clip.tobytes())
        key = hashed.digest()
        if key not in self.known:
            self.known[key] = super().measure(output, truth)
        return self.known[key]


def planned_looks(windows: Sequence[Window]) -> list[int]:
    """The number of recordings at each look: at most MOST_LOOKS at about equal steps, the last one with all.

    windows: in the order in which they are sampled. Fewer recordings or windows than a claim needs are no look.
    """
    recordings = list(dict.fromkeys(window.source for window in windows))
    enough = [
        count
        for count in range(MIN_RECORDINGS, len(recordings) + 1)
        if sum(window.source in recordings[:count] for window in windows) >= MIN_WINDOWS
    ]
    if len(enough) < 2:
        return [len(recordings)]
    steps = min(MOST_LOOKS, len(enough)) - 1
    return sorted({enough[round(i * (len(enough) - 1) / steps)] for i in range(steps + 1)})


def sample_until_decided(source: SampledClips, suite: Suite, console: Console) -> Work:
    """Sample and judge the gates look by look, and restrict the source to the windows up to the look that decides."""
    config, conditions = source.config, source.conditions
    ordered = source.held_out.in_random_order(config.seed)
    looks, once = planned_looks(ordered.windows), MeasuredOnce.like(suite)
    entry = _entry(config.seed, ordered, looks)
    source.restrict(config, ordered, [condition.name for condition in conditions])
    _print_plan(source, ordered, looks, suite, console)
    rows = _without_a_model(source, ordered, once, console)
    work: list[tuple[Item, ...]] = []
    count = 0  # windows
    for recordings in looks:
        chosen = set(list(dict.fromkeys(window.source for window in ordered.windows))[:recordings])
        windows = [window for window in ordered.windows if window.source in chosen]
        work += batches(windows[count:], source.seeds, config.eval.batch_size)
        count = len(windows)
        entry["looks"].append({"recordings": recordings, "windows": count, "undecided": []})
        source.conditions = conditions
        source.restrict(config, ordered.first(count), CORE)
        results = Scorer(source, work, once).run(console, known=_first(rows, count))
        undecided = _undecided(assemble(config, source, once, results, entry))
        entry["looks"][-1]["undecided"] = undecided
        print_lines(console, look_line(entry))
        if not undecided:
            break
    source.conditions = conditions
    source.restrict(config, ordered.first(count), [condition.name for condition in conditions])
    entry["stopped_early"] = count < len(ordered.windows)
    return Work(work, once, entry, _first(rows, count))


def _entry(seed: int, ordered: HeldOut, looks: Sequence[int]) -> dict[str, Any]:
    """`sequential` of scores.json before the first look."""
    return {
        "method": METHOD,
        "order_seed": seed,
        "planned_recordings": looks[-1],
        "planned_windows": len(ordered.windows),
        "planned_looks": list(looks),
        "looks": [],
        "stopped_early": False,
    }


def _print_plan(source: SampledClips, ordered: HeldOut, looks: Sequence[int], suite: Suite, console: Console) -> None:
    if len(looks) == 1:
        few = f"a claim needs {MIN_RECORDINGS} recordings and {MIN_WINDOWS} windows, so these cannot stop early"
        print_lines(console, f"eval.sequential: one look, at all {looks[0]} recordings: {few}")
    else:
        numbers = ", ".join(map(str, looks))
        print_lines(console, f"eval.sequential: the gates are judged after {numbers} recordings. At most:")
    work = batches(ordered.windows, source.seeds, source.config.eval.batch_size)
    estimate_sampling(source, work, 0, console, measuring=measure_measuring(source, suite, None))


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
