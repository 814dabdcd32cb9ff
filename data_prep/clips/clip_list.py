"""List the clips of `data.clips` (the samples, a folder, a pattern, a list of rows) and assign their splits."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.clips.columns import FILE_COLUMNS
from data_prep.clips.folders import files_below, files_matching, split_pattern
from data_prep.clips.kinds import REFERENCES, STILLS, VIDEOS
from data_prep.clips.musubi import SUFFIX, ForeignRow, read_musubi
from data_prep.clips.reference_folder import ReferenceFolder, is_below
from data_prep.clips.rows import SUFFIXES, parse_frame_numbers, parse_number, read_rows
from data_prep.clips.sections import reference_section, section_of_row, suffix_of
from data_prep.clips.text_files import caption_beside
from iclora_train.config import Config, require
from iclora_train.config.paths import user_path
from iclora_train.data.prompts import template_fields
from iclora_train.media.picture import is_picture
from iclora_train.media.section import Section

SAMPLES = Path(__file__).parents[1] / "samples" / "clips.csv"
SPLITS = ("train", "val", "heldout")


@dataclass(frozen=True)
class Clip:
    """A source video or image.

    split: one of SPLITS. reference: the supplied reference video, if any. files: further files (a mask, tracks, ...) by
    column of the list. fps: the rate in the list. cuts: frames that start a scene, None if the list has none. row: all
    columns as text. problem: why the clip cannot be used, if its files need not be decoded to know it. section,
    reference_section: the sections of the video and of the reference that are used; None: all.
    """

    id: str
    path: Path
    split: str
    caption: str = ""
    licence: str = ""
    source: str = ""
    reference: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    fps: float | None = None
    cuts: tuple[int, ...] | None = None
    row: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    section: Section | None = None
    reference_section: Section | None = None

    @property
    def is_image(self) -> bool:
        """Whether the file is an image: one frame and no frame rate."""
        return is_picture(self.path)


def clips_of(config: Config) -> list[Clip]:
    """The clips of a run, as `list_clips`. If a size has one frame, folders and patterns also yield images.

    A task without references has none, also where the list names them.
    """
    data = config.data
    images = any(size.frames == 1 for size in data.sizes())
    clips = list_clips(data.clips, data.heldout_fraction, images, template_fields(data.prompt or ""), data.references)
    if config.task.has_reference:
        return clips
    return [replace(clip, reference=None, reference_section=None) for clip in clips]


def list_clips(
    clips: str,
    heldout_fraction: float,
    images: bool = False,
    columns: Collection[str] = (),
    references: str | None = None,
) -> list[Clip]:
    """The clips of `data.clips`, each with a split, ordered by id. ConfigError if there are no clips.

    images: whether folders and patterns also yield images. columns: the columns of a list that data.prompt names.
    references: `data.references`, a folder with a reference for every clip of a folder or pattern.
    """
    path = SAMPLES if clips == "samples" else user_path(clips)
    kinds = VIDEOS + STILLS if images else VIDEOS
    if os.path.isdir(path):
        listed = _clips_in(path, files_below(path), kinds, references)
    elif os.path.exists(path):
        listed = _clips_in_list(path, columns)
        require(references is None, f"data.references={references}: a list names references in a column `reference`")
    else:
        folder, pattern = split_pattern(path)
        require(
            bool(pattern),
            f"data.clips={clips}: {path} does not exist; give samples, a folder, a pattern or a csv/jsonl list",
        )
        listed = _clips_in(folder, files_matching(folder, pattern), kinds, references)
    suffixes = ", ".join(kinds)
    require(len(listed) > 0, f"data.clips={clips}: {path} holds no clips; put videos ({suffixes}) or rows into it")
    repeated = sorted(name for name, count in Counter(clip.id for clip in listed).items() if count > 1)
    require(not repeated, f"data.clips={clips}: {', '.join(repeated)} is listed twice; give every clip its own id")
    return sorted(_with_splits(listed, heldout_fraction), key=lambda clip: clip.id)


def _clips_in(folder: Path, paths: Iterable[Path], kinds: tuple[str, ...], references: str | None) -> list[Clip]:
    """The files of these kinds below a folder, with their references. A text file next to a clip is its caption. A
    second name of a file, a folder that cannot be read and a clip whose caption cannot be read get a `problem`.
    """
    partners = None if references is None else ReferenceFolder(references, REFERENCES, folder)
    if partners is not None and is_below(partners.folder, folder):
        paths = [path for path in paths if not is_below(path, partners.folder)]
    files = [path for path in paths if path.suffix.lower() in kinds or os.path.isdir(path)]
    require(folder not in files, f"data.clips={folder} cannot be read: give it read permission")
    listed, first = [], dict[str, Path]()
    for path in sorted(files, key=lambda path: (path.is_symlink(), path)):
        name, earlier = _slug(path.relative_to(folder)), first.setdefault(os.path.realpath(path), path)
        if earlier != path:
            listed.append(Clip(name, path, "", problem=f"{path} is the same file as {earlier}"))
        elif path.suffix.lower() not in kinds:
            listed.append(Clip(name, path, "", problem=f"the folder {path} cannot be read: give it read permission"))
        else:
            caption, problem = _caption_or_problem(path)
            listed.append(Clip(name, path, "", caption, problem=problem))
    return listed if partners is None else _with_references(listed, folder, partners)


def _with_references(clips: list[Clip], folder: Path, partners: ReferenceFolder) -> list[Clip]:
    """The clips with the references of their names. A caption may lie next to the clip or next to its reference.

    A clip without a reference gets a `problem`. ConfigError if two clips have the same reference.
    """
    paired, user = [], dict[Path, Path]()
    for clip in clips:
        reference = None if clip.problem else partners.partner_of(clip.path.relative_to(folder))
        if reference is None:
            name = clip.path.relative_to(folder).with_suffix("")
            paired.append(replace(clip, problem=clip.problem or f"no reference in {partners.folder} is named {name}.*"))
            continue
        first = user.setdefault(reference, clip.path)
        require(first == clip.path, f"{first} and {clip.path} have one reference, {reference}: keep one, or rename it")
        caption, problem = (clip.caption, "") if clip.caption else _caption_or_problem(reference)
        paired.append(replace(clip, reference=reference, caption=caption, problem=problem))
    return paired


def _caption_or_problem(video: Path) -> tuple[str, str]:
    """The caption in the file next to a clip, and why it cannot be read; one of the two is empty."""
    try:
        return caption_beside(video), ""
    except ValueError as error:
        return "", str(error)


def _clips_in_list(path: Path, columns: Collection[str]) -> list[Clip]:
    """The rows of a list, with the columns of docs/clips.md. Paths are relative to the list; the default caption is the
    text file next to the video.
    """
    require(
        path.suffix.lower() in (*SUFFIXES, SUFFIX),
        f"data.clips={path} is neither a folder nor a .csv or .jsonl list ({', '.join((*SUFFIXES, SUFFIX))})",
    )
    if path.suffix.lower() == SUFFIX:
        return with_recordings([_clip_in_foreign_row(path.parent, row) for row in read_musubi(path)])
    rows = enumerate(read_rows(path, columns), start=1)
    return with_recordings(
        [_clip_in_row(path.parent, row, f"data.clips={path}, clip {number}") for number, row in rows]
    )


def with_recordings(clips: list[Clip]) -> list[Clip]:
    """The clips; those of a video of which sections are used have the video as `source`, unless the list names it."""
    videos = {clip.path for clip in clips if clip.section is not None}
    return [replace(c, source=c.source or c.row["video"]) if c.path in videos else c for c in clips]


def _clip_in_foreign_row(folder: Path, row: ForeignRow) -> Clip:
    """The clip of a row of another program's list. Its id is made from its path relative to the list, `folder`."""
    clip = _clip_in_row(folder, row.cells, row.where)
    name = clip.id if "id" in row.cells else _slug(Path(os.path.relpath(clip.path, folder))) + suffix_of(clip.section)
    return replace(clip, id=name, problem=clip.problem or row.problem)


