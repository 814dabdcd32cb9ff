"""Make the planned windows, in one pass: their pixels go to the VAE, their files and latents to the two shard sets."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import Event
from typing import Any

from data_prep.checks import CheckLog, Report, check_pair, pair_picture
from data_prep.clips.captions import caption_of
from data_prep.clips.clip_list import Clip
from data_prep.clips.windows import Window
from data_prep.encode_latents import ClipPair, LatentEncoder
from data_prep.engines.base import Engine, Failure, R
from data_prep.first_shard import AnnouncingWriter
from data_prep.latent_stage import LatentStage
from data_prep.lost_windows import LostWindows
from data_prep.pairs import make_pairs
from data_prep.shard_thread import ShardThread
from data_prep.share import lost_files, own_shards
from data_prep.stopwatch import Stopwatch
from iclora_train.config import Config, ConfigError
from iclora_train.config.share import Share
from iclora_train.core.atomic_files import reraise_disk_full
from iclora_train.core.progress import ProgressBar, progress_bar
from iclora_train.core.types import Pair
from iclora_train.data.shard_sample import Members, pack_pair
from iclora_train.data.shards import ShardSet, ShardWriter
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text_features import TextFeatures

UNIT_WINDOWS, UNIT_PIXELS = 8, 2**26  # limits of a work unit: its pairs stay in memory until they are written
PAIRS_AHEAD = 4  # compressed pairs that wait until they are written
READER_THREADS = 4  # threads that decode stored pairs (decoders release the GIL)

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
    encode: bool = True  # whether the VAE needs the pixels


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

    seconds: of work by part (decode, maker, checks, compression). pair: its pixels, if the VAE needs them.
    """

    members: Members | None
    report: Report
    picture: bytes
    seconds: dict[str, float]
    pair: Pair | None = None


def make_each(unit: WorkUnit, finish: Callable[[Pair, Stopwatch], R]) -> list[R] | Failure:
    """`finish` of each pair of a unit. Failure if the clip, readable before, can no longer be read.

    The watch of `finish` has the seconds in which the pair was made.
    """
    watch = Stopwatch()
    try:
        with reraise_disk_full(Path(tempfile.gettempdir(), "clip.mp4")):
            return [finish(pair, watch) for pair in make_pairs(unit.clip, unit.windows, unit.config, watch)]
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        return Failure(str(error))


def process_unit(unit: WorkUnit) -> list[CheckedPair] | Failure:
    """Make and check the pairs of a unit. Failure as in `make_each`."""
    return make_each(unit, partial(_check, unit))


def kept_pixels(config: Config, split: str) -> str:
    """Which pixels of the windows of a split are kept (see Data.keep): evaluation reads those of val and heldout."""
    if split != "train":
        return "lossless"
    return config.data.keep or ("lossless" if config.model.checkpoint == "nano" else "preview")


def judge(unit: WorkUnit, pair: Pair, watch: Stopwatch) -> tuple[Report, bytes]:
    """The check report of a pair, and its picture (JPEG)."""
    with watch.part("checks"):
        return check_pair(pair, unit.clip.id, unit.clip.split, unit.config), pair_picture(pair)


def pack(unit: WorkUnit, pair: Pair, watch: Stopwatch) -> Members:
    """The pair as stored in a shard."""
    with watch.part("compression"):
        return pack_pair(pair, unit.clip.id, kept_pixels(unit.config, unit.clip.split))


def _check(unit: WorkUnit, pair: Pair, watch: Stopwatch) -> CheckedPair:
    report, picture = judge(unit, pair, watch)
    members = pack(unit, pair, watch) if report.kept else None
    return CheckedPair(members, report, picture, watch.take(), pair if report.kept and unit.encode else None)


def write_shards(job: Job, engine: Engine) -> None:
    """Write both shard sets, or the missing part of an interrupted run. LostWindowsError at the end if clips failed.

    With a share only its shards are written. An index is not written, and windows that are lost are only recorded.
    """
    share_job = replace(job, plan=own_shards(job.plan, job.share))
    pairs = ShardWriter(job.root / "pairs", "pairs", job.fingerprints["pairs"])
    with_sound = job.config.data.sound is not None
    texts = TextFeatures(job.root, job.base, with_sound)
    texts.encode_missing(job.captions(), needed=set(share_job.captions()))
    latents = AnnouncingWriter(job.root / "latents", job.fingerprints["latents"], share_job.plan)
    latents.write_empty_text(texts.read(""), texts.read_audio("") if with_sound else None)
    lost = LostWindows(pairs, *lost_files(job.root, job.share))
    with (
        progress_bar("making pairs", sum(map(len, share_job.plan.values())), "clip") as bar,
        closing(_Shards(share_job, engine, pairs, latents, bar)) as shards,
    ):
        shards.write(lost)
    if job.share is None:
        pairs.finish(list(job.plan))
        latents.finish(list(job.plan))
        lost.raise_if_any(list(job.plan))


