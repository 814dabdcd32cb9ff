"""Write the planned windows to pair shards, and encode each to a latent shard while the next one is made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from data_prep.checks import CheckLog, Report, check_pair, pair_picture
from data_prep.clips.captions import caption_of
from data_prep.clips.clip_list import Clip
from data_prep.clips.windows import Window
from data_prep.encode_latents import LatentEncoder
from data_prep.engines.base import Engine, Failure
from data_prep.first_shard import AnnouncingWriter
from data_prep.lost_windows import LostWindows
from data_prep.pairs import make_pairs
from data_prep.share import lost_files, own_shards
from data_prep.stopwatch import Stopwatch
from iclora_train.config import Config, ConfigError
from iclora_train.config.share import Share
from iclora_train.core.atomic_files import reraise_disk_full
from iclora_train.core.progress import ProgressBar, progress_bar
from iclora_train.core.types import Pair
from iclora_train.data.shard_sample import Members, pack_pair
from iclora_train.data.shards import ShardWriter
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text_features import TextFeatures

UNIT_WINDOWS, UNIT_PIXELS = 8, 2**26  # limits of a work unit: its compressed pairs stay in memory until written

ShardPlan = dict[str, list[Window]]  # shard name -> its windows, ordered by clip and start


@dataclass(frozen=True)
class Job:
    """All inputs of a preparation.

    fingerprints: of "pairs" and "latents". clips: the clips of the plan by id. log: receives the check findings.
    share: the shards of the plan to write; None: all, and the index.
    """

    root: Path
    fingerprints: dict[str, dict[str, Any]]
    plan: ShardPlan
    clips: dict[str, Clip]
    config: Config
    base: BaseModel
    log: CheckLog
    share: Share | None = None

    def captions(self) -> list[str]:
        """The empty caption, and the caption of every window of the plan."""
        return ["", *(caption_of(self.clips[w.clip], self.config) for windows in self.plan.values() for w in windows)]


@dataclass(frozen=True)
class WorkUnit:
    """The work of one task: some consecutive windows of one clip, which a worker decodes once."""

    clip: Clip
    windows: list[Window]
    config: Config


def split_into_units(windows: list[Window], clips: dict[str, Clip], config: Config) -> Iterator[WorkUnit]:
    """The windows of a shard, in order, in units that bound memory and are numerous enough to keep workers busy."""
    for name, group in groupby(windows, key=lambda window: window.clip):
        clip_windows = list(group)
        height, width = clip_windows[0].size
        size = max(1, min(UNIT_WINDOWS, UNIT_PIXELS // (len(clip_windows[0].indices) * height * width)))
        for i in range(0, len(clip_windows), size):
            yield WorkUnit(clips[name], clip_windows[i : i + size], config)


@dataclass(frozen=True)
class CheckedPair:
    """A pair as stored in a shard (None if the checks leave it out), its check report, and its picture (JPEG).

    seconds: of work by part (decode, maker, checks, compression).
    """

    members: Members | None
    report: Report
    picture: bytes
    seconds: dict[str, float]


def process_unit(unit: WorkUnit) -> list[CheckedPair] | Failure:
    """Make and check the pairs of a unit. Failure if the clip, readable before, can no longer be read."""
    clip, watch = unit.clip, Stopwatch()
    try:
        with reraise_disk_full(Path(tempfile.gettempdir(), "clip.mp4")):
            pairs = make_pairs(clip, unit.windows, unit.config, watch)
            return [_check(pair, clip, unit.config, watch) for pair in pairs]
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        return Failure(str(error))


def _check(pair: Pair, clip: Clip, config: Config, watch: Stopwatch) -> CheckedPair:
    with watch.part("checks"):
        report, picture = check_pair(pair, clip.id, clip.split, config), pair_picture(pair)
    with watch.part("compression"):
        members = pack_pair(pair, clip.id) if report.kept else None
    return CheckedPair(members, report, picture, watch.take())


def write_shards(job: Job, engine: Engine) -> None:
    """Write both shard sets, or the missing part of an interrupted run. LostWindowsError at the end if clips failed.

    With a share only its shards are written. An index is not written, and windows that are lost are only recorded.
    """
    own = replace(job, plan=own_shards(job.plan, job.share))
    pairs = ShardWriter(job.root / "pairs", "pairs", job.fingerprints["pairs"])
    texts = TextFeatures(job.root, job.base)
    texts.encode_missing(job.captions(), needed=set(own.captions()))
    latents = AnnouncingWriter(job.root / "latents", job.fingerprints["latents"], own.plan)
    latents.write_empty_text(texts.read(""))
    lost = LostWindows(pairs, *lost_files(job.root, job.share))
    stop = Event()
    with progress_bar("making pairs", sum(map(len, own.plan.values())), "clip") as bar:
        encode = _ShardEncoder(own, engine, pairs, latents, bar.add("encoding"), stop)
        shards = write_pair_shards(own, engine, pairs, lost, bar)
        _encode_each(shards, encode, len(encode.encoders), stop, engine.asynchronous)
    if job.share is None:
        pairs.finish(list(job.plan))
        latents.finish(list(job.plan))
        lost.raise_if_any(list(job.plan))


def write_pair_shards(
    job: Job, engine: Engine, writer: ShardWriter, lost: LostWindows, bar: ProgressBar
) -> Iterator[str]:
    """Write the missing pair shards. Yields the name of every shard of the plan, in order, once it is finished."""
    missing = {
        shard: list(split_into_units(windows, job.clips, job.config))
        for shard, windows in job.plan.items()
        if not writer.has(shard)
    }
    results = engine.map(process_unit, (unit for units in missing.values() for unit in units))
    for shard, windows in job.plan.items():
        if shard in missing:
            pairs = _pairs_of_shard(shard, missing[shard], results, lost, bar)
            writer.write(shard, bar.track(_log_checks(job.log, Path(shard).stem, pairs, bar)))
        else:
            bar.skip(len(windows))
        yield shard


def _pairs_of_shard(
    shard: str,
    units: list[WorkUnit],
    results: Iterator[list[CheckedPair] | Failure],
    lost: LostWindows,
    bar: ProgressBar,
) -> Iterator[CheckedPair]:
    """The pairs of one shard, from the next results."""
    for unit in units:
        result = next(results)
        if isinstance(result, Failure):
            lost.add(shard, unit.clip.id, (window.number for window in unit.windows), result.reason)
            bar.skip(len(unit.windows))
        else:
            yield from result


def _log_checks(log: CheckLog, part: str, pairs: Iterator[CheckedPair], bar: ProgressBar) -> Iterator[Members]:
    """Yield the pairs that pass the checks, then write the reports of all pairs.

    The reports are written before the shard is renamed to its final name, so every finished shard has its reports.
    """
    entries = []
    for pair in pairs:
        entries.append((pair.report, pair.picture))
        if pair.members is None:
            bar.skip(1)
        else:
            yield pair.members
    log.write(part, entries)


class _ShardEncoder:
    """Callable: encodes the finished pair shard of the given name, unless its latent shard exists."""

    def __init__(
        self, job: Job, engine: Engine, pairs: ShardWriter, latents: ShardWriter, bar: ProgressBar, stop: Event
    ) -> None:
        self._pairs, self._latents, self._bar, self._stop = pairs, latents, bar, stop
        finished = all(map(latents.has, job.plan))
        self.encoders = [] if finished else engine.encoders(partial(LatentEncoder.open, job.config.model, job.root))
        self._plan, self._idle = job.plan, SimpleQueue[LatentEncoder]()
        for encoder in self.encoders:
            self._idle.put(encoder)

    def __call__(self, shard: str) -> None:
        if self._latents.has(shard):
            self._bar.skip(len(self._plan[shard]))
            return
        encoder = self._idle.get()
        try:
            samples = encoder.encode_shard(self._pairs.unfinished([shard]), shard)
            self._latents.write(shard, self._bar.track(self._until_stopped(samples)))
        finally:
            self._idle.put(encoder)

    def _until_stopped(self, samples: Iterator[Members]) -> Iterator[Members]:
        for sample in samples:
            if self._stop.is_set():
                raise CancelledError
            yield sample


def _encode_each(
    shards: Iterator[str], encode: Callable[[str], None], encoders: int, stop: Event, asynchronous: bool
) -> None:
    """Encode every shard: in threads while the next ones are made, or, if not asynchronous, after the last one."""
    if not asynchronous:
        for shard in list(shards):
            encode(shard)
        return
    pool = ThreadPoolExecutor(max(encoders, 1))
    running: list[Future[None]] = []
    try:
        for shard in shards:
            running.append(pool.submit(encode, shard))
            for future in running:
                if future.done():
                    future.result()  # raises the error of the thread
        for future in running:
            future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