def _clip_in_row(folder: Path, row: Mapping[str, str], where: str) -> Clip:
    """The clip of one row. Messages begin with `where`."""
    require("video" in row and Path(row["video"]).name != "", f"{where} names no video: give its path in `video`")
    section = section_of_row(row, where)
    split, name = row.get("split", ""), row.get("id") or _slug(Path(row["video"])) + suffix_of(section)
    valid = re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) is not None  # a dot would end the key inside a tar
    require(valid, f"{where}: id={name!r} may only hold letters, digits, - and _, at most 60")
    require(split in ("", *SPLITS), f"{where}: split={split!r} is not one of {', '.join(SPLITS)}")
    files = {column: _path(folder, row[column]) for column in ("video", "reference", *FILE_COLUMNS) if column in row}
    caption, problem = (row["caption"], "") if "caption" in row else _caption_or_problem(files["video"])
    addresses = [row[column] for column, path in files.items() if not os.path.exists(path) and _is_address(row[column])]
    if addresses:
        problem = f"its row names {addresses[0]}: only local files are read; download it and give its path"
    video, reference = files.pop("video"), files.pop("reference", None)
    if second := next((column for column in row if re.fullmatch(r"control_path_0*[1-9]\d*", column)), None):
        problem = f"its row names several controls (`{second}`), and a clip has one reference"
    if section is not None and is_picture(video):
        problem = f"its row names a section, {section}, but it is an image"
    return Clip(
        id=name,
        path=video,
        split=split,
        caption=caption,
        licence=row.get("licence", ""),
        source=row.get("source", ""),
        reference=reference,
        files=files,
        fps=parse_number(row, "fps", where),
        cuts=parse_frame_numbers(row, "cuts", where),
        row=row,
        problem=problem,
        section=section,
        reference_section=reference_section(section, row, where),
    )


