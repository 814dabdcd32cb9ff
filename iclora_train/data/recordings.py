"""Which recording a clip was cut from, and which window of another recording can stand in for a window's own.

Several clips may be cut from one recording (one shot in two crops, for example).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from iclora_train.data.shards import ShardSet


def recording_of_clips(shards: ShardSet, numbers: Iterable[int] | None = None) -> dict[str, str]:
    """Clip -> its recording: `source` in the record of the clip's first window, by default the clip itself.

    numbers: only the clips of these samples. Media are not read.
    """
    return {clip: source or clip for clip, source in declared_recordings(shards, numbers).items()}


def declared_recordings(shards: ShardSet, numbers: Iterable[int] | None = None) -> dict[str, str]:
    """Clip -> `source` in the record of the clip's first window, "" if it has none (see `recording_of_clips`)."""
    first: dict[str, int] = {}
    for i in range(len(shards)) if numbers is None else numbers:
        first.setdefault(shards.samples[i].source, i)
    return {clip: str(shards.record(i).record.get("source") or "") for clip, i in first.items()}


def partners_of_others(recordings: Sequence[str]) -> list[int] | None:
    """For each window the number of a window of another recording, half the list away or the next one after that.

    None if all windows are of one recording.
    """
    if len(set(recordings)) < 2:
        return None
    return [
        next(j for j in half_a_list_away(i, len(recordings)) if recordings[j] != recording)
        for i, recording in enumerate(recordings)
    ]


def half_a_list_away(number: int, count: int) -> list[int]:
    """All numbers below `count`, beginning half the list after `number` and going round."""
    return [(number + count // 2 + step) % count for step in range(count)]
