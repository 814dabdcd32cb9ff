"""Extract the clips of one tar of somebody else's webdataset into regular files.

Nothing in a tar decides where a file is written, and nothing is unpickled: members that are neither media, captions nor
JSON are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from data_prep.clips.columns import FILE_COLUMNS, NAMES, normalise
from data_prep.clips.kinds import STILLS, VIDEOS
from iclora_train.config import ConfigError
from iclora_train.core.atomic_files import reraise_disk_full, write_json
from iclora_train.core.console import printable
from iclora_train.core.records import Count, DamagedFileError, FileName, Text, read_json
from iclora_train.core.regular_files import open_regular
from iclora_train.data.tar_members import FilePart, TarMember, read_members

RECIPE = 1  # increase it when the same tar gives other files
MEDIA = (*VIDEOS, *STILLS)  # a sample's video goes before its image
CAPTIONS = (".txt", ".caption")
PICKLES = (".pkl", ".pickle", ".pyd", ".pt", ".pth", ".ckpt", ".joblib")
# words between the key and the suffix (<key>.control.mp4) -> column of a list
ROLES = {
    "target": "video",
    "control": "reference",
    **{
        name: column for column in ("video", "caption", "reference", *FILE_COLUMNS) for name in (*NAMES[column], column)
    },
}
NO_CLIP = "samples without a video or an image"
_MAX_JSON = 2**20  # bytes of a sample's JSON
_MAX_NAME = 80  # characters of a key in the name of a file
_CHUNK = 2**20


@dataclass(frozen=True)
class Sample:
    """A sample with a clip. files: column of a list, or "text" -> file in the tar's folder. metadata: of its JSON."""

    files: dict[Text, FileName]
    metadata: dict[Text, Text] = field(default_factory=dict)


@dataclass(frozen=True)
class Extracted:
    """The record of an extracted tar: its size and time, its samples with a clip, and what was left out, by kind."""

    recipe: Count
    bytes: Count
    mtime_ns: Count
    samples: list[Sample]
    left_out: dict[Text, Count]


def safe_name(name: str) -> str:
    """A name of letters, digits, `-` and `_`, made unique by part of a hash if it differs from `name`."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:_MAX_NAME].strip("-")
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}"


def read_record(folder: Path, name: str, tar: Path) -> Extracted | None:
    """The record of an earlier `extract` of exactly this tar; None if there is none, or one of its files is missing."""
    try:
        record = read_json(folder / f"{name}.json", Extracted, "the tar is extracted again")
    except (DamagedFileError, OSError):
        return None
    status = tar.stat()
    if (record.recipe, record.bytes, record.mtime_ns) != (RECIPE, status.st_size, status.st_mtime_ns):
        return None
    present = {entry.name for entry in os.scandir(folder / name)} if (folder / name).is_dir() else set()
    return record if all(file in present for sample in record.samples for file in sample.files.values()) else None


def extract(tar: Path, folder: Path, name: str, written: Callable[[int], None]) -> Extracted:
    """Extract one tar into `folder`/`name`, which appears when all its files are written, and write its record.

    written: receives the number of bytes of each written file. ConfigError, which names tar and member, for a damaged
    tar, a link, a device, and a name that leads out of the folder.
    """
    target = folder / name
    for old in (target, *folder.glob(f"{name}.*.part")):  # of a changed tar, or of a killed process
        shutil.rmtree(old, ignore_errors=True)
    partial = folder / f"{name}.{secrets.token_hex(4)}.part"  # a process on another machine may extract the same tar
    partial.mkdir(parents=True)
    left_out: Counter[str] = Counter()
    with _opened(tar) as file, reraise_disk_full(partial / "a clip"):
        status = os.fstat(file.fileno())
        try:
            members = list(read_members(FilePart(file, 0, status.st_size), whole=True, folders=True))
            samples = list(_samples(file, members, partial, left_out, written))
        except ValueError as error:
            raise ConfigError(
                f"{tar}: {printable(str(error))}: download or write it again, or leave it out of data.clips"
            ) from error
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(partial)  # another process was faster; its files are the same
    record = Extracted(RECIPE, status.st_size, status.st_mtime_ns, samples, dict(left_out))
    write_json(folder / f"{name}.json", asdict(record))
    return record


def _opened(tar: Path) -> IO[bytes]:
    try:
        return open_regular(tar)
    except OSError as error:
        raise ConfigError(f"data.clips: {tar} cannot be read ({error.strerror})") from error


def _samples(
    file: IO[bytes],
    members: Sequence[TarMember],
    folder: Path,
    left_out: Counter[str],
    written: Callable[[int], None],
) -> Iterator[Sample]:
    """The samples with a clip, whose files are written into `folder`. ValueError for a member with an unsafe name."""
    by_key: dict[str, dict[str, TarMember]] = defaultdict(dict)
    for member in members:
        key, extension = key_and_extension(member.name)
        if key.rpartition("/")[2]:  # hidden files (._clip.mp4, .DS_Store) have none
            if extension in by_key[key]:
                raise ValueError(f"member {member.name[:80]!r} occurs twice")
            by_key[key][extension] = member
    for key in sorted(by_key):
        extensions = by_key[key]
        columns = columns_of(extensions, left_out)
        metadata = columns.pop("json", None)
        if "video" not in columns:
            left_out[NO_CLIP] += 1
            continue
        files = {column: _file_name(key, column, extension) for column, extension in columns.items()}
        for column, name in files.items():
            member = extensions[columns[column]]
            _copy(file, member, folder / name)
            written(member.size)
        yield Sample(files, {} if metadata is None else _metadata(file, extensions[metadata], left_out))


def key_and_extension(name: str) -> tuple[str, str]:
    """The key and the extensions of a member, split at the first dot of its file name, as webdataset does.

    ValueError for a name that leads elsewhere.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts:
        raise ValueError(f"member {name[:80]!r} leads out of the tar's own folder")
    stem, _, extension = parts[-1].partition(".")
    return "/".join([*parts[:-1], stem]), extension


