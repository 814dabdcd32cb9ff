"""Lines about a listing that its clips do not show: files and columns that were not read, captions that are odd."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from data_prep.clips.clip_list import Clip
from data_prep.clips.columns import SOUND, normalise, unread_columns
from data_prep.clips.folders import files_below, split_pattern
from data_prep.clips.kinds import REFERENCES, VIDEOS
from data_prep.clips.musubi import SUFFIX, musubi_notes
from data_prep.clips.reference_folder import ReferenceFolder
from data_prep.clips.rows import SUFFIXES
from data_prep.clips.text_files import CAPTION_SUFFIXES
from iclora_train.config.paths import user_path
from iclora_train.core.console import printable
from iclora_train.media.picture import IMAGES

_OTHER_CAPTIONS = (".json", ".md", ".yaml", ".srt", ".docx")  # beside a clip; not read
_MAX_NAMED = 3  # files or suffixes that a line names


def listing_notes(
    clips: str, listed: Sequence[Clip], columns: Collection[str] = (), references: str | None = None
) -> list[str]:
    """One line for each oddity of the listed clips of `data.clips`. columns: the columns that data.prompt names.

    references: `data.references`.
    """
    if clips == "samples":
        return []
    folder = user_path(clips)
    lines = list(_unread_files(folder, listed)) if folder.is_dir() else []
    if folder.suffix.lower() == SUFFIX and folder.is_file():
        lines += musubi_notes(folder)
    if unread := unread_columns([clip.row for clip in listed], columns):
        of_sound = {normalise(name) for name in unread} & set(SOUND)
        sound = " (the sound of a clip is read from its own file, with data.sound)" if of_sound else ""
        lines.append(f"columns of the list that are stored but not used: {', '.join(unread)}{sound}")
    if references is not None:
        lines += _unused_references(references, folder, listed)
    return [printable(line) for line in (*lines, *_captions(listed))]


def _unused_references(references: str, clips: Path, listed: Sequence[Clip]) -> Iterator[str]:
    """All references without a target, in one line."""
    folder = clips if clips.is_dir() else split_pattern(clips)[0]
    unused = ReferenceFolder(references, REFERENCES, folder).without_target({clip.reference for clip in listed})
    if unused:
        yield f"{len(unused)} files of data.references have no target of their name: {', '.join(unused)}"


def _unread_files(folder: Path, listed: Sequence[Clip]) -> Iterator[str]:
    """Files below a folder that are neither clips nor captions, and lists that are not read with the folder."""
    clips = {path for clip in listed for path in (clip.path, clip.reference)}
    others = [path for path in files_below(folder) if path not in clips and path.suffix not in CAPTION_SUFFIXES]
    lists = [path for path in others if path.suffix.lower() in SUFFIXES and not _is_beside(path, clips)]
    if lists:
        yield f"{_names(lists)} was not read, because data.clips is the folder; data.clips={lists[0]} reads the list"
    suffixes = Counter(path.suffix.lower() or path.name for path in others if path not in lists)
    if suffixes:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(2 * _MAX_NAMED))
        images = " (images are read with data.frames=1)" if suffixes.keys() & set(IMAGES) else ""
        yield f"files below {folder} that are not clips: {counts}{images}"


def _is_beside(path: Path, clips: Collection[Path | None]) -> bool:
    """Whether a file has the name of a clip with another suffix."""
    return any(path.with_suffix(suffix) in clips for suffix in VIDEOS)


def _captions(listed: Sequence[Clip]) -> Iterator[str]:
    """Captions of an unknown form beside clips without caption, one file for several clips, one text for all clips."""
    missing = [clip for clip in listed if not clip.caption and not clip.problem]
    candidates = [path for clip in missing for path in _other_captions(clip.path) if os.path.isfile(path)]
    if candidates:
        yield (
            f"{_names(candidates)}: not read as captions; put the text into a file such as "
            f"{missing[0].path.with_suffix('.txt').name}"
        )
    texts = {clip.caption for clip in listed}
    if len(listed) > 1 and len(texts) == 1 and "" not in texts:
        yield f"all {len(listed)} clips have the same caption"
    stems = defaultdict[Path, dict[Path, None]](dict)
    for clip in listed:
        if clip.caption and "caption" not in clip.row:
            stems[clip.path.with_suffix("")][clip.path] = None
    for paths in stems.values():
        if len(paths) > 1:
            yield f"{_names(list(paths))} share one caption file, because their names differ only in the suffix"


def _other_captions(video: Path) -> list[Path]:
    return [*map(video.with_suffix, _OTHER_CAPTIONS), video.with_name(f"{video.name}.txt")]


def _names(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _MAX_NAMED} more" if len(paths) > _MAX_NAMED else ""
    return ", ".join(path.name for path in paths[:_MAX_NAMED]) + more
