"""Print what the choices cost before anything is sampled: clips and seconds of each, and those that are impossible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from rich.console import Console
from rich.table import Table

from eval.clips.cost import ClipCost
from eval.scoring.scorer import print_lines
from eval.transfer.measure import Measurements
from eval.transfer.variants import Variant
from iclora_train.config.durations import duration_text, end_text


def seconds_per_clip(variant: Variant, cost: ClipCost, tokens: float) -> float:
    """Estimated seconds of a clip: passes are taken to cost in proportion to their tokens.

    cost: measured with the task's own settings. tokens: of the variant's clips, relative to those of the windows.
    """
    passes = sum(
        count * share * (cost.with_reference if has_reference else cost.without_reference)
        for count, share, has_reference in variant.passes
    )
    return tokens * (passes + cost.decoding)


def print_estimate(
    measurements: Measurements,
    chosen: Sequence[Variant],
    done: Mapping[str, object],
    cost: ClipCost,
    processes: int,
    console: Console,
) -> None:
    """Print the table of all choices and the sum.

    done: choices that an earlier run has finished, by name. processes: number of those that sample at the same time.
    """
    clips_of_each = len(measurements.held_out.windows) * len(measurements.config.eval.seeds)
    table = Table(title="choices")
    for column in ("choice", "clips", "time", ""):
        table.add_column(column)
    total, clips = 0.0, 0
    for variant in chosen:
        if variant.obstacle:
            table.add_row(variant.name, "", "", variant.obstacle)
            continue
        if variant.name in done:
            table.add_row(variant.name, "", "", "finished")
            continue
        count = clips_of_each * len(measurements.conditions(variant))
        seconds = count * seconds_per_clip(variant, cost, prod(variant.size) / prod(measurements.size)) / processes
        total, clips = total + seconds, clips + count
        table.add_row(variant.name, f"{count:,}", duration_text(seconds), "")
    console.print(table)
    by = "" if processes == 1 else f" by {processes} processes"
    print_lines(
        console,
        f"{clips:,} clips to sample{by} in at most about {duration_text(total)}, until {end_text(total)}; clips that "
        "the run has already, loading of models and measuring are not counted",
    )
