"""Clips that another program made, from a folder: `<key>.mp4`, or `<key>.<seed>.mp4`, or folders of PNG frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from eval.clips.alignment import require_aligned
from eval.clips.clip_source import ClipCache, ClipSource
from eval.clips.conditions import Condition, Item, at_strength
from eval.clips.judged_adapter import JudgedAdapter
from eval.clips.windows import HeldOut, Window
from eval.metrics import Clip, offset
from iclora_train.config import Config, ConfigError, require
from iclora_train.core.atomic_files import sha256
from iclora_train.core.fingerprint import digest
from iclora_train.core.progress import progress_bar
from iclora_train.data.video import read_clip, read_encoding
from iclora_train.ltx2.base_model import BaseModel

VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".webm")
NAMED = 3  # files that an error or a warning names
BY_CHANCE = 0.5  # share of clips of another look than their targets that may fit another frame better
HAND_OUT = "`python -m eval.handout` with the same settings writes what the program needs"


class VideoFolder(ClipSource):
    """The clips of a folder as the cell adapter+reference; `seeds` are those that the folder holds.

    ConfigError names clips that are missing, or of another length or size than their targets.
    """

    def __init__(self, config: Config, base: BaseModel, held: HeldOut, store: ClipCache) -> None:
        assert config.videos is not None
        self.folder = Path(config.videos)
        require(
            self.folder.is_dir(), f"videos={self.folder} is no folder: give one that holds {held.windows[0].key}.mp4"
        )
        self.files, self.seeds = find_clips(self.folder, held.windows, config.eval.seeds)
        digests = digest({_name(path): _hash(path) for path in self.files.values()})
        note = lossy_note(list(self.files.values()))
        super().__init__(
            config, base, JudgedAdapter(str(self.folder), foreign=True, note=note, videos=digests), held, store
        )
        self.cells = [at_strength(1)]
        self.sigmas: list[float] = []
        self.precision = str(next(self.vae.parameters()).dtype)
        self._check()

    def _check(self) -> None:
        """ConfigError for clips that do not fit their targets in size, length or time."""
        shifts = {}
        with progress_bar("clips", len(self.files), "clip") as bar:
            for item in (Item(window, seed) for window in self.held.windows for seed in self.seeds):
                shift = offset(self._read(item), self.held.pair(item.window).target)
                shifts[self.files[item.window.key, item.seed].name] = shift
                bar.advance()
        require_aligned(shifts, BY_CHANCE if self.config.task.family == "structure" else 0)

    def clips(self, cell: Condition, batch: Sequence[Item]) -> tuple[Clip, float]:
        """As `ClipSource.clips`; nothing is sampled, so it takes no seconds."""
        return np.stack([self.clip(cell, batch, i) for i in range(len(batch))]), 0.0

    def clip(self, cell: Condition, batch: Sequence[Item], i: int) -> Clip:
        """As `ClipSource.clip`. ValueError for a cell that a folder does not hold."""
        if cell not in self.cells:
            raise ValueError(f"a folder of videos has no cell {cell.name!r}")
        return self._read(batch[i])

    def _read(self, item: Item) -> Clip:
        """The clip (F,H,W,3) of an item. ConfigError when it has not the size of its target."""
        path = self.files[item.window.key, item.seed]
        clip, target = read_frames(path), self.held.pair(item.window).target
        require(
            clip.shape == target.shape,
            f"{path} has {_size(clip)}, its target {item.window.key} {_size(target)}: every clip needs its target's "
            f"size and length; {HAND_OUT}",
        )
        return clip


def find_clips(
    folder: Path, windows: Sequence[Window], seeds: Sequence[int]
) -> tuple[dict[tuple[str, int], Path], list[int]]:
    """(key, seed) -> file or folder of every clip, and the seeds: `seeds` where files are named by them, else one.

    ConfigError names what is missing.
    """
    names = {_name(path): path for path in sorted(folder.iterdir()) if path.is_dir() or path.suffix.lower() in VIDEOS}
    seeded = any(f"{window.key}.{seed}" in names for window in windows for seed in seeds)
    used = list(seeds) if seeded else [seeds[0]]
    wanted = {(w.key, seed): f"{w.key}.{seed}" if seeded else w.key for w in windows for seed in used}
    missing = [name for name in wanted.values() if name not in names]
    require(
        not missing,
        f"videos={folder}: {len(missing)} of {len(wanted)} clips are missing, e.g. "
        f"{', '.join(f'{name}.mp4' for name in missing[:NAMED])}; {HAND_OUT}",
    )
    return {place: names[name] for place, name in wanted.items()}, used


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.name.removesuffix(path.suffix)


def _size(clip: Clip) -> str:
    frames, height, width = clip.shape[:3]
    return f"{frames} frames of {width}x{height}"


def read_frames(path: Path) -> Clip:
    """A clip (F,H,W,3): a video, or the PNG files of a folder in the order of their names.

    ConfigError names the file.
    """
    if not path.is_dir():
        try:
            return np.stack(list(read_clip(path)))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    frames = []
    for file in _frames(path):
        picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if picture is None:
            raise ConfigError(f"{file} cannot be read as a picture: write it again")
        frames.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    require(len({frame.shape for frame in frames}) == 1, f"{path}: its frames differ in size, or there is no *.png")
    return np.stack(frames).astype(np.uint8)


def _frames(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def _hash(path: Path) -> str:
    return digest([sha256(file) for file in _frames(path)]) if path.is_dir() else sha256(path)


def lossy_note(files: Sequence[Path]) -> str | None:
    """A warning that names files whose encoding loses some of the picture; None when none does.

    A pixel format that is not RGB does: its colours are rounded, and mostly subsampled.
    """
    try:
        lossy = [(path, *read_encoding(path)) for path in files if not path.is_dir()]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    named = [f"{path.name} ({codec}, {pixels})" for path, codec, pixels in lossy if not _is_rgb(pixels)]
    if not named:
        return None
    return (
        f"{len(named)} of {len(files)} clips are stored with losses, e.g. {', '.join(named[:NAMED])}: their figures "
        "are lower than the program's own; PNG frames, FFV1 or H.264 in RGB (libx264rgb -qp 0) keep them"
    )


def _is_rgb(pixels: str) -> bool:
    return pixels.startswith(("rgb", "bgr", "gbr", "argb", "abgr"))
