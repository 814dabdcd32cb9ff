"""Print what an evaluation costs before its first clip: clips, passes, measured seconds, and the expected end."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from eval.clips.conditions import Item, at_strength
from eval.clips.cost import ClipCost, Forecast
from eval.clips.sampled import SampledClips
from eval.scoring.measuring_time import NOT_MEASURED, MeasuringTime
from eval.scoring.scorer import print_lines
from iclora_train.config.durations import duration_text, end_text


def estimate_sampling(
    source: SampledClips,
    batches: Sequence[Sequence[Item]],
    probes: int,
    console: Console,
    cost: ClipCost | None = None,
    processes: int = 1,
    measuring: MeasuringTime = NOT_MEASURED,
) -> Forecast:
    """Print the cost of the clips that are not in the cache, measured on the first batch of windows unless given, and
    of measuring all clips.

    probes: number of clips of synthetic probes that are not in the cache. The forecast is without them: they are done
    before the windows. processes: number of those that sample at the same time. measuring: NOT_MEASURED if all clips
    are measured already.
    """
    waiting = [
        (condition, number)
        for condition in source.conditions
        for number, batch in enumerate(batches)
        if not source.is_finished(condition, batch)
    ]
    total = len(source.conditions) * sum(map(len, batches))
    clips = sum(len(batches[number]) for _, number in waiting)
    names, windows = {condition.name for condition in source.conditions}, len({i.window for b in batches for i in b})
    metrics = measuring.of(names, windows, len(source.seeds))
    if not clips and not probes:
        takes = f"; measuring takes about {duration_text(metrics)}, until {end_text(metrics)}" if metrics else ""
        print_lines(console, f"all {total:,} clips of {len(source.conditions)} conditions are sampled already{takes}")
        return Forecast({})
    cost = cost or source.measure_cost(batches[0])
    steps = len(source.sigmas) - 1
    seconds = {
        (condition.name, number): len(batches[number]) * cost.of(condition, steps) for condition, number in waiting
    }
    sampling = (sum(seconds.values()) + probes * cost.of(at_strength(1), steps)) / processes
    all_seconds = measuring.wall(sampling, metrics, processes)
    done = f", {total - clips:,} are done" if clips < total else ""
    passes = (clips + probes) * steps * cost.passes
    alone = "" if cost.video_alone is None else f"{cost.video_alone:.3g} s per step of the video stream alone, "
    by = "" if processes == 1 else f"{processes} processes "
    print_lines(
        console,
        f"{total:,} clips in {len(source.conditions)} conditions{done}, and {probes} of synthetic probes, with "
        f"{steps * cost.passes} passes each ({steps} steps x {cost.passes}): {passes:,} passes",
        f"measured: {cost.with_reference:.3g} s per pass and clip, {cost.without_reference:.3g} s without a reference, "
        f"{alone}{cost.decoding:.3g} s for decoding, {measuring.clip + measuring.features:.3g} s for the metrics. "
        f"Sampling takes {by}about {duration_text(sampling)}, the metrics {duration_text(metrics)}"
        f"{' meanwhile' if all_seconds < sampling + metrics else ''}: about {duration_text(all_seconds)}, until "
        f"{end_text(all_seconds)}; the report comes on top",
    )
    return Forecast(seconds, cost)
