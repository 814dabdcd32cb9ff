"""Which clips there are: the sample clips, a folder of videos, or a csv/jsonl list; and which split each belongs to."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from iclora_train.config import ConfigError, require

SAMPLES = Path(__file__).parent / "samples" / "clips.csv"
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif")
SPLITS = ("train", "val", "heldout")


@dataclass(frozen=True)
class Clip:
    """A source video. `split` is one of SPLITS; `reference` is a video made for it elsewhere, if there is one."""

    id: str
    path: Path
    split: str
    caption: str = ""
    licence: str = ""
    source: str = ""
    reference: Path | None = None


def list_clips(clips: str, heldout_fraction: float) -> list[Clip]:
    """The clips of `data.clips`, each with a split, ordered by id. ConfigError when there are none."""
    path = SAMPLES if clips == "samples" else Path(clips).expanduser()
    require(path.exists(), f"data.clips={clips}: {path} does not exist; give samples, a folder or a csv/jsonl list")
    found = _folder(path) if path.is_dir() else _list(path)
    kinds = ", ".join(VIDEOS)
    require(len(found) > 0, f"data.clips={clips}: {path} holds no clips; put videos ({kinds}) or rows into it")
    ids = [clip.id for clip in found]
    twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    require(not twice, f"data.clips={clips}: {', '.join(twice)} is listed twice; give every clip its own id")
    return sorted(_with_splits(found, heldout_fraction), key=lambda clip: clip.id)


def _folder(folder: Path) -> list[Clip]:
    """All videos below a folder; `name.txt` beside `name.mp4` is its caption."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEOS):
        sidecar = path.with_suffix(".txt")
        caption = sidecar.read_text(encoding="utf-8").strip() if sidecar.exists() else ""
        found.append(Clip(_slug(path.relative_to(folder)), path, "", caption))
    return found


def _list(path: Path) -> list[Clip]:
    """The rows of a csv or jsonl with `video` (or `file`), `caption` and, if you like, id, split, reference, source,
    licence. Paths are relative to the list.
    """
    require(path.suffix in (".csv", ".jsonl"), f"data.clips={path} is neither a folder nor a .csv or .jsonl list")
    found = []
    for number, row in enumerate(_rows(path), start=1):
        where = f"data.clips={path}, clip {number}"
        video = row.get("video") or row.get("file")
        require(bool(video), f"{where} names no video: give a column `video` with the path")
        assert video
        split = row.get("split") or ""
        name = row.get("id") or _slug(Path(video))
        good = re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) is not None  # a dot would end the key inside a tar
        require(good, f"{where}: id={name!r} may only hold letters, digits, - and _, at most 60")
        require(split in ("", *SPLITS), f"{where}: split={split!r} is not one of {', '.join(SPLITS)}")
        reference = path.parent / row["reference"] if row.get("reference") else None
        found.append(
            Clip(
                id=name,
                path=path.parent / video,
                split=split,
                caption=row.get("caption") or "",
                licence=row.get("licence") or "",
                source=row.get("source") or "",
                reference=reference,
            )
        )
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    """Rows of a list as dictionaries. ConfigError names the line that is not JSON."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        rows = []
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"data.clips={path}, line {number} is not JSON ({error.msg})") from error
            require(isinstance(row, dict), f"data.clips={path}, line {number} is no JSON object")
            rows.append(row)
        return rows


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
