"""Planned windows become pair shards, and each of these a latent shard while the next is made."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
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
from data_prep.pairs import make_pairs
from iclora_train.config import Config, ConfigError
from iclora_train.core.atomic_files import reraise_disk_full, write_atomic
from iclora_train.core.progress import ProgressBar, progress_bar
from iclora_train.core.types import Pair
from iclora_train.data.shard_sample import Members, pack_pair
from iclora_train.data.shards import ShardWriter
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.text_features import TextFeatures

UNIT_WINDOWS, UNIT_PIXELS = 8, 2**26  # of a unit at most: its pairs are in memory, compressed, until they are written

ShardPlan = dict[str, list[Window]]  # shard name -> its windows, ordered by clip and start


class LostWindowsError(ConfigError):
    """The shards are finished, but without some windows that were planned."""


@dataclass(frozen=True)
class Job:
    """What is to be made: `made_by` are the fingerprints of "pairs" and "latents", `clips` those of the plan by id.
    `notes` keep what the checks found.
    """

    root: Path
    made_by: dict[str, dict[str, Any]]
    plan: ShardPlan
    clips: dict[str, Clip]
    config: Config
    base: BaseModel
    notes: CheckLog


@dataclass(frozen=True)
class WorkUnit:
    """What one worker does at a time: some consecutive windows of one clip, which it decodes once."""

    clip: Clip
    windows: list[Window]
    config: Config


def split_into_units(windows: list[Window], clips: dict[str, Clip], config: Config) -> Iterator[WorkUnit]:
    """The windows of a shard, in their order, in units that bound memory and are enough to keep workers busy."""
    for name, group in groupby(windows, key=lambda window: window.clip):
        of_clip = list(group)
        height, width = of_clip[0].size
        size = max(1, min(UNIT_WINDOWS, UNIT_PIXELS // (len(of_clip[0].indices) * height * width)))
        for i in range(0, len(of_clip), size):
            yield WorkUnit(clips[name], of_clip[i : i + size], config)


@dataclass(frozen=True)
class CheckedPair:
    """A pair as it is stored, None if the checks leave it out, with what they found and a picture of it."""

    members: Members | None
    report: Report
    picture: bytes


def process_unit(unit: WorkUnit) -> list[CheckedPair] | Failure:
    """The pairs of a unit, checked; Failed when the clip could be read before and now cannot."""
    clip = unit.clip
    try:
        with reraise_disk_full(Path(tempfile.gettempdir(), "clip.mp4")):
            return [_made(pair, clip, unit.config) for pair in make_pairs(clip, unit.windows, unit.config)]
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        return Failure(str(error))


def _made(pair: Pair, clip: Clip, config: Config) -> CheckedPair:
    report = check_pair(pair, clip.id, clip.split, config)
    return CheckedPair(pack_pair(pair, clip.id) if report.kept else None, report, pair_picture(pair))


def write_shards(job: Job, engine: Engine) -> None:
    """Make both shard sets, or what a killed run left of them. LostError, at the end, when clips failed on the way."""
    pairs = ShardWriter(job.root / "pairs", "pairs", job.made_by["pairs"])
    latents = ShardWriter(job.root / "latents", "latents", job.made_by["latents"])
    texts = TextFeatures(job.root, job.base)
    texts.encode_missing(
        ["", *(caption_of(job.clips[w.clip], job.config) for windows in job.plan.values() for w in windows)]
    )
    latents.write_empty_text(texts.read(""))
    losses = LostWindows(pairs)
    stop = Event()
    with progress_bar("making pairs", sum(map(len, job.plan.values())), "clip") as bar:
        encode = _Encoding(job, engine, pairs, latents, bar.add("encoding"), stop)
        _each(
            write_pair_shards(job, engine, pairs, losses, bar), encode, len(encode.encoders), stop, engine.asynchronous
        )
    pairs.finish(list(job.plan))
    latents.finish(list(job.plan))
    losses.raise_if_any()


def write_pair_shards(
    job: Job, engine: Engine, writer: ShardWriter, losses: LostWindows, bar: ProgressBar
) -> Iterator[str]:
    """Write the pair shards that are not there; the name of each, in the order of the plan, once it is whole."""
    missing = {
        shard: list(split_into_units(windows, job.clips, job.config))
        for shard, windows in job.plan.items()
        if not writer.has(shard)
    }
    made = engine.map(process_unit, (unit for units in missing.values() for unit in units))
    for shard, windows in job.plan.items():
        if shard in missing:
            samples = _samples(shard, missing[shard], made, losses, bar)
            writer.write(shard, bar.track(_noted(job.notes, Path(shard).stem, samples, bar)))
        else:
            bar.skip(len(windows))
        yield shard


def _samples(
    shard: str,
    units: list[WorkUnit],
    made: Iterator[list[CheckedPair] | Failure],
    losses: LostWindows,
    bar: ProgressBar,
) -> Iterator[CheckedPair]:
    """The pairs of one shard, of the next of what is `made`."""
    for unit in units:
        done = next(made)
        if isinstance(done, Failure):
            losses.add(shard, unit, done.reason)
            bar.skip(len(unit.windows))
        else:
            yield from done


def _noted(notes: CheckLog, part: str, samples: Iterator[CheckedPair], bar: ProgressBar) -> Iterator[Members]:
    """What is kept of a shard's pairs. The notes about all of them are written before the shard gets its name, so that
    a shard that is there has its notes.
    """
    entries = []
    for made in samples:
        entries.append((made.report, made.picture))
        if made.members is None:
            bar.skip(1)
        else:
            yield made.members
    notes.write(part, entries)


class _Encoding:
    """Call it with the name of a pair shard that is whole: makes its latent shard, unless that is there."""

    def __init__(
        self, job: Job, engine: Engine, pairs: ShardWriter, latents: ShardWriter, bar: ProgressBar, stop: Event
    ) -> None:
        self._pairs, self._latents, self._bar, self._stop = pairs, latents, bar, stop
        done = all(map(latents.has, job.plan))
        self.encoders = [] if done else engine.encoders(partial(LatentEncoder.open, job.config.model, job.root))
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


def _each(shards: Iterator[str], encode: Callable[[str], None], encoders: int, stop: Event, beside: bool) -> None:
    """`encode` every shard: in threads while the next are made, or `beside` nothing else after the last."""
    if not beside:
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
                    future.result()  # an error there ends the work here
        for future in running:
            future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class LostWindows:
    """What could not be made of the plan and why: `lost.json` beside the pair shards, as long as these are kept."""

    def __init__(self, pairs: ShardWriter) -> None:
        self.path = pairs.folder / "lost.json"
        before = json.loads(self.path.read_text()) if self.path.exists() else []
        self.lost: list[dict[str, Any]] = [loss for loss in before if pairs.has(loss["shard"])]

    def add(self, shard: str, unit: WorkUnit, reason: str) -> None:
        """Note a unit that failed; the file is there before its shard is."""
        windows = [window.number for window in unit.windows]
        self.lost.append({"clip": unit.clip.id, "shard": shard, "windows": windows, "reason": reason})
        self._write()

    def _write(self) -> None:
        with write_atomic(self.path) as file:
            file.write(json.dumps(self.lost, indent=1).encode())

    def raise_if_any(self) -> None:
        """LostError when something was lost; otherwise the file goes."""
        if not self.lost:
            self.path.unlink(missing_ok=True)
            return
        self._write()
        first = self.lost[0]
        clips = len({loss["clip"] for loss in self.lost})
        windows = sum(len(loss["windows"]) for loss in self.lost)
        raise LostWindowsError(
            f"{clips} clips failed while pairs were made, {windows} windows are missing ({first['clip']}: "
            f"{first['reason']}); {self.path} names all. The shards are finished without them and can be used. To try "
            f"again, delete {self.path.parent} and {self.path.parent.with_name('latents')} and run the same command"
        )
