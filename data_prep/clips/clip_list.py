"""Which clips there are: the samples, a folder, a pattern, or a csv/jsonl list; and which split each belongs to."""

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
FILE_COLUMNS = ("mask", "depth", "tracks", "pose", "flow", "sheet")  # columns of files that makers may use


@dataclass(frozen=True)
class Clip:
    """A source video or image. `split` is one of SPLITS; `reference` is a video made for it elsewhere, if there is one;
    `files` are what else belongs to it (a mask, tracks, ...), by column of the list; `fps` is what the list says of it;
    `cuts` are the frames with which a scene begins, None where the list does not say; `row` holds all columns, as text.
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
        """Whether it has one frame by nature, and no rate."""
        return self.path.suffix.lower() in IMAGES


def list_clips(clips: str, heldout_fraction: float, images: bool = False) -> list[Clip]:
    """The clips of `data.clips`, each with a split, ordered by id; of folders and patterns also `images`, if wanted.
    ConfigError when there are none.
    """
    path = SAMPLES if clips == "samples" else Path(clips).expanduser()
    kinds = VIDEOS + IMAGES if images else VIDEOS
    if path.exists():
        found = _folder(path, sorted(path.rglob("*")), kinds) if path.is_dir() else _list(path)
    else:
        require(
            glob.has_magic(str(path)),
            f"data.clips={clips}: {path} does not exist; give samples, a folder, a pattern or a csv/jsonl list",
        )
        found = _folder(_root(path), sorted(map(Path, glob.glob(str(path), recursive=True))), kinds)
    wanted = ", ".join(kinds)
    require(len(found) > 0, f"data.clips={clips}: {path} holds no clips; put videos ({wanted}) or rows into it")
    twice = sorted(name for name, count in Counter(clip.id for clip in found).items() if count > 1)
    require(not twice, f"data.clips={clips}: {', '.join(twice)} is listed twice; give every clip its own id")
    return sorted(_with_splits(found, heldout_fraction), key=lambda clip: clip.id)


def _root(pattern: Path) -> Path:
    """The folder below which a pattern looks."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _folder(folder: Path, paths: list[Path], kinds: tuple[str, ...]) -> list[Clip]:
    """The files of these kinds below a folder; `name.txt` beside `name.mp4` is its caption."""
    chosen = [path for path in paths if path.suffix.lower() in kinds]
    return [Clip(_slug(path.relative_to(folder)), path, "", _sidecar(path)) for path in chosen]


def _sidecar(path: Path) -> str:
    """The caption in the text file beside a clip, or none."""
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.exists() else ""


def _list(path: Path) -> list[Clip]:
    """The rows of a csv or jsonl list (docs/data.md): `video` (or `file`) and, if you like, id, split, caption, fps,
    cuts, reference, source, licence and FILES. Paths are relative to the list; without a caption, `name.txt` is asked.
    """
    require(path.suffix in (".csv", ".jsonl"), f"data.clips={path} is neither a folder nor a .csv or .jsonl list")
    found = []
    for number, row in enumerate(read_rows(path), start=1):
        where = f"data.clips={path}, clip {number}"
        video = row.get("video") or row.get("file")
        require(bool(video), f"{where} names no video: give a column `video` with the path")
        assert video
        split, name = row.get("split", ""), row.get("id") or _slug(Path(video))
        good = re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) is not None  # a dot would end the key inside a tar
        require(good, f"{where}: id={name!r} may only hold letters, digits, - and _, at most 60")
        require(split in ("", *SPLITS), f"{where}: split={split!r} is not one of {', '.join(SPLITS)}")
        found.append(
            Clip(
                id=name,
                path=path.parent / video,
                split=split,
                caption=row.get("caption") or _sidecar(path.parent / video),
                licence=row.get("licence", ""),
                source=row.get("source", ""),
                reference=path.parent / row["reference"] if "reference" in row else None,
                files={column: path.parent / row[column] for column in FILE_COLUMNS if column in row},
                fps=parse_number(row, "fps", where),
                cuts=parse_frame_numbers(row, "cuts", where),
                row=row,
            )
        )
    return found


def _slug(path: Path) -> str:
    """A short id of a relative path, unique by a piece of its hash; safe as a name inside a tar."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", str(path.with_suffix("")))[-40:].strip("-")
    return f"{name}-{_hash(str(path)):08x}"


def _hash(text: str) -> int:
    """A number below 2^32 that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _with_splits(clips: list[Clip], fraction: float) -> list[Clip]:
    """Give clips without a split one, by the hash of their id: a clip keeps its split when others are added.

    `fraction` of them are heldout and as many val. If chance leaves one of these without clips, it gets the train clip
    with the lowest hash, as long as train keeps one.
    """
    if all(clip.split for clip in clips):
        return clips
    share = fraction * 2**32
    drawn = [replace(c, split=c.split or SPLITS[::-1][min(int(_hash(c.id) // share), 2)]) for c in clips]
    for split in ("heldout", "val"):
        free = sorted((c for c in drawn if c.split == "train"), key=lambda clip: _hash(clip.id))
        if len(free) > 1 and not any(c.split == split for c in drawn):
            drawn[drawn.index(free[0])] = replace(free[0], split=split)
    return drawn
