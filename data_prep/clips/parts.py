"""Cut one clip in time, so that its splits share no frame: where there are too few clips for all splits."""

from __future__ import annotations

from math import ceil

from data_prep.clips.probed_clip import ProbedClip
from iclora_train.config import Data

Parts = dict[str, tuple[int, int]]  # split -> its range [first, last) of resampled frames


def hold_out_end(probed: ProbedClip, data: Data) -> Parts:
    """The beginning of a clip for train, and its end for heldout: `data.heldout_fraction` of its frames, and at least a
    window. As many frames before them are val, if train keeps a window. Only train, if the clip has one window.
    """
    total = len(probed.frame_numbers(data.fps)[0])
    share = ceil(data.heldout_fraction * total)
    parts, end = Parts(), total
    for split in ("heldout", "val"):
        begin = _begin_of_end(probed, data, end, share)
        if begin is not None:
            parts[split] = begin, end
            end = begin
    return {"train": (0, end)} | parts


def halve(probed: ProbedClip, data: Data) -> Parts:
    """The first half of a clip for val, the second for heldout. Only heldout, if the clip has one window."""
    total = len(probed.frame_numbers(data.fps)[0])
    begin = _begin_of_end(probed, data, total, total // 2)
    return {"heldout": (0, total)} if begin is None else {"val": (0, begin), "heldout": (begin, total)}


def _begin_of_end(probed: ProbedClip, data: Data, end: int, share: int) -> int | None:
    """The first of the last `share` frames before `end`, earlier if no window starts there, later if no window would be
    left before them. None if [0, end) does not have two windows, one after the other.
    """
    frames = probed.best_bucket(data).frames
    scenes = [(first, min(last, end)) for first, last in probed.scenes(data.fps)]
    scenes = [(first, last) for first, last in scenes if last - first >= frames]
    if not scenes:
        return None
    earliest, latest = scenes[0][0] + frames, scenes[-1][1] - frames
    return None if latest < earliest else max(min(end - share, latest), earliest)