class _Shards:
    """Writes the shards that are missing: this thread distributes pairs, others encode and write."""

    def __init__(self, job: Job, engine: Engine, pairs: ShardWriter, latents: ShardWriter, bar: ProgressBar) -> None:
        self._job, self._pairs, self._bar = job, pairs, bar
        self._stop, self._encoding = Event(), bar.add("encoding")
        self._to_encode = [shard for shard in job.plan if not latents.has(shard)]
        self._to_make = [
            shard
            for shard in job.plan
            if not pairs.has(shard) or (shard in self._to_encode and not pairs.unfinished([shard]).has_pixels())
        ]
        self._pair_thread = ShardThread(pairs, PAIRS_AHEAD, self._stop)
        self._units = {shard: self._units_of(shard) for shard in self._to_make}
        units = (unit for group in self._units.values() for unit in group)
        self._results = engine.map(process_unit, units)  # workers begin while this process loads the VAE
        self._stage: LatentStage | None = None
        if self._to_encode:
            encoders = engine.encoders(partial(LatentEncoder.open, job.config))
            self._stage = LatentStage(encoders, latents, self._stop, engine.asynchronous)
        for progress, missing in ((bar, self._to_make), (self._encoding, self._to_encode)):
            progress.skip(sum(len(windows) for shard, windows in job.plan.items() if shard not in missing))

    def write(self, lost: LostWindows) -> None:
        """Write all missing shards, in the order of the plan. A pair shard without pixels is made again for the VAE."""
        lost.forget(self._to_make)
        for shard in self._job.plan:
            stage = self._stage if shard in self._to_encode else None
            if stage is not None:
                stage.begin(shard, self._encoding.advance, partial(self._skip_missing, len(self._job.plan[shard])))
            if shard in self._units:
                results = _results_of_shard(shard, self._units[shard], self._results, lost, self._bar)
                self._make(shard, results, stage)
            elif stage is not None:
                for item in stored_pairs(self._pairs.unfinished([shard])):
                    stage.add(item)
            if stage is not None:
                stage.end()
        self._pair_thread.join()
        if self._stage is not None:
            self._stage.join()

    def _units_of(self, shard: str) -> list[WorkUnit]:
        units = split_into_units(self._job.plan[shard], self._job.clips, self._job.config)
        return [replace(unit, encode=shard in self._to_encode) for unit in units]

    def _make(self, shard: str, pairs: Iterable[CheckedPair], stage: LatentStage | None) -> None:
        """Write a pair shard and the reports of all its pairs; hand the pairs that pass the checks to `stage`.

        The reports are written before the shard is renamed to its final name, so every finished shard has its reports.
        """
        entries: list[tuple[Report, bytes]] = []
        self._pair_thread.begin(shard, lambda _: None, lambda _: self._job.log.write(Path(shard).stem, entries))
        for checked in pairs:
            entries.append((checked.report, checked.picture))
            if checked.members is None:
                self._bar.skip(1)
                continue
            self._pair_thread.add([checked.members])
            self._bar.advance()
            if stage is not None and checked.pair is not None:
                stage.add(ClipPair(checked.pair, checked.report.clip))
        self._pair_thread.end()

    def _skip_missing(self, planned: int, count: int) -> None:
        """Count the planned windows of a shard that have no pair."""
        self._encoding.skip(planned - count)

    def close(self) -> None:
        """End the threads, and leave no partial shard."""
        self._stop.set()
        if self._stage is not None:
            self._stage.close()
        self._pair_thread.close()


def _results_of_shard(
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


def stored_pairs(pairs: ShardSet) -> Iterator[ClipPair]:
    """All pairs of a set, decoded ahead by threads."""
    with ThreadPoolExecutor(READER_THREADS) as readers:
        ahead: deque[Future[Pair]] = deque()
        for i in range(len(pairs) + READER_THREADS):
            if i < len(pairs):
                ahead.append(readers.submit(pairs.read_pair, i))
            if i >= READER_THREADS:
                yield ClipPair(ahead.popleft().result(), pairs.samples[i - READER_THREADS].source)
