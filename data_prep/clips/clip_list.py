"""List the clips of `data.clips` (the samples, a folder, a pattern, a csv/jsonl list) and assign their splits."""

from __future__ import annotations

import glob
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.clips.rows import parse_frame_numbers, parse_number, read_rows
from iclora_train.config import require

SAMPLES = Path(__file__).parents[1] / "samples" / "clips.csv"
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif")
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
SPLITS = ("train", "val", "heldout")
FILE_COLUMNS = ("mask", "depth", "tracks", "pose", "flow", "sheet")  # columns with paths of files that makers read


@dataclass(frozen=True)
class Clip:
    """A source video or image.

    split: one of SPLITS. reference: the supplied reference video, if any. files: further files (a mask, tracks, ...) by
    column of the list. fps: the rate in the list. cuts: frames that start a scene, None if the list has none. row: all
    columns as text.
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

    @property
    def is_image(self) -> bool:
        """Whether the file is an image: one frame and no frame rate."""
        return self.path.suffix.lower() in IMAGES


def list_clips(clips: str, heldout_fraction: float, images: bool = False) -> list[Clip]:
    """The clips of `data.clips`, each with a split, ordered by id. ConfigError if there are no clips.

    images: whether folders and patterns also yield images.
    """
    path = SAMPLES if clips == "samples" else Path(clips).expanduser()
    kinds = VIDEOS + IMAGES if images else VIDEOS
    if path.exists():
        listed = _clips_in(path, sorted(path.rglob("*")), kinds) if path.is_dir() else _clips_in_list(path)
    else:
        require(
            glob.has_magic(str(path)),
            f"data.clips={clips}: {path} does not exist; give samples, a folder, a pattern or a csv/jsonl list",
        )
        listed = _clips_in(_root_folder(path), sorted(map(Path, glob.glob(str(path), recursive=True))), kinds)
    suffixes = ", ".join(kinds)
    require(len(listed) > 0, f"data.clips={clips}: {path} holds no clips; put videos ({suffixes}) or rows into it")
    repeated = sorted(name for name, count in Counter(clip.id for clip in listed).items() if count > 1)
    require(not repeated, f"data.clips={clips}: {', '.join(repeated)} is listed twice; give every clip its own id")
    return sorted(_with_splits(listed, heldout_fraction), key=lambda clip: clip.id)


def _root_folder(pattern: Path) -> Path:
    """The deepest folder of a pattern without wildcards."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _clips_in(folder: Path, paths: list[Path], kinds: tuple[str, ...]) -> list[Clip]:
    """The files of these kinds below a folder. `name.txt` next to `name.mp4` is its caption."""
    files = [path for path in paths if path.suffix.lower() in kinds]
    return [Clip(_slug(path.relative_to(folder)), path, "", _sidecar_caption(path)) for path in files]


def _sidecar_caption(path: Path) -> str:
    """The caption in the text file next to a clip, or an empty string."""
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.exists() else ""


def _clips_in_list(path: Path) -> list[Clip]:
    """The rows of a csv or jsonl list (docs/data.md): `video` (or `file`) and optionally id, split, caption, fps, cuts,
    reference, source, licence and FILE_COLUMNS. Paths are relative to the list. The default caption is `name.txt`.
    """
    require(path.suffix in (".csv", ".jsonl"), f"data.clips={path} is neither a folder nor a .csv or .jsonl list")
    listed = []
    for number, row in enumerate(read_rows(path), start=1):
        where = f"data.clips={path}, clip {number}"
        video = row.get("video") or row.get("file")
        require(bool(video), f"{where} names no video: give a column `video` with the path")
        assert video
        split, name = row.get("split", ""), row.get("id") or _slug(Path(video))
        valid = re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) is not None  # a dot would end the key inside a tar
        require(valid, f"{where}: id={name!r} may only hold letters, digits, - and _, at most 60")
        require(split in ("", *SPLITS), f"{where}: split={split!r} is not one of {', '.join(SPLITS)}")
        listed.append(
            Clip(
                id=name,
                path=path.parent / video,
                split=split,
                caption=row.get("caption") or _sidecar_caption(path.parent / video),
                licence=row.get("licence", ""),
                source=row.get("source", ""),
                reference=path.parent / row["reference"] if "reference" in row else None,
                files={column: path.parent / row[column] for column in FILE_COLUMNS if column in row},
                fps=parse_number(row, "fps", where),
                cuts=parse_frame_numbers(row, "cuts", where),
                row=row,
            )
        )
    return listed


def _slug(path: Path) -> str:
    """A short id of a relative path, made unique by part of its hash and safe as a name inside a tar."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", str(path.with_suffix("")))[-40:].strip("-")
    return f"{name}-{_hash(str(path)):08x}"


def _hash(text: str) -> int:
    """A hash below 2^32 that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _with_splits(clips: list[Clip], fraction: float) -> list[Clip]:
    """Assign a split to clips without one by the hash of their id, so a clip keeps its split when clips are added.

    The share `fraction` of them becomes heldout, and the same share val. If one of these splits would be empty, it
    receives the train clip with the lowest hash, as long as train keeps one.
    """
    if all(clip.split for clip in clips):
        return clips
    share = fraction * 2**32
    assigned = [replace(c, split=c.split or SPLITS[::-1][min(int(_hash(c.id) // share), 2)]) for c in clips]
    for split in ("heldout", "val"):
        train = sorted((c for c in assigned if c.split == "train"), key=lambda clip: _hash(clip.id))
        if len(train) > 1 and not any(c.split == split for c in assigned):
            assigned[assigned.index(train[0])] = replace(train[0], split=split)
    return assigned
