"""The looks of a sequential evaluation: what is sampled for each, and how the other processes learn how far it goes.

The first process judges and writes into `looks.json` which look is next. The others sample the batches of that look,
then the conditions that no gate needs, on the same windows: these are sampled in any case, wherever one stops.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from eval.budget import CORE
from eval.clips.conditions import Item, batches
from eval.clips.sampled import SampledClips
from eval.clips.sampling_ranks import WAIT, FirstProcess, SamplingRank, sample_if_free, work_of
from eval.clips.windows import HeldOut, Window
from eval.judging.verdicts import MIN_RECORDINGS, MIN_WINDOWS
from iclora_train.core.atomic_files import write_json
from iclora_train.core.fingerprint import digest, plain
from iclora_train.core.records import DamagedFileError, read_json

NAME = "looks.json"
MOST_LOOKS = 5  # more would cost power and save little


@dataclass(frozen=True)
class Look:
    """The number of recordings and of windows up to a look, and the batches of those that the look before lacks."""

    recordings: int
    windows: int
    batches: list[tuple[Item, ...]]


@dataclass(frozen=True)
class Announcement:
    """The content of looks.json. key: of the evaluation. look: number of the look that is sampled, from 0. is_last:
    whether no other windows are sampled."""

    key: str
    look: int
    is_last: bool


def planned_looks(windows: Sequence[Window]) -> list[int]:
    """The number of recordings at each look: at most MOST_LOOKS at about equal steps, the last one with all.

    windows: in the order in which they are sampled. Each look has the recordings and windows that a claim needs, unless
    all together are too few: then there is one look.
    """
    recordings = list(dict.fromkeys(window.source for window in windows))
    enough = [
        count
        for count in range(MIN_RECORDINGS, len(recordings) + 1)
        if sum(window.source in recordings[:count] for window in windows) >= MIN_WINDOWS
    ]
    if len(enough) < 2:
        return [len(recordings)]
    steps = min(MOST_LOOKS, len(enough)) - 1
    return sorted({enough[round(i * (len(enough) - 1) / steps)] for i in range(steps + 1)})


def looks_of(ordered: HeldOut, seeds: Sequence[int], batch_size: int) -> list[Look]:
    """All looks. ordered: the windows in the order in which they are sampled."""
    names = list(dict.fromkeys(window.source for window in ordered.windows))
    looks: list[Look] = []
    count = 0  # windows
    for recordings in planned_looks(ordered.windows):
        windows = [window for window in ordered.windows if window.source in names[:recordings]]
        looks.append(Look(recordings, len(windows), batches(windows[count:], seeds, batch_size)))
        count = len(windows)
    return looks


def looks_key(source: SampledClips, ordered: HeldOut) -> str:
    """A hash of what decides how far an evaluation goes: the clips and the settings by which they are judged."""
    source.restrict(source.config, ordered, [condition.name for condition in source.conditions])
    items = [Item(window, seed) for window in ordered.windows for seed in source.seeds]
    clips = [source.specification(condition, items) for condition in source.conditions]
    return digest(plain({"clips": clips, "evaluation": asdict(source.config.eval)}))


def announce(folder: Path, announcement: Announcement) -> None:
    """Tell the other processes which look is next. folder: of the results."""
    write_json(folder / NAME, asdict(announcement))


def _announced(folder: Path, key: str) -> Announcement | None:
    """The look that is next in this evaluation; None if that is not known yet."""
    try:
        known = read_json(folder / NAME, Announcement, "") if (folder / NAME).exists() else None
    except DamagedFileError:
        return None
    return known if known is not None and known.key == key else None


def follow_looks(source: SampledClips, folder: Path, rank: SamplingRank) -> None:
    """Sample in a process other than the first, as far as its announcements go, until the cache has all clips."""
    ordered = source.held_out.in_random_order(source.config.seed)
    key = looks_key(source, ordered)
    looks = looks_of(ordered, source.seeds, source.config.eval.batch_size)
    for_gates = [condition for condition in source.conditions if condition.name in CORE]
    others = [condition for condition in source.conditions if condition.name not in CORE]
    first = FirstProcess(folder)
    while True:
        has_ended = first.has_ended()  # before its last announcement is read
        known = _announced(folder, key)
        chosen = [] if known is None else [batch for look in looks[: known.look + 1] for batch in look.batches]
        work = work_of(source, for_gates, chosen, rank) + work_of(source, others, chosen, rank)
        if any(sample_if_free(source, missing) for missing in work):
            continue  # one batch, because the next look goes first
        if known is not None and known.is_last and all(missing.path.exists() for missing in work):
            return
        if has_ended:
            raise first.ended()
        time.sleep(WAIT)