def columns_of(extensions: Collection[str], left_out: Counter[str]) -> dict[str, str]:
    """Column of a list, "text" or "json" -> the extension of the member for it. All others are counted."""
    chosen: dict[str, str] = {}
    ranks = {suffix: rank for rank, suffix in enumerate(MEDIA)}
    for extension in sorted(extensions, key=lambda e: (ranks.get(_suffix(e), len(ranks)), e)):
        column = _column(extension)
        if column is None or column in chosen:
            left_out[f".{extension.lower()}"] += 1
        else:
            chosen[column] = extension
    return chosen


def _suffix(extension: str) -> str:
    return f".{extension.rpartition('.')[2].lower()}"


def _column(extension: str) -> str | None:
    """The column for a member, from its extension: `mp4` -> video, `control.mp4` -> reference, `txt` -> text."""
    words, suffix = normalise(extension.rpartition(".")[0]), _suffix(extension)
    column = ROLES.get(words, "") if words else ""
    if suffix in PICKLES or (words and not column):
        return None
    if suffix in MEDIA:
        return column or "video"
    if suffix in CAPTIONS and column in ("", "caption"):
        return "text"
    if column in FILE_COLUMNS:
        return column
    return "json" if suffix == ".json" and not words else None


def _file_name(key: str, column: str, extension: str) -> str:
    """`<key>.mp4`, `<key>.txt` next to it as its caption, `<key>.reference.mp4`."""
    if column == "text":
        return f"{safe_name(key)}.txt"
    return f"{safe_name(key)}{'' if column == 'video' else f'.{column}'}{_suffix(extension)}"


def _copy(file: IO[bytes], member: TarMember, path: Path) -> None:
    """Write the content of a member to a new file."""
    with path.open("xb") as out:
        file.seek(member.data)
        for start in range(0, member.size, _CHUNK):
            out.write(file.read(min(_CHUNK, member.size - start)))


def _metadata(file: IO[bytes], member: TarMember, left_out: Counter[str]) -> dict[str, str]:
    """The texts and numbers in a sample's JSON, as text; lists are joined by spaces. Other values are left out."""
    file.seek(member.data)
    try:
        values = json.loads(file.read(member.size)) if member.size <= _MAX_JSON else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        left_out["unreadable .json"] += 1
        return {}
    texts = {str(name): _text(value) for name, value in values.items()}
    return {name: text for name, text in texts.items() if text and _text(name)}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value)).strip()
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    return "" if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text) else text
