"""What a preparation will cost, printed before the long work begins; the disk must hold the result."""

from __future__ import annotations

from data_prep.clips.captions import caption_of
from data_prep.clips.windows import Window
from data_prep.engines.base import Failure
from data_prep.estimate import Cost, Machine, Work, estimate, require_room, show_estimate
from data_prep.measure import Totals, measure_unit, text_bytes
from data_prep.preview_file import read_cost
from data_prep.share import own_shards
from data_prep.sound import geometry_of_sound
from data_prep.write_shards import Job, WorkUnit
from iclora_train.data.shard_index import is_written, split_of

MEASURED = 2  # train windows that are measured where there is no preview
SHORT = 16  # windows that are made at once, without an estimate


def show_forecast(job: Job) -> None:
    """Print the estimate for the missing shards, from data.root/preview or from a few windows that are made for it.

    ConfigError if the disk surely cannot hold the result.
    """
    config = job.config
    plan = own_shards(job.plan, job.share)
    by_shard = {shard: group for shard, group in plan.items() if not is_written(job.root, shard)}
    shards = list(by_shard.values())
    missing = [window for group in shards for window in group]
    cost = (read_cost(config) or _measure(job, by_shard)) if len(missing) > SHORT else None
    if cost is None:
        return
    captions = [{caption_of(job.clips[window.clip], config) for window in group} for group in shards]
    pixels, texts = sum(map(_pixels, missing)), sum(map(len, captions))
    fixed = sum(map(_pixels, (w for shard, group in by_shard.items() if split_of(shard) != "train" for w in group)))
    work = Work(len(missing), pixels, captions=len(set().union(*captions)), texts=texts, fixed_pixels=fixed)
    machine = Machine.here(config)
    result = estimate(cost, work, machine)
    show_estimate(cost, work, machine, result)
    require_room(result, machine, config)


def _pixels(window: Window) -> int:
    return len(window.indices) * window.size[0] * window.size[1]


def _measure(job: Job, shards: dict[str, list[Window]]) -> Cost | None:
    """The cost of the first and the middle train window, and of one of the other splits.

    None if their clips can no longer be read.
    """
    totals, sound = Totals(), geometry_of_sound(job.config, job.base)
    train = [window for shard, group in shards.items() if split_of(shard) == "train" for window in group]
    fixed = [window for shard, group in shards.items() if split_of(shard) != "train" for window in group]
    for window in (*train[:: -(-len(train) // MEASURED) or 1], *fixed[:1]):
        pairs = measure_unit(WorkUnit(job.clips[window.clip], [window], job.config))
        if not isinstance(pairs, Failure):
            for pair in pairs:
                totals.add(pair, job.base.geometry, sound)
    return totals.cost(text_bytes(job.base, sound is not None)) if totals.windows else None
