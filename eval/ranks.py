"""An evaluation by several processes: all of them sample clips, the first one measures and writes the results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from eval.clips.clip_source import ClipSource
from eval.clips.conditions import Item, batches
from eval.clips.sampled import SampledClips
from eval.clips.sampling_ranks import FirstProcess, Samplers, SamplingRank, sample_missing
from eval.looks import follow_looks
from eval.planning import follow_plan
from eval.scoring.scorer import print_lines
from iclora_train.core.progress import progress_bar
from iclora_train.core.training_time import evaluation_budget

PLAN_SECONDS = 1.0  # between two looks for the plan of the first process


def sample_for_first(source: ClipSource, folder: Path, rank: SamplingRank) -> None:
    """Sample clips in a process other than the first, as its plan says, until the cache has all of them."""
    if not isinstance(source, SampledClips):
        return
    if source.config.eval.sequential:
        follow_looks(source, folder, rank)
        return
    budget, first = evaluation_budget(source.config, source.base.embedded), FirstProcess(folder)
    while budget is not None:
        has_ended = first.has_ended()  # before its plan is read
        if follow_plan(source, folder, budget, rank.count):
            break
        if has_ended:
            raise first.ended()
        time.sleep(PLAN_SECONDS)
    settings = source.config.eval
    work = batches(source.held_out.windows, source.seeds, settings.batch_size)
    sample_missing(source, work, rank, lambda _: None)


def start_samplers(samplers: Samplers, console: Console) -> None:
    """Start the other processes, and print how many there are."""
    if samplers.start():
        print_lines(console, f"{samplers.count} processes sample")


def sample_together(source: SampledClips, work: Sequence[Sequence[Item]], samplers: Samplers, console: Console) -> None:
    """Sample clips in the first process, with a progress bar over the clips of all processes.

    Does nothing if there is one process: that one samples while it measures.
    """
    total = len(source.conditions) * len(work)
    missing = sum(not source.is_finished(condition, batch) for condition in source.conditions for batch in work)
    if samplers.count == 1 or not missing:
        return
    if total < samplers.count:
        few = f"fewer batches ({total}) than processes ({samplers.count})"
        print_lines(console, f"note: {few}: some wait, unless eval.batch_size is smaller")
    with progress_bar("sampling", total, "batch", console=console) as bar:
        done = total - missing
        bar.skip(done)

        def report(count: int) -> None:
            nonlocal done
            bar.advance(count - done)
            done = count
            print_lines(console, *samplers.failures())

        sample_missing(source, work, SamplingRank(0, samplers.count), report)
    print_lines(console, *samplers.failures())
