"""What a preparation will cost, printed before the long work begins; the disk must hold the result."""

from __future__ import annotations

from pathlib import Path

from data_prep.clips.captions import caption_of
from data_prep.clips.windows import Window
from data_prep.engines.base import Failure
from data_prep.estimate import Cost, Machine, Work, estimate, require_room, show_estimate
from data_prep.measure import Totals, measure_unit, text_bytes
from data_prep.preview_file import read_cost
from data_prep.share import own_shards
from data_prep.write_shards import Job, WorkUnit

MEASURED = 2  # windows that are measured where there is no preview
SHORT = 16  # windows that are made at once, without an estimate


def show_forecast(job: Job) -> None:
    """Print the estimate for the missing shards, from data.root/preview or from a few windows that are made for it.

    ConfigError if the disk surely cannot hold the result.
    """
    config = job.config
    plan = own_shards(job.plan, job.share)
    shards = [group for shard, group in plan.items() if not _exists(job.root, shard)]
    missing = [window for group in shards for window in group]
    cost = (read_cost(config) or _measure(job, missing)) if len(missing) > SHORT else None
    if cost is None:
        return
    captions = [{caption_of(job.clips[window.clip], config) for window in group} for group in shards]
    pixels, texts = sum(map(_pixels, missing)), sum(map(len, captions))
    work = Work(len(missing), pixels, captions=len(set().union(*captions)), texts=texts)
    machine = Machine.here(config)
    result = estimate(cost, work, machine)
    show_estimate(cost, work, machine, result)
    require_room(result, machine, config)


def _exists(root: Path, shard: str) -> bool:
    return all((root / kind / shard).exists() for kind in ("pairs", "latents"))


def _pixels(window: Window) -> int:
    return len(window.indices) * window.size[0] * window.size[1]


def _measure(job: Job, windows: list[Window]) -> Cost | None:
    """The cost of the first window and of one in the middle. None if their clips can no longer be read."""
    totals = Totals()
    for window in windows[:: -(-len(windows) // MEASURED)]:
        pairs = measure_unit(WorkUnit(job.clips[window.clip], [window], job.config))
        if not isinstance(pairs, Failure):
            for pair in pairs:
                totals.add(pair, job.base.geometry)
    return totals.cost(text_bytes(job.base)) if totals.windows else None
