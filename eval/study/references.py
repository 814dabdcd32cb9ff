"""The references of a study: what both clips of a pair should follow, shown above them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from eval.metrics import Clip
from iclora_train.config import ConfigError, require
from iclora_train.core.records import PositiveCount, Text, read_json
from iclora_train.media.clip import read_clip
from iclora_train.media.picture import IMAGES, is_picture, read_picture

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")


@dataclass(frozen=True)
class Place:
    """What the manifest of `eval.handout` says of one of several references; more keys are not read."""

    name: Text
    temporal_scale: PositiveCount


@dataclass(frozen=True)
class _Manifest:
    references: dict[Text, Place] = field(default_factory=dict)  # absent for a single reference


@dataclass(frozen=True)
class ReferenceFile:
    """The file of one reference. slower: its frame rate is this many times lower than that of the clips."""

    path: Path
    name: str = ""  # empty for the only one
    slower: int = 1


@dataclass(frozen=True)
class ShownReference:
    """A reference as it is shown: frames (F,H,W,3), one for a picture."""

    frames: Clip
    name: str
    slower: int


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder with such an ending, by name without it."""
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes}


def window_of(name: str) -> str:
    """The window of a clip that is named `<window>.<seed>`, as the outputs of an evaluation are."""
    return name.rpartition(".")[0] or name


def references_of(folder: Path, names: list[str]) -> dict[str, list[ReferenceFile]]:
    """The references of each clip, in order: `<window>.reference0`, `<window>.reference1`, ... as `eval.handout` writes
    them, or the file of its name.

    ConfigError for a folder with none of them; clips without one are left out."""
    require(folder.is_dir(), f"--references {folder} does not exist: give a folder of clips and pictures")
    files, places = files_by_stem(folder, VIDEOS + IMAGES), _places(folder)
    of_clips = {name: list(_of_clip(name, files, places)) for name in names}
    require(
        any(of_clips.values()),
        f"--references {folder}: no file is named as a clip of the study ({names[0]}) or <window>.reference0",
    )
    return {name: references for name, references in of_clips.items() if references}


def _of_clip(name: str, files: Mapping[str, Path], places: Mapping[str, Place]) -> Iterator[ReferenceFile]:
    if name in files:
        yield ReferenceFile(files[name])
        return
    stem = next((stem for stem in (window_of(name), name) if f"{stem}.reference0" in files), None)
    numbers = [] if stem is None else _following(stem, files)
    for number in numbers:
        place = places.get(f"reference{number}")
        title = f"reference {number + 1}" if place is None else place.name
        path = files[f"{stem}.reference{number}"]
        yield ReferenceFile(path, title if len(numbers) > 1 else "", 1 if place is None else place.temporal_scale)


def _following(stem: str, files: Mapping[str, Path]) -> list[int]:
    """0, 1, ... as long as there are files."""
    count = 0
    while f"{stem}.reference{count}" in files:
        count += 1
    return list(range(count))


def _places(folder: Path) -> Mapping[str, Place]:
    """What manifest.json beside `inputs/` says of several references; empty without one."""
    path = folder.resolve().parent / "manifest.json"
    if not path.is_file():
        return {}
    return read_json(path, _Manifest, "write it again with eval.handout, or copy inputs/ without it").references


def read_references(files: list[ReferenceFile], size: tuple[int, int]) -> list[ShownReference]:
    """The references at (width, height) of the clips. ConfigError for an unreadable file."""
    return [ShownReference(read_frames(file.path, size), file.name, file.slower) for file in files]


def read_frames(path: Path, size: tuple[int, int]) -> Clip:
    """A video or a picture at (width, height), uint8 RGB (F,H,W,3). ConfigError for an unreadable file."""
    try:
        frames = [read_picture(path)] if is_picture(path) else read_clip(path)
        return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    except ValueError as error:
        raise ConfigError(str(error)) from error
