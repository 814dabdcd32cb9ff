"""Choose a few clips that stand for all clips of a preparation, without probing all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from data_prep.clip_cache import ClipCache
from data_prep.clips.clip_list import SPLITS, Clip
from data_prep.clips.probed_clip import ProbedClip
from data_prep.clips.windows import Window, heldout_windows, train_windows
from data_prep.reference_makers import makers_of_references
from data_prep.select_clips import Dropped, probe_clip
from iclora_train.config import Config, Data
from iclora_train.core.atomic_files import sha256
from iclora_train.core.console import printable
from iclora_train.core.progress import ProgressBar

WINDOWS = 8  # of a preview
WEIGHTS = {"train": 6, "val": 1, "heldout": 1}  # shares of the splits in the clips that are probed
MOST_CLIPS, MOST_SECONDS = 64, 20.0  # probed for a preview, however many splits or buckets are still missing


@dataclass
class ClipSample:
    """The clips that were probed. seconds: spent on probing, hashing and comparing `timed` of them."""

    listed: list[Clip]
    usable: list[ProbedClip] = field(default_factory=list)
    dropped: Dropped = field(default_factory=list)
    probed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    seconds: float = 0.0
    timed: int = 0

    def windows(self, data: Data) -> dict[str, int]:
        """The number of windows of the whole preparation by split, judged from the probed clips of the split."""
        counts = {}
        for split in SPLITS:
            clips = [probed for probed in self.usable if probed.clip.split == split]
            most = data.train_windows if split == "train" else data.heldout_windows
            share = sum(clip.split == split for clip in self.listed) / max(self.probed[split], 1)
            counts[split] = min(most, round(len(_windows_of(clips, split, data, most)) * share))
        return counts

    def pixels_per_window(self, data: Data) -> float:
        """Mean frames x height x width of the windows of the usable clips."""
        sizes = [probed.best_bucket(data) for probed in self.usable]
        return float(np.mean([size.frames * size.height * size.width for size in sizes]))


def sample_clips(clips: list[Clip], config: Config, bar: ProgressBar) -> ClipSample:
    """Probe clips, spread over each split, until WINDOWS are usable and every split and bucket has one."""
    sample, makers = ClipSample(clips), makers_of_references(config.task)
    begin = time.perf_counter()
    for clip in _by_weight({split: _spread([c for c in clips if c.split == split]) for split in SPLITS}):
        elapsed = time.perf_counter() - begin
        if _is_enough(sample, config) or sum(sample.probed.values()) >= MOST_CLIPS or elapsed > MOST_SECONDS:
            break
        sample.probed[clip.split] += 1
        started = time.perf_counter()
        try:
            probed = probe_clip(clip, config, makers)
        except (ValueError, OSError) as error:
            sample.dropped.append({"clip": clip.id, "reason": printable(str(error))})
            continue
        _compare(probed)
        sample.usable.append(probed)
        sample.seconds, sample.timed = sample.seconds + time.perf_counter() - started, sample.timed + 1
        bar.advance()
    return sample


def _compare(probed: ProbedClip) -> None:
    """Do what the fingerprint and the search for duplicates do with a clip, to know how long it takes."""
    ClipCache().signature(probed.clip, probed.info, sha256(probed.clip.path))


def _spread(clips: list[Clip]) -> list[Clip]:
    """The clips in an order whose every beginning is spread over all of them: by the reversed bits of their numbers."""
    bits = max(len(clips) - 1, 1).bit_length()
    order = sorted(range(len(clips)), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    return [clips[i] for i in order]


def _by_weight(splits: dict[str, list[Clip]]) -> Iterator[Clip]:
    """The clips of all splits, mixed: of every split in proportion to WEIGHTS, as long as it has clips."""
    places = [((turn + 1) / WEIGHTS[split], clip) for split, clips in splits.items() for turn, clip in enumerate(clips)]
    yield from (clip for _, clip in sorted(places, key=lambda place: place[0]))


def _is_enough(sample: ClipSample, config: Config) -> bool:
    """Whether the usable clips suffice: WINDOWS of them, and one of each split and bucket that can have one."""
    splits = {probed.clip.split for probed in sample.usable}
    buckets = {_bucket(probed, config.data) for probed in sample.usable}
    listed_splits = {clip.split for clip in sample.listed}
    return len(sample.usable) >= WINDOWS and splits == listed_splits and len(buckets) == len(config.data.sizes())


def _bucket(probed: ProbedClip, data: Data) -> tuple[int, int, int]:
    size = probed.best_bucket(data)
    return size.width, size.height, size.frames


def choose_windows(usable: list[ProbedClip], data: Data, count: int = WINDOWS) -> list[Window]:
    """Up to `count` windows: of different clips as far as there are, one of each split and bucket first."""
    first: dict[object, ProbedClip] = {}
    for probed in usable:
        first.setdefault(probed.clip.split, probed)
        first.setdefault(_bucket(probed, data), probed)
    ordered = list(dict.fromkeys([probed.clip.id for probed in (*first.values(), *usable)]))[:count]
    by_id = {probed.clip.id: probed for probed in usable}
    each = -(-count // max(len(ordered), 1))
    groups = [_windows_of([by_id[name]], by_id[name].clip.split, data, each) for name in ordered]
    turns = [group[turn] for turn in range(each) for group in groups if turn < len(group)]
    return sorted(turns[:count], key=lambda window: (window.clip, window.indices, window.number))


def _windows_of(clips: list[ProbedClip], split: str, data: Data, most: int) -> list[Window]:
    """Up to `most` windows of clips of one split, as a preparation of these clips alone would cut them."""
    if split == "train":
        return train_windows(clips, replace(data, train_windows=most)) if clips else []
    return heldout_windows(clips, replace(data, heldout_windows=most))
