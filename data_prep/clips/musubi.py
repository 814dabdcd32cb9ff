"""Read the dataset config of musubi-tuner (a toml with [general] and [[datasets]]) as a list of clips."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.clips.kinds import REFERENCES, STILLS, VIDEOS
from data_prep.clips.reference_folder import ReferenceFolder, name_of
from data_prep.clips.rows import Row, read_rows
from data_prep.clips.text_files import CAPTION_SUFFIXES, read_text
from iclora_train.config import ConfigError, require

SUFFIX = ".toml"
# the keys that name the clips of a dataset: the suffixes in a folder; None for a list of rows
_PLACES = {"video_directory": VIDEOS, "image_directory": STILLS, "video_jsonl_file": None, "image_jsonl_file": None}
_READ = (*_PLACES, "control_directory", "caption_extension")
_BATCHES = "data.batch_size or data.tokens_per_batch"
# keys that are not read, and the settings that replace them
_REPLACED = {
    "resolution": "data.width and data.height, or data.buckets",
    "enable_bucket": "data.buckets",
    "bucket_no_upscale": "nothing: clips are never enlarged",
    "target_frames": "data.frames, or data.buckets",
    "max_frames": "data.frames, or data.buckets",
    "frame_extraction": "data.pick",
    "frame_stride": "data.pick=stride data.stride",
    "frame_sample": "data.train_windows",
    "source_fps": "nothing: the times of the video count; data.fps is the rate of the windows",
    "batch_size": _BATCHES,
    "cache_directory": "data.root",
    "num_repeats": "data.sources with `repeats`",
    "control_resolution": "task.reference_downscale",
    "no_resize_control": "task.reference_downscale",
}


@dataclass(frozen=True)
class ForeignRow:
    """A row of a list of another program, with our columns. where: its place, for messages. problem: as of a Clip."""

    where: str
    cells: Row
    problem: str = ""


def read_musubi(path: Path) -> list[ForeignRow]:
    """The clips of all datasets, each file once. ConfigError names the file, the dataset, the key and the remedy."""
    rows: dict[str, ForeignRow] = {}
    for where, dataset in _datasets(path):
        for row in _rows_of(path.parent, where, dataset):
            rows.setdefault(os.path.realpath(row.cells["video"]), row)
    return list(rows.values())


def musubi_notes(path: Path) -> list[str]:
    """One line for each key of the file that is not read, with the setting that replaces it."""
    lines: dict[str, None] = {}
    for _, dataset in _datasets(path):
        for key, value in dataset.items():
            if key not in _READ and not (key == "num_repeats" and value == 1):
                lines[f"{key}={value} of {path.name} is not used; instead: {_REPLACED.get(key, 'nothing')}"] = None
    return list(lines)


def _datasets(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and keys of each dataset; the keys of [general] hold for all."""
    where = f"data.clips={path}"
    try:
        content = tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror})") from error
    except ValueError as error:  # its encoding, or its syntax
        raise ConfigError(f"{where} is not a toml file: {error}") from error
    general, datasets = content.get("general", {}), content.get("datasets", [])
    is_config = (
        isinstance(datasets, list) and len(datasets) > 0 and all(isinstance(d, dict) for d in [general, *datasets])
    )
    require(
        is_config,
        f"{where} is not a dataset config of musubi-tuner: it needs a [[datasets]] table with "
        f"{', '.join(list(_PLACES)[:-1])} or {list(_PLACES)[-1]}",
    )
    for number, dataset in enumerate(datasets, start=1):
        yield f"{where}, dataset {number}", {**general, **dataset}


def _rows_of(folder: Path, where: str, dataset: Mapping[str, Any]) -> Iterator[ForeignRow]:
    places = [key for key in _PLACES if key in dataset]
    require(len(places) == 1, f"{where} names {' and '.join(places) or 'no clips'}: give one of {', '.join(_PLACES)}")
    for key in _READ:
        is_text = isinstance(dataset.get(key, ""), str)
        require(is_text, f"{where}: {key}={dataset.get(key)!r} must be a text")
    place = places[0]
    path = _existing(folder, dataset[place], f"{where}: {place}")
    kinds = _PLACES[place]
    if kinds is None:
        yield from _rows_of_list(path)
    else:
        yield from _rows_of_folder(folder, path, where, dataset, kinds)


def _rows_of_list(path: Path) -> Iterator[ForeignRow]:
    """The rows of a jsonl. musubi-tuner looks for relative paths in the working folder first, then beside the file."""
    for number, cells in enumerate(read_rows(path), start=1):
        named = {column: cells[column] for column in ("video", "reference") if column in cells}
        absolute = {column: str(_absolute(path.parent, cell)) for column, cell in named.items()}
        yield ForeignRow(f"data.clips={path}, clip {number}", cells | absolute)


def _rows_of_folder(
    base: Path, folder: Path, where: str, dataset: Mapping[str, Any], kinds: tuple[str, ...]
) -> Iterator[ForeignRow]:
    """The files of a folder, without those of its subfolders, as musubi-tuner lists them, and their controls."""
    require(folder.is_dir(), f"{where}: {folder} is not a folder")
    controls = None
    if "control_directory" in dataset:
        control_folder = _existing(base, dataset["control_directory"], f"{where}: control_directory")
        controls = ReferenceFolder(str(control_folder), REFERENCES, folder, f"{where}: control_directory")
    suffix = dataset.get("caption_extension", CAPTION_SUFFIXES[0])
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in kinds or path.name.startswith("."):
            continue
        cells, problem = {"video": str(path)}, ""
        if suffix not in CAPTION_SUFFIXES and path.with_suffix(suffix).is_file():
            cells["caption"] = _caption(path.with_suffix(suffix), where)
        if controls is not None:
            reference, problem = _control_of(path, controls)
            cells |= {} if reference is None else {"reference": str(reference)}
        yield ForeignRow(where, cells, problem)


def _control_of(clip: Path, controls: ReferenceFolder) -> tuple[Path | None, str]:
    """The control of a clip, `a` or `a_0` in any number of digits, and why the clip cannot be used without one."""
    name = Path(clip.name)
    if reference := controls.partner_of(name):
        return reference, ""
    numbered = [key for key in controls.files if key.removeprefix(f"{name_of(name)}_").isdecimal()]
    if len(numbered) == 1:
        return controls.partner_of(Path(f"{numbered[0]}{clip.suffix}")), ""
    if numbered:
        return None, f"it has {len(numbered)} controls ({', '.join(sorted(numbered))}), and a clip has one reference"
    return None, f"no control in {controls.folder} is named {clip.stem}.*"


def _caption(path: Path, where: str) -> str:
    try:
        return read_text(path).strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: the caption {path} cannot be read: {error}") from error


def _existing(folder: Path, cell: str, where: str) -> Path:
    path = _absolute(folder, cell)
    require(path.exists(), f"{where}={cell} does not exist; relative paths begin at the working folder or at {folder}")
    return path


def _absolute(folder: Path, cell: str) -> Path:
    """The absolute path of a cell: from the working folder if it exists there, otherwise from the file's folder."""
    path = Path(os.path.expanduser(cell))
    return Path(os.path.abspath(path if path.exists() else folder / path))
