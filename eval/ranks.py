"""An evaluation by several processes: all of them sample clips, the first one measures and writes the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from eval.clips.clip_source import ClipSource
from eval.clips.conditions import Item, batches
from eval.clips.sampled import SampledClips
from eval.clips.sampling_ranks import SamplingRank, sample_missing
from eval.planning import follow_plan
from eval.scoring.scorer import print_lines
from iclora_train.core.progress import progress_bar
from iclora_train.core.training_time import evaluation_budget

PLAN_SECONDS = 1.0  # between two looks for the plan of the first process


def sample_for_first(source: ClipSource, folder: Path, rank: SamplingRank) -> None:
    """Sample clips in a process other than the first, as its plan says, until the cache has all of them."""
    if not isinstance(source, SampledClips):
        return
    budget = evaluation_budget(source.config, source.base.embedded)
    while budget is not None and not follow_plan(source, folder, budget, rank.count):
        time.sleep(PLAN_SECONDS)
    settings = source.config.eval
    work = batches(source.held_out.windows, source.seeds, settings.batch_size)
    sample_missing(source, work, rank, lambda _: None)


def sample_together(
    source: SampledClips,
    work: Sequence[Sequence[Item]],
    rank: SamplingRank,
    failures: Callable[[], list[str]],
    console: Console,
) -> None:
    """Sample clips in the first process, with a progress bar over the clips of all processes."""
    if rank.count == 1:
        return
    print_lines(console, f"{rank.count} processes sample")
    with progress_bar("sampling", len(source.conditions) * len(work), "batch", console=console) as bar:
        done = 0

        def report(count: int) -> None:
            nonlocal done
            bar.advance(count - done)
            done = count
            print_lines(console, *failures())

        sample_missing(source, work, rank, report)
    print_lines(console, *failures())
