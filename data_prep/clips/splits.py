"""Settle the splits of the usable clips: none is empty if that is possible, and clips that belong together stay so.

Clips belong together if they are of one recording (column `source`), or if one shows the same as the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data_prep.clips.clip_list import SPLITS, Clip, draw_split, hash_of
from data_prep.clips.parts import Parts, halve, hold_out_end
from data_prep.clips.probed_clip import ProbedClip
from iclora_train.config import Data
from iclora_train.core.groups import connected

LITTLE = "the evaluation says little about other footage"


@dataclass
class Splits:
    """The clips with their splits, ordered by id, and how the splits differ from those of the list.

    A clip that is cut into parts is in `clips` once per part, each with its split and, apart from the first, an id of
    its own. moved: id -> why the split was changed. parts: id -> ranges of resampled frames. shared: recordings that
    are in train and in another split on purpose. dropped: clips and reasons. notes: lines for the user.
    """

    clips: list[ProbedClip]
    moved: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Parts] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def split_of(self) -> dict[str, str]:
        """Id of a clip or of a part -> its split."""
        return {probed.clip.id: probed.clip.split for probed in self.clips}

    @property
    def changes(self) -> dict[str, Any]:
        """The entry `splits` of the fingerprint of the pairs; empty if all clips have the splits of the list."""
        split_of = self.split_of
        entries = {
            "moved": {name: split_of[name] for name in sorted(self.moved)},
            "parts": self.parts,
            "shared": self.shared,
            "dropped": [entry["clip"] for entry in self.dropped],
        }
        return {name: entry for name, entry in entries.items() if entry}


@dataclass
class _Group:
    """Clips that belong together, and the split of those that the list gives none. why: why it is not the drawn one."""

    clips: list[ProbedClip]
    split: str = ""
    why: str = ""

    @property
    def is_listed(self) -> bool:
        """Whether the list gives a split to one of the clips."""
        return any(listed_split(probed.clip) for probed in self.clips)

    @property
    def rank(self) -> tuple[int, int]:
        """Order in which groups are moved to an empty split: small ones first, then by hash."""
        return len(self.clips), min(hash_of(probed.clip.id) for probed in self.clips)


def listed_split(clip: Clip) -> str:
    """The split in the row of a clip, or "". It is never changed."""
    return clip.row.get("split", "")


def settle_splits(usable: Sequence[ProbedClip], copies: Collection[tuple[str, str]], data: Data) -> Splits:
    """The splits of the clips, from those that are drawn from their ids.

    copies: pairs of ids that show the same. data.split=none: all clips without a listed split are train.
    """
    if data.split == "none":
        return _described(Splits([_in_split(probed, listed_split(probed.clip) or "train") for probed in usable]))
    groups = _groups(usable, copies, by_recording=True)
    is_one_recording = len(groups) == 1
    if is_one_recording:
        groups = _groups(usable, copies, by_recording=False)
    if len(groups) == 1 and not groups[0].is_listed:
        return _described(_only_one(groups[0].clips, data))
    for group in groups:
        _choose_split(group, data)
    _fill_empty_splits(groups)
    return _described(_collect(groups, data, is_one_recording))


def _groups(usable: Sequence[ProbedClip], copies: Collection[tuple[str, str]], by_recording: bool) -> list[_Group]:
    """The clips that belong together, directly or through other clips, in the order of their first clips."""
    of = {probed.clip.id: number for number, probed in enumerate(usable)}  # id -> number of the clip
    links = [(of[a], of[b]) for a, b in copies if a in of and b in of]
    if by_recording:
        first: dict[str, int] = {}
        links += [(first.setdefault(p.clip.source, i), i) for i, p in enumerate(usable) if p.clip.source]
    return [_Group([usable[i] for i in group]) for group in connected(range(len(usable)), links)]


def _choose_split(group: _Group, data: Data) -> None:
    """The split of a group: the last of those in the list; the drawn one, if all clips have the same; the one that is
    drawn for their recording; train, if they are of several recordings and show the same.
    """
    listed = {split for probed in group.clips if (split := listed_split(probed.clip))}
    drawn = {probed.clip.split for probed in group.clips}
    recordings = {probed.clip.source or probed.clip.id for probed in group.clips}
    names = ", ".join(probed.clip.id for probed in group.clips[:3]) + ", ..." * (len(group.clips) > 3)
    if listed:
        group.split = max(listed, key=SPLITS.index)
        group.why = f"it belongs to clips that the list puts into {group.split}"
    elif len(drawn) == 1:
        group.split = drawn.pop()
    elif len(recordings) == 1:
        group.split = draw_split(recordings.pop(), data.heldout_fraction)
        group.why = f"clips of one recording stay together ({names})"
    else:
        group.split, group.why = "train", f"clips that show the same stay together ({names})"


def _fill_empty_splits(groups: list[_Group]) -> None:
    """Move the first group by `rank` to each empty split: from a split that keeps another one, first of all train, or
    from one that matters less (train matters most, then heldout).
    """
    for split, lesser in (("train", ("val", "heldout")), ("heldout", ("val",)), ("val", ())):
        of = {name: [group for group in groups if name in _splits_of(group)] for name in SPLITS}
        donors = [of[name] for name in SPLITS if len(of[name]) > 1] + [of[name] for name in lesser]
        movable = next((free for donor in donors if (free := [group for group in donor if not group.is_listed])), [])
        if not of[split] and movable:
            group = min(movable, key=lambda group: group.rank)
            group.split, group.why = split, f"split {split} had no usable clip"


def _splits_of(group: _Group) -> set[str]:
    return {listed_split(probed.clip) or group.split for probed in group.clips}


def _collect(groups: Iterable[_Group], data: Data, is_one_recording: bool) -> Splits:
    """The clips of the groups. If val has none, a clip of heldout gives its first half."""
    groups = list(groups)
    splits = Splits([])
    for group in groups:
        for probed in group.clips:
            split = listed_split(probed.clip) or group.split
            splits.clips.append(_in_split(probed, split))
            if split != probed.clip.split:
                splits.moved[probed.clip.id] = group.why or f"its row says {split}"
    present = set(splits.split_of.values())
    halved = [group for group in groups if group.split == "heldout" and not group.is_listed]
    if "val" not in present and "train" in present and halved:
        _halve_one(splits, min(halved, key=lambda group: group.rank), data)
    if is_one_recording and not all(listed_split(probed.clip) for probed in splits.clips):
        splits.shared = sorted({recording for recording, of in _recordings(splits).items() if _leaks(of)})
        if splits.shared:
            splits.notes.append(f"all clips are of one recording, {splits.shared[0]}, in all splits: {LITTLE}")
    elif leaking := sorted(recording for recording, of in _recordings(splits).items() if _leaks(of)):
        splits.notes.append(
            f"the list puts recording {leaking[0]} into train and into heldout: the evaluation refuses such clips"
        )
    return splits


def _recordings(splits: Splits) -> dict[str, set[str]]:
    """Recording -> the splits of its clips."""
    result = defaultdict[str, set[str]](set)
    for probed in splits.clips:
        result[probed.clip.source or probed.clip.id].add(probed.clip.split)
    return result


def _leaks(of: set[str]) -> bool:
    return "train" in of and "heldout" in of


def _halve_one(splits: Splits, group: _Group, data: Data) -> None:
    """Give the first half of the group's longest clip to val."""
    probed = max(group.clips, key=lambda probed: probed.info.frames)
    parts = halve(probed, data)
    if "val" in parts:
        splits.clips = [clip for clip in splits.clips if clip.clip.id != probed.clip.id]
        _add_parts(splits, probed, parts, "heldout")
        splits.notes.append(
            f"too few clips for all splits: {probed.clip.id} gives its first half to val, its second to heldout"
        )