def _path(folder: Path, cell: str) -> Path:
    """The path in a cell: absolute, below the home folder (~), or relative to the list. Backslashes also separate
    folders if only that gives an existing file.
    """
    path = folder / os.path.expanduser(cell)
    other = folder / cell.replace("\\", "/")
    return other if not os.path.exists(path) and os.path.exists(other) else path


def _is_address(cell: str) -> bool:
    """Whether a cell is a network address or another URL, as FFmpeg would read it."""
    return re.match(r"[a-z][a-z0-9+.-]*(://|:[a-z]+:)", cell, re.IGNORECASE) is not None


def _slug(path: Path) -> str:
    """A short id of a relative path, made unique by part of its hash and safe as a name inside a tar."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", str(path.with_suffix("")))[-40:].strip("-")
    return f"{name}-{hash_of(str(path)):08x}"


def hash_of(text: str) -> int:
    """A hash below 2^32 that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:4], "big")


def draw_split(name: str, fraction: float) -> str:
    """The split that the hash of a name gives: heldout and val have the share `fraction` of the names each."""
    return SPLITS[::-1][min(int(hash_of(name) // (fraction * 2**32)), 2)]


def _with_splits(clips: list[Clip], fraction: float) -> list[Clip]:
    """Assign a split to clips without one by the hash of their id, so a clip keeps its split when clips are added.

    If val or heldout would be empty, it receives the train clip with the lowest hash, as long as train keeps one. These
    splits are part of the fingerprint of shards; `splits.settle_splits` changes them where the usable clips need it.
    """
    if all(clip.split for clip in clips):
        return clips
    assigned = [replace(c, split=c.split or draw_split(c.id, fraction)) for c in clips]
    for split in ("heldout", "val"):
        train = sorted((c for c in assigned if c.split == "train"), key=lambda clip: hash_of(clip.id))
        if len(train) > 1 and not any(c.split == split for c in assigned):
            assigned[assigned.index(train[0])] = replace(train[0], split=split)
    return assigned