def _only_one(clips: Sequence[ProbedClip], data: Data) -> Splits:
    """The splits of one clip, or of several that show the same: the longest of them is cut into parts."""
    probed = max(clips, key=lambda probed: probed.info.frames)
    name, splits = probed.clip.id, Splits([])
    others = [other.clip.id for other in clips if other is not probed]
    splits.dropped = [{"clip": other, "reason": f"all clips show the same, and {name} is used"} for other in others]
    parts = hold_out_end(probed, data)
    if "heldout" in parts:
        _add_parts(splits, probed, parts, "train")
        splits.shared = [probed.clip.source or name]
        splits.notes.append(
            f"{name} is the only usable clip: its last {parts['heldout'][1] - parts['train'][1]} frames are held out, "
            f"and {LITTLE}"
        )
    else:
        splits.clips.append(_in_split(probed, "train"))
        splits.notes.append(f"{name} is the only usable clip, and too short to hold out a window of it")
        if probed.clip.split != "train":
            splits.moved[name] = "it is the only usable clip"
    return splits


def _add_parts(splits: Splits, probed: ProbedClip, parts: Parts, keeps_id: str) -> None:
    """Add a clip once per part. The part `keeps_id` has the id of the clip, the others `<id>-<split>`; all have the
    same recording.
    """
    clip, taken = probed.clip, set(splits.split_of)
    for split, part in parts.items():
        name = clip.id if split == keeps_id else f"{clip.id}-{split}"
        while name in taken:
            name += "-part"
        taken.add(name)
        source = clip.source or (clip.id if split != keeps_id else "")
        splits.clips.append(replace(probed, clip=replace(clip, id=name, split=split, source=source), part=part))
    splits.parts[clip.id] = parts


def _in_split(probed: ProbedClip, split: str) -> ProbedClip:
    return probed if probed.clip.split == split else replace(probed, clip=replace(probed.clip, split=split))


def _described(splits: Splits) -> Splits:
    """The same splits, ordered, with a note for each split without clips."""
    splits.clips.sort(key=lambda probed: probed.clip.id)
    present = set(splits.split_of.values())
    for split, work in (("val", "validation losses and clips"), ("heldout", "evaluation")):
        if present and split not in present:
            splits.notes.append(f"there are no {split} clips: training runs without {work}")
    return splits
